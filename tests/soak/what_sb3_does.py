"""What DQN, PPO and SAC of Stable-Baselines3 do with the same faults of environments: `python -m tests.soak.what_sb3_does`."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from tests.test_bad_environments import GreedyEnv, OddEnv, ReusingEnv, die, observed, raise_error
from tests.test_bad_input import WalkEnv

N_STEPS = 120
AT = 40


def make(kind: str, env: VecEnv) -> BaseAlgorithm:
    small = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
    if kind == "PPO":
        return PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, **small)
    return {"DQN": DQN, "SAC": SAC}[kind]("MlpPolicy", env, learning_starts=10, train_freq=1, batch_size=8, **small)


def outcome(kind: str, make_env: Callable[[], VecEnv]) -> str:
    env = make_env()
    model = make(kind, env)
    try:
        model.learn(N_STEPS)
        said = "no error"
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).splitlines()[0][:70] if str(error) else ''}"
    finite = all(bool(th.isfinite(p).all()) for p in model.policy.parameters())
    more = [] if finite else ["weights not finite"]
    if isinstance(env, VecNormalize) and not np.isfinite(env.obs_rms.mean).all():
        more.append("running statistics not finite")
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        size = buffer.size()
        stored, following = buffer.observations[:size, :, 0], buffer.next_observations[:size, :, 0]
        if not np.isfinite(buffer.observations[:size]).all() or not np.isfinite(buffer.rewards[:size]).all():
            more.append("bad numbers in the buffer")
        elif not isinstance(env, VecNormalize) and (following != stored + 1).any():
            more.append(f"{int((following != stored + 1).sum())} of {size * env.num_envs} stored steps wrong")
        if np.abs(buffer.actions[:size]).max() > 2:
            more.append(f"actions up to {np.abs(buffer.actions[:size]).max():.0f} in the buffer")
    if isinstance(env.unwrapped, SubprocVecEnv):
        time.sleep(0.5)
        alive = sum(process.is_alive() for process in env.unwrapped.processes)
        more.append(f"{alive} processes left")
        for process in env.unwrapped.processes:
            process.kill()
    return "; ".join([said, *more])


def two(make_second: Callable[[], Any], **kwargs: Any) -> Callable[[], VecEnv]:
    return lambda: DummyVecEnv([lambda: WalkEnv(**kwargs), make_second])


def faults(action_space: spaces.Space) -> dict[str, Callable[[], VecEnv]]:
    space = {"action_space": action_space}

    def odd(change: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: OddEnv(change, at=AT, **space)

    def bad(value: float, where: str) -> Callable[[], Any]:
        return lambda: WalkEnv(value, where, AT + 1, **space)

    def killed() -> VecEnv:
        return SubprocVecEnv([lambda: WalkEnv(**space), lambda: WalkEnv(**space), odd(die)])

    def broken() -> VecEnv:
        return SubprocVecEnv([lambda: WalkEnv(**space), odd(raise_error), lambda: WalkEnv(**space)])

    return {
        "NaN in an observation": two(bad(np.nan, "observation"), **space),
        "inf in an observation": two(bad(np.inf, "observation"), **space),
        "NaN in a reward": two(bad(np.nan, "reward"), **space),
        "NaN behind VecNormalize": lambda: VecNormalize(two(bad(np.nan, "observation"), **space)()),
        "inf behind VecNormalize": lambda: VecNormalize(two(bad(np.inf, "observation"), **space)()),
        "observation of shape ()": two(odd(observed(np.float32(7.0))), **space),
        "observation of shape (1,)": two(odd(observed(np.float32([7.0]))), **space),
        "env that raises": two(odd(raise_error), **space),
        "process that dies": killed,
        "process whose env raises": broken,
        "same array each step": two(lambda: ReusingEnv(**space), **space),
        "env that writes into its action": two(lambda: GreedyEnv(**space), **space),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    box, discrete = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32), spaces.Discrete(2)
    for name in faults(box):
        for kind in ("DQN", "PPO", "SAC"):
            print(f"{name} | {kind} | {outcome(kind, faults(discrete if kind == 'DQN' else box)[name])}", flush=True)


if __name__ == "__main__":
    main()
