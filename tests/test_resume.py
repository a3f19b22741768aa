"""Learning that was interrupted and goes on in another process is, to the last bit, learning that was not interrupted."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_rgrl import RGRL
from sb3_rgrl.callbacks import ExactCheckpointCallback
from sb3_rgrl.checkpoint import at_episode_start, checkpoints_in, load_checkpoint, save_checkpoint
from sb3_rgrl.resumable import Resumable
from tests.toy import TINY, Drift

ROOT = Path(__file__).resolve().parents[1]

# For each case: changes of the agent, kind of environment, number of environments.
CASES = {
    "plain": ({}, "toy", 1),
    # A buffer that was overwritten once, a decaying learning rate, consolidation that draws windows.
    "everything": (
        {
            "learning_rate": LinearSchedule(1e-2, 1e-4, 1.0),
            "ewc_lambda": 1.0,
            "ewc_fisher": "window",
            "dropout": 0.2,
            "action_noise_correlation": 0.8,
            "random_action_hold": 0.5,
        },
        "normalized",
        1,
    ),
    "episodes": ({"train_freq": (2, "episode"), "gradient_steps": -1}, "ends early", 1),
    "three environments": ({"per_exponent": 1.0}, "normalized", 3),
    # Plans are left in the middle of an action; windows are of two actions, each of three steps.
    "long actions": (
        {
            "action_repeat": 3,
            "sequence_length": 1,
            "policy_kwargs": {"net_arch": [8], "windows_per_sample": 2, "execute_steps": 2},
        },
        "toy",
        1,
    ),
    "long warm-up": ({"learning_starts": 75, "action_noise_correlation": 0.9}, "toy", 1),
}


def make_env(kind: str, n_envs: int):
    kwargs = {"length": 10, "limit": 1.2} if kind == "ends early" else {}
    env = make_vec_env(lambda: Drift(**kwargs), n_envs=n_envs, wrapper_class=Resumable)
    return VecNormalize(env) if kind == "normalized" else env


def make_model(case: str, seed: int) -> RGRL:
    changes, kind, n_envs = CASES[case]
    return RGRL("MlpEnsemblePolicy", make_env(kind, n_envs), seed=seed, **{**TINY, **changes})


class StopAtEpisodeStart(BaseCallback):
    """Saves a checkpoint at the first rollout after `step` that begins with an episode, and stops, if it shall."""

    def __init__(self, step: int, folder: Path | None):
        super().__init__()
        self.step, self.folder, self.done = step, folder, False

    def _on_rollout_start(self):
        if not self.done and self.model.num_timesteps >= self.step and at_episode_start(self.model):
            self.done = True
            if self.folder is not None:
                save_checkpoint(self.model, self.folder)

    def _on_step(self):
        return self.folder is None or not self.done


def digest(value) -> str:
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes() + str((value.shape, value.dtype)).encode()).hexdigest()
    return repr(value)


def statistics_of(normalizer: VecNormalize | None) -> dict[str, str]:
    if normalizer is None:
        return {}
    moments = {"obs": normalizer.obs_rms, "ret": normalizer.ret_rms}
    found = {name: digest(np.append(np.ravel(kept.mean), np.ravel(kept.var))) for name, kept in moments.items()}
    return {**found, **{f"{name} count": repr(float(kept.count)) for name, kept in moments.items()}}


def running_plans_of(model: RGRL) -> str:
    """Plans of which several actions are executed, and how many were."""
    return repr([digest(part) for part in model._last_plans or ()])


def fingerprint(model: RGRL) -> dict[str, str]:
    """Everything that an agent will ever do depends on this."""
    found = {}
    for name, tensor in [*model.policy.state_dict().items(), *model.ewc.state_dict().items()]:
        found[f"weights {name}"] = digest(tensor)
    for index, state in model.policy.optimizer.state_dict()["state"].items():
        found.update({f"optimizer {index} {name}": digest(tensor) for name, tensor in state.items()})
    buffer = model.replay_buffer
    for name in ("observations", "next_observations", "actions", "rewards", "terminated", "returns_to_go", "is_window"):
        found[f"buffer {name}"] = digest(getattr(buffer, name)[: buffer.size()])
    for name in ("return_weights", "successors"):
        found[f"buffer {name}"] = digest(getattr(buffer, name)[: buffer.size()])
    for name in ("n_added", "n_windows", "pos", "full", "_largest_error", "_new_windows", "_finished_windows"):
        found[f"buffer {name}"] = repr(getattr(buffer, name))
    for level, sums in enumerate(buffer.sampler._levels):
        found[f"buffer sums {level}"] = digest(sums)
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_n_episodes_ended", "_current_progress_remaining"):
        found[name] = repr(getattr(model, name))
    found["running plans"] = running_plans_of(model)
    found["episodes"] = repr([(info["r"], info["l"]) for info in model.ep_info_buffer])
    found.update(statistics_of(model.get_vec_normalize_env()))
    found["last observation"] = digest(np.asarray(model._last_obs))
    # Before the next actions, which draw.
    for name, generator in (
        ("policy", model.policy.generator),
        ("buffer", buffer.rng),
        ("space", model.action_space.np_random),
    ):
        found[f"generator {name}"] = repr(generator.bit_generator.state)
    found["generator torch"] = digest(th.get_rng_state())
    found["generator numpy"] = digest(np.random.get_state()[1])  # noqa: NPY002
    observations = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    for deterministic in (True, False):
        found[f"next actions {deterministic}"] = digest(model.predict(observations, deterministic=deterministic)[1][0])
    found["next drawn windows"] = digest(buffer.sample(5).indices)
    return found


def second_half(case: str, total: int, folder: str) -> dict[str, str]:
    _, kind, n_envs = CASES[case]
    model = load_checkpoint(folder, make_env(kind, n_envs))
    model.learn(total - model.num_timesteps, reset_num_timesteps=False)
    return fingerprint(model)


def in_a_fresh_process(cases: list[tuple[str, int, str]]) -> list[dict[str, str]]:
    program = (
        "import json, sys\nfrom tests.test_resume import second_half\n"
        "print(json.dumps([second_half(*case) for case in json.loads(sys.argv[1])]))"
    )
    command = [sys.executable, "-c", program, json.dumps(cases)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout)


def first_half(case: str, seed: int, half: int, folder: Path) -> None:
    model = make_model(case, seed)
    model.learn(2 * half, callback=StopAtEpisodeStart(half, folder))
    assert half <= model.num_timesteps < 2 * half, "it was to stop in the middle"


def uninterrupted(case: str, seed: int, total: int) -> dict[str, str]:
    return fingerprint(make_model(case, seed).learn(total))


def assert_same(one: dict[str, str], other: dict[str, str], message: str) -> None:
    assert one.keys() == other.keys()
    differing = [name for name in one if one[name] != other[name]]
    assert not differing, f"{message}: {differing}"


def test_resumed_is_uninterrupted(tmp_path: Path):
    half = 90
    for case in CASES:
        first_half(case, 3, half, tmp_path / case)
    resumed = in_a_fresh_process([(case, 2 * half, str(tmp_path / case)) for case in CASES])
    for case, found in zip(CASES, resumed, strict=True):
        assert_same(uninterrupted(case, 3, 2 * half), found, case)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_resumed_is_uninterrupted_with_every_seed(seed, tmp_path: Path):
    for case in CASES:
        first_half(case, seed, 150, tmp_path / case)
    resumed = in_a_fresh_process([(case, 300, str(tmp_path / case)) for case in CASES])
    for case, found in zip(CASES, resumed, strict=True):
        assert_same(uninterrupted(case, seed, 300), found, f"{case}, seed {seed}")


def test_between_two_calls_of_learn(tmp_path: Path):
    model = make_model("plain", 5).learn(100)
    assert at_episode_start(model)
    path = save_checkpoint(model, tmp_path)
    (resumed,) = in_a_fresh_process([("plain", 200, str(path))])
    model.learn(100, reset_num_timesteps=False)
    assert_same(fingerprint(model), resumed, "two calls")


def test_checkpoints_change_nothing(tmp_path: Path):
    with_checkpoints = make_model("everything", 4)
    with_checkpoints.learn(180, callback=ExactCheckpointCallback(30, tmp_path))
    assert len(checkpoints_in(tmp_path)) == 3
    assert_same(uninterrupted("everything", 4, 180), fingerprint(with_checkpoints), "with checkpoints")


def test_environments_in_processes(tmp_path: Path):
    def make():
        return make_vec_env(Drift, n_envs=2, vec_env_cls=SubprocVecEnv, wrapper_class=Resumable)

    model = RGRL("MlpEnsemblePolicy", make(), seed=1, **TINY).learn(80)
    save_checkpoint(model, tmp_path)
    state = [generator.get_state() for generator in (th.default_generator,)]
    model.learn(80, reset_num_timesteps=False)
    expected = fingerprint(model)
    model.env.close()
    resumed = load_checkpoint(tmp_path, make())
    assert th.equal(th.get_rng_state(), state[0])
    resumed.learn(80, reset_num_timesteps=False)
    assert_same(expected, fingerprint(resumed), "processes")
    resumed.env.close()


def test_in_the_middle_of_an_episode_it_is_cut_off(tmp_path: Path):
    model = make_model("plain", 1)
    model.set_env(make_vec_env(lambda: Drift(length=17), wrapper_class=Resumable))
    model.learn(100)
    assert not at_episode_start(model)
    save_checkpoint(model, tmp_path)
    resumed = load_checkpoint(tmp_path, make_env("toy", 1))
    resumed.learn(50, reset_num_timesteps=False)
    assert resumed.num_timesteps == 150
    # Step 99 was the last one of its episode.
    assert resumed.replay_buffer.successors[99 % 70] == -1


@pytest.mark.parametrize("wrapped", [True, False])
def test_going_on_does_not_repeat_the_first_episodes(tmp_path: Path, wrapped):
    first = Drift().reset(seed=7)[0]
    model = RGRL("MlpEnsemblePolicy", gym.wrappers.TimeLimit(Drift(), 100), seed=7, **TINY)
    model.learn(0)
    np.testing.assert_array_equal(model._last_obs[0], first)
    model.learn(55)
    save_checkpoint(model, tmp_path)
    resumed = load_checkpoint(tmp_path, Resumable(Drift()) if wrapped else Drift())
    resumed.learn(0, reset_num_timesteps=False)
    assert not np.array_equal(resumed._last_obs[0], first)
    assert np.isfinite(resumed._last_obs).all()


def test_statistics_need_an_environment_that_has_them(tmp_path: Path):
    save_checkpoint(make_model("everything", 0).learn(40), tmp_path)
    with pytest.raises(ValueError, match="wrap the environments in VecNormalize"):
        load_checkpoint(tmp_path, make_env("toy", 1))
    other = make_vec_env(gym.wrappers.TimeLimit, env_kwargs={"env": Drift(), "max_episode_steps": 9})
    with pytest.raises(ValueError, match="VecNormalize"):
        load_checkpoint(tmp_path, other)
    assert load_checkpoint(tmp_path).predict(np.zeros(2, dtype=np.float32)) is not None
    save_checkpoint(make_model("plain", 0).learn(40), tmp_path)
    with pytest.raises(ValueError, match="without VecNormalize"):
        load_checkpoint(tmp_path, make_env("normalized", 1))
