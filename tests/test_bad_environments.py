"""
Environments that return what cannot be learned from, that raise errors, and whose processes die: what is wrong is named,
with the index of the environment, and nothing of it is stored.
"""

import copy
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecNormalize

from sb3_rgrl import RGRL, EnvironmentFault
from sb3_rgrl.environments import check_observation, check_reward
from tests.test_bad_input import SMALL as SMALL_OF_BAD_INPUT
from tests.test_bad_input import WalkEnv, assert_windows_are_walks

# Processes of environments then begin with what they need, instead of importing it anew each time.
multiprocessing.set_forkserver_preload([__name__])
# It may stop after any step.
SMALL = {**SMALL_OF_BAD_INPUT, "train_freq": 1}

# Steps of learning before something goes wrong: planning and learning have begun by then.
GOOD = 13


class OddEnv(WalkEnv):
    """
    A walk that does something odd with its ``at``-th step.

    :param odd: Changes what ``step`` returns.
    """

    def __init__(self, odd: Callable[[Any], Any] | None = None, at: int = GOOD + 1, **kwargs: Any) -> None:
        super().__init__(None, at=at, **kwargs)
        self.odd = odd

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        told = super().step(action)
        return self.odd(told) if self.odd is not None and self.n_steps == self.at else told


class ReusingEnv(WalkEnv):
    """A walk that returns one and the same array at every step and reset."""

    def observe(self, spoil: bool) -> np.ndarray:
        if not hasattr(self, "array"):
            self.array = np.zeros(2, dtype=np.float32)
        self.array[:] = super().observe(spoil)
        return self.array


class GreedyEnv(WalkEnv):
    """A walk that writes into the action it was given."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        action *= 1000.0
        return super().step(action)


def observed(value: Any) -> Callable[[Any], Any]:
    return lambda told: (value, *told[1:])


def rewarded(value: Any) -> Callable[[Any], Any]:
    return lambda told: (told[0], value, *told[2:])


def snapshot(model: RGRL) -> dict[str, Any]:
    buffer = model.replay_buffer
    assert buffer is not None
    arrays = {name: array.copy() for name, array in buffer._saved_arrays().items()}
    weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
    return {"size": buffer.size(), "windows": buffer.n_windows, **arrays, **weights}


def assert_unharmed(before: dict[str, Any], model: RGRL) -> None:
    now = snapshot(model)
    for name, value in before.items():
        np.testing.assert_array_equal(np.asarray(now[name]), np.asarray(value), err_msg=name)


def model_before_the_fault(env: VecEnv) -> RGRL:
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(GOOD * env.num_envs)
    assert model._n_updates > 0
    return model


def assert_refused(model: RGRL, message: str) -> EnvironmentFault:
    before = snapshot(model)
    with pytest.raises(EnvironmentFault, match=message) as caught:
        # learn() counts anew but goes on in the same episodes.
        model.learn(1, reset_num_timesteps=False)
    assert_unharmed(before, model)
    return caught.value


ODD = {
    "scalar": (observed(np.float32(1.0)), r"an observation of shape \(\), its space has \(2,\)"),
    "too short": (observed(np.ones(1, np.float32)), r"an observation of shape \(1,\), its space has \(2,\)"),
    "too long": (observed(np.ones(3, np.float32)), r"an observation of shape \(3,\), its space has \(2,\)"),
    "row": (observed(np.ones((1, 2), np.float32)), r"an observation of shape \(1, 2\), its space has \(2,\)"),
    "complex": (observed(np.ones(2, np.complex64)), "an observation of type complex64, where numbers are needed"),
    "text": (observed(np.array(["a", "b"])), "an observation of type <U1, where numbers are needed"),
    "objects": (observed(np.array([None, 1])), "an observation of type object, where numbers are needed"),
    "nothing": (observed(None), "an observation of type object, where numbers are needed"),
    "ragged": (observed([[1.0], [1.0, 2.0]]), "an observation that is no array"),
    "too large": (observed(np.array([1.0, 1e300])), r"an observation that is not finite: \[ *1\. +inf\]"),
    "reward row": (rewarded(np.ones(1)), r"a reward of shape \(1,\), where one number is needed"),
    "reward None": (rewarded(None), "a reward of type object, where numbers are needed"),
    "reward text": (rewarded("1.0"), "a reward of type <U3, where numbers are needed"),
    "reward too large": (rewarded(1e300), "a reward beyond 1e[+]30, too large to be summed in single precision: 1e[+]300"),
    "four values": (lambda told: told[:4], r"raised an error in step\(\), ValueError: not enough values to unpack"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_steps_are_refused_by_name(name):
    odd, message = ODD[name]
    model = model_before_the_fault(DummyVecEnv([OddEnv, lambda: OddEnv(odd)]))
    fault = assert_refused(model, f"^Environment 1 .*{message}.*Nothing of that step was stored")
    assert fault.env == 1
    # The episode of the first environment was abandoned with it.
    model.learn(16, reset_num_timesteps=False)
    assert_windows_are_walks(model)


@pytest.mark.parametrize("name", ["too short", "reward row"])
def test_odd_steps_of_processes_are_refused_by_name(name):
    odd, message = ODD[name]
    env = SubprocVecEnv([OddEnv, lambda: OddEnv(odd)])
    model = model_before_the_fault(env)
    assert assert_refused(model, f"^Environment 1 .*{message}").env == 1
    # All the answers were taken in: what they say next belongs to what they are asked next.
    model.learn(8, reset_num_timesteps=False)
    assert_windows_are_walks(model)
    env.close()


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.7, 3.0]), "type float64, which type uint8 of its space cannot hold"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([-1, 3]), "type int64, which type uint8 of its space cannot hold"),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([np.nan, 3.0]), "not finite"),
        (spaces.Discrete(3), 3, "outside of its space Discrete"),
        (spaces.Discrete(3, start=5), 4, "outside of its space Discrete"),
        (spaces.Discrete(3), np.array([1]), r"of shape \(1,\), its space has \(\)"),
        (spaces.MultiDiscrete([2, 5]), np.array([2, 0]), "outside of its space MultiDiscrete"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), {"b": np.zeros(2)}, r"without all of the parts \['a'\]"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), np.zeros(2), r"without all of the parts \['a'\]"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), {"a": np.zeros(3)}, r"an observation 'a' of shape \(3,\)"),
    ],
)
def test_what_a_space_does_not_have_is_refused(space, value, message):
    with pytest.raises(EnvironmentFault, match=message):
        check_observation(4, value, space)


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), np.array([0.5, -0.5])),
        (spaces.Box(-1, 1, (2,), np.float32), [0, 1]),
        (spaces.Box(-1, 1, (2,), np.float32), np.array([7.0, -7.0])),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255])),
        (spaces.Box(0, 255, (2,), np.uint8), np.array([0.0, 255.0])),
        (spaces.Discrete(3, start=5), 5),
        (spaces.Discrete(3, start=5), np.int32(7)),
        (spaces.MultiDiscrete([2, 5]), np.array([1, 4])),
        (spaces.MultiBinary(2), np.array([True, False])),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,))}), {"a": np.zeros(2), "more": "words"}),
    ],
)
def test_what_a_space_can_take_in_is_let_through(space, value):
    check_observation(0, value, space)


@pytest.mark.parametrize("reward", [1, -3.5, np.float64(1e12), np.float32(0.0), np.array(2.0), True, 1e30])
def test_rewards_that_are_numbers_are_let_through(reward):
    check_reward(0, reward)


# Errors and deaths


def raise_error(told: Any) -> Any:
    raise RuntimeError("the wheel came off")


def die(told: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("where", ["step", "reset"])
def test_environment_that_raises_is_named_and_its_error_kept(where):
    model = model_before_the_fault(DummyVecEnv([WalkEnv, WalkEnv, OddEnv]))
    broken = model.get_env().envs[2].unwrapped
    setattr(broken, where, lambda *args, **kwargs: raise_error(None))
    before = snapshot(model)
    with pytest.raises(
        EnvironmentFault, match=rf"Environment 2 raised an error in {where}\(\), RuntimeError: the wheel"
    ) as caught:
        model.learn(30, reset_num_timesteps=False)
    assert isinstance(caught.value.__cause__, RuntimeError)
    stored = model.replay_buffer.size() - before["size"]
    assert stored == {"step": 0, "reset": 3}[where], "one more step to the end of the episode"
    delattr(broken, where)
    model.learn(15, reset_num_timesteps=False)
    assert_windows_are_walks(model)


def test_ctrl_c_is_no_fault_of_the_environment():
    def interrupt(told: Any) -> Any:
        raise KeyboardInterrupt

    model = model_before_the_fault(DummyVecEnv([lambda: OddEnv(interrupt)]))
    with pytest.raises(KeyboardInterrupt):
        model.learn(20, reset_num_timesteps=False)
    assert model.replay_buffer.size() == GOOD


@pytest.mark.parametrize(("odd", "code"), [(raise_error, 1), (die, -9)], ids=["error", "killed"])
def test_process_that_ends_is_named_and_leaves_no_orphan(odd, code):
    env = SubprocVecEnv([OddEnv, lambda: OddEnv(odd), OddEnv])
    model = model_before_the_fault(env)
    processes = list(env.processes)
    fault = assert_refused(model, rf"Environment 1 cannot go on: its process has ended with exit code {code} .*traceback")
    assert fault.env == 1
    assert_all_gone(processes)
    # Closing them again is no error, asking for more is one that helps.
    env.close()
    with pytest.raises(ValueError, match="make new ones and hand them to set_env"):
        model.learn(4)
    model.set_env(DummyVecEnv([WalkEnv] * 3))
    model.learn(30, reset_num_timesteps=False)
    assert_windows_are_walks(model)


def test_process_that_was_killed_between_two_steps_is_named():
    env = SubprocVecEnv([WalkEnv] * 3)
    model = model_before_the_fault(env)
    processes = list(env.processes)
    os.kill(processes[2].pid, signal.SIGKILL)
    processes[2].join(5.0)
    assert assert_refused(model, "Environment 2 cannot go on: its process has ended with exit code -9").env == 2
    assert_all_gone(processes)


def test_process_that_was_killed_before_a_reset_is_named():
    env = SubprocVecEnv([WalkEnv] * 2)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL)
    processes = list(env.processes)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join(5.0)
    with pytest.raises(EnvironmentFault, match="Environment 0 cannot go on"):
        model.learn(10)
    assert_all_gone(processes)
    assert model.replay_buffer.size() == 0


def test_closing_ends_what_is_left_of_the_processes():
    env = SubprocVecEnv([WalkEnv] * 3)
    model_before_the_fault(env)
    processes = list(env.processes)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join(5.0)
    env.close()
    assert_all_gone(processes)


def assert_all_gone(processes: list[Any]) -> None:
    deadline = time.monotonic() + 5.0
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(process.is_alive() for process in processes)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


# Arrays that are not the agent's own


def test_environment_that_uses_its_array_again():
    model = RGRL("MlpEnsemblePolicy", DummyVecEnv([ReusingEnv] * 2), **SMALL).learn(40)
    buffer = model.replay_buffer
    time_of_step = np.arange(40) // 2 % 5
    np.testing.assert_array_equal(buffer.observations[:40, 0], time_of_step)
    # The terminal observation as well, which reset() has written over by the time that the step returns.
    np.testing.assert_array_equal(buffer.next_observations[:40, 0], time_of_step + 1)


def test_process_whose_environment_uses_its_array_again_is_refused():
    # There the terminal observation is gone before anybody else sees it.
    env = SubprocVecEnv([WalkEnv, ReusingEnv])
    model = RGRL("MlpEnsemblePolicy", env, **SMALL)
    with pytest.raises(EnvironmentFault, match=r"Environment 1 returned the same array from step\(\) and from reset\(\)"):
        model.learn(40)
    assert model.replay_buffer.size() == 8, "the four steps of each before the first end"
    env.close()


def test_environment_that_writes_into_its_action():
    model = RGRL("MlpEnsemblePolicy", DummyVecEnv([GreedyEnv] * 2), **{**SMALL, "action_noise_correlation": 0.5}).learn(40)
    actions = model.replay_buffer.actions[:40]
    assert np.abs(actions).max() <= 1.0
    assert len(np.unique(actions)) > 10


class OneBuffer(VecEnvWrapper):
    """As vectorized environments of other kinds do: it returns its own arrays, and writes over them at the next step."""

    def reset(self) -> np.ndarray:
        self.kept = self.venv.reset(), np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        return self.kept[0]

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        *new, infos = self.venv.step_wait()
        for kept, part in zip(self.kept, new, strict=True):
            kept[:] = part
        return *self.kept, infos


def test_vectorized_environment_that_uses_its_arrays_again():
    model = RGRL("MlpEnsemblePolicy", OneBuffer(DummyVecEnv([WalkEnv] * 2)), **SMALL).learn(40)
    buffer = model.replay_buffer
    time_of_step = np.arange(40) // 2 % 5
    np.testing.assert_array_equal(buffer.observations[:40, 0], time_of_step)
    np.testing.assert_array_equal(buffer.next_observations[:40, 0], time_of_step + 1)


# Wrappers


# At which step of all, or at which reset: the third episode ends with step 15.
BAD_STEPS = [("observation", 14), ("reward", 14), ("terminal observation", 15), ("first observation", 4)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("where", "at"), BAD_STEPS)
def test_running_statistics_stay_as_they_were(where, at, bad, training):
    env = VecNormalize(DummyVecEnv([WalkEnv, lambda: WalkEnv(bad, where, at)]), training=training)
    model = model_before_the_fault(env)
    if at != GOOD + 1:
        model.learn(2, reset_num_timesteps=False)
    before = copy.deepcopy((vars(env.obs_rms), vars(env.ret_rms), env.returns))
    assert_refused(model, f"Environment 1 returned an? {where.removeprefix('first ')} that is not finite")
    assert repr((vars(env.obs_rms), vars(env.ret_rms), env.returns)) == repr(before)
    assert np.isfinite(env.obs_rms.mean).all()
    model.learn(10, reset_num_timesteps=False)
    assert_windows_are_walks_in_raw_numbers(model)


def assert_windows_are_walks_in_raw_numbers(model: RGRL) -> None:
    buffer = model.replay_buffer
    starts = buffer.all_windows()
    steps, _ = buffer._follow(starts)
    times, ends = buffer.observations[starts, 0], buffer.next_observations[steps[:, -1], 0]
    np.testing.assert_allclose(ends, np.minimum(times + buffer.window_steps, 5), atol=1e-5)


class Spoil(VecEnvWrapper):
    """A wrapper that spoils what environments return, after they were looked at."""

    def __init__(self, venv: VecEnv, spoil: Callable[..., None]) -> None:
        super().__init__(venv)
        self.spoil, self.n_steps = spoil, 0

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        told = self.venv.step_wait()
        self.n_steps += 1
        if self.n_steps == GOOD + 1:
            return self.spoil(*told)
        return told


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda obs, *rest: (obs * np.array([[1.0], [np.nan]]), *rest), "Environment 1 returned an observation .*not finite"),
        (lambda obs, *rest: (obs[:, :1], *rest), r"Environment 0 returned an observation of shape \(1,\)"),
        (lambda obs, *rest: (obs[:1], *rest), r"2 environment\(s\) returned 1 observation\(s\)"),
        (lambda obs, rewards, *rest: (obs, rewards * np.array([1, np.inf]), *rest), "Environment 1 returned a reward"),
        (lambda obs, rewards, *rest: (obs, rewards[:, None], *rest), r"Environment 0 returned a reward of shape \(1,\)"),
    ],
)
def test_wrappers_are_looked_at_as_well(spoil, message):
    model = model_before_the_fault(Spoil(DummyVecEnv([WalkEnv] * 2), spoil))
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        model.learn(1, reset_num_timesteps=False)
    assert_unharmed(before, model)


def test_environments_stay_the_objects_that_they_were():
    base = DummyVecEnv([WalkEnv])
    env = VecNormalize(VecFrameStack(base, 2))
    model = RGRL("MlpEnsemblePolicy", env, **SMALL)
    assert model.get_env() is env
    assert env.unwrapped is base
    assert isinstance(base, DummyVecEnv)
    other = VecNormalize(VecFrameStack(DummyVecEnv([lambda: Monitor(WalkEnv())]), 2))
    callback = EvalCallback(other, n_eval_episodes=1, eval_freq=10, verbose=0)
    model.learn(20, callback=callback)  # SB3 compares how both are wrapped
    assert callback.n_calls == 20


def test_seeds_and_options_reach_the_environments():
    class Told(WalkEnv):
        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            self.__dict__.setdefault("told", []).append((seed, options))
            return super().reset(seed=seed, options=options)

    env = DummyVecEnv([Told] * 2)
    RGRL("MlpEnsemblePolicy", env, **SMALL)
    env.seed(7)
    env.set_options([{"a": 1}, {"a": 2}])
    env.reset()
    env.reset()
    assert [inner.told for inner in env.envs] == [[(7, {"a": 1}), (None, None)], [(8, {"a": 2}), (None, None)]]


def test_checked_environments_return_what_those_of_sb3_do():
    told = []
    for checked in (False, True):
        for kind in (DummyVecEnv, SubprocVecEnv):
            env = make_vec_env("CartPole-v1", 2, seed=3, vec_env_cls=kind)
            if checked:
                model = RGRL("MlpEnsemblePolicy", env, **SMALL)
                assert model.get_env().unwrapped is env
                env.seed(3)
            told.append(play(env))
            env.close()
    for other in told[1:]:
        for mine, theirs in zip(told[0], other, strict=True):
            np.testing.assert_equal(mine, theirs)


def play(env: VecEnv) -> list[Any]:
    everything: list[Any] = [env.reset()]
    for k in range(60):
        obs, rewards, dones, infos = env.step(np.array([k % 2, k % 3 // 2]))
        kept = [{name: info.get(name) for name in ("terminal_observation", "TimeLimit.truncated")} for info in infos]
        everything += [obs, rewards, dones, kept]
    return everything


def test_faults_can_be_pickled():
    fault = EnvironmentFault(3, "did something.")
    again = pickle.loads(pickle.dumps(fault))
    assert (str(again), again.env) == (str(fault), 3)


def test_gymnasium_environment_is_looked_at_too():
    model = RGRL("MlpEnsemblePolicy", gym.wrappers.TimeLimit(OddEnv(observed(np.ones(1))), 50), **SMALL)
    with pytest.raises(EnvironmentFault, match=r"Environment 0 returned an observation of shape \(1,\)"):
        model.learn(50)
    assert model.replay_buffer.size() == GOOD
