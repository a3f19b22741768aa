"""What does not fit is refused with words that help, and nothing bad gets into the agent."""

import gc
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_rgrl import RGRL

SMALL: dict[str, Any] = {
    "buffer_size": 1000,
    "learning_starts": 6,
    "train_freq": 4,
    "gradient_steps": 1,
    "batch_size": 4,
    "ensemble_size": 2,
    "plan_horizon": 4,
    "sequence_length": 2,
    "n_plan_iterations": 1,
    "n_candidates": 2,
    "policy_kwargs": {"net_arch": [8]},
    "seed": 0,
    "device": "cpu",
}


class WalkEnv(gym.Env):
    """
    A walk of 5 steps per episode, with something bad at one of all its steps (counted from 1).

    :param bad: The number to return there; None: all goes well.
    :param where: ``"observation"``, ``"reward"``, ``"terminal observation"`` or ``"first observation"``.
    :param at: At which step, counted over all episodes; for the first observation, at which reset.
    """

    def __init__(
        self,
        bad: float | None = None,
        where: str = "observation",
        at: int = 3,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
        self.action_space = action_space or spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)
        self.bad, self.where, self.at = bad, where, at
        self.n_steps, self.n_resets, self.k = 0, 0, 0

    def observe(self, spoil: bool) -> np.ndarray:
        observation = np.array([self.k, 0.5], dtype=np.float32)
        if spoil and self.bad is not None:
            observation[1] = self.bad
        return observation

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.n_resets, self.k = self.n_resets + 1, 0
        return self.observe(self.where == "first observation" and self.n_resets == self.at), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.n_steps, self.k = self.n_steps + 1, self.k + 1
        done, now = self.k == 5, self.n_steps == self.at
        spoil = now and self.where == ("terminal observation" if done else "observation")
        reward = self.bad if now and self.where == "reward" and self.bad is not None else float(self.k)
        return self.observe(spoil), reward, done, False, {}


def make_model(env: gym.Env | DummyVecEnv | str | None = None, **kwargs) -> RGRL:
    return RGRL(kwargs.pop("policy", "MlpEnsemblePolicy"), env or WalkEnv(), **{**SMALL, **kwargs})


# Constructor


def test_the_small_settings_are_good():
    # Else the errors below could be about something else.
    model = make_model().learn(20)
    assert model._n_updates > 0


def test_unknown_policy():
    with pytest.raises(ValueError, match="Policy MlpLstmPolicy unknown"):
        make_model(policy="MlpLstmPolicy")


@pytest.mark.parametrize(
    "space",
    [spaces.Tuple([spaces.Discrete(2)]), spaces.Dict({"a": spaces.Discrete(2)})],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_action_space(space):
    # The kind of error and its words are SB3's.
    with pytest.raises(AssertionError, match=rf"only supports .*Box.*Binary.* as action spaces but {type(space).__name__}"):
        make_model(WalkEnv(action_space=space))


def test_unbounded_box():
    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        make_model(WalkEnv(action_space=spaces.Box(-np.inf, 1.0, (1,), dtype=np.float32)))


def test_dict_observations():
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
    with pytest.raises(
        ValueError, match="must use `MultiInputEnsemblePolicy` when working with dict observation space, not MlpEnsemblePolicy"
    ):
        make_model(WalkEnv(observation_space=space))


@pytest.mark.parametrize(("horizon", "length"), [(5, 2), (1, 2), (7, 3)])
def test_plan_horizon_that_is_no_multiple(horizon, length):
    with pytest.raises(ValueError, match=f"plan_horizon must be a multiple of sequence_length.* {horizon} and {length}"):
        make_model(plan_horizon=horizon, sequence_length=length)


def test_sequence_longer_than_the_buffer():
    with pytest.raises(ValueError, match="a buffer of 3 steps never holds a window of 4"):
        make_model(buffer_size=3, plan_horizon=4, sequence_length=4)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "name", ["ensemble_size", "sequence_length", "plan_horizon", "n_candidates", "batch_size", "buffer_size"]
)
def test_counts_below_1(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer, at least 1, got {value}"):
        make_model(**{name: value})


@pytest.mark.parametrize("value", [2.0, 3.5, True, "4", None])
@pytest.mark.parametrize(
    "name",
    [
        "ensemble_size",
        "sequence_length",
        "plan_horizon",
        "n_candidates",
        "exploration_candidates",
        "batch_size",
        "buffer_size",
        "n_plan_iterations",
        "gradient_steps",
        "train_freq",
    ],
)
def test_counts_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"{name}.* must be .*integer.* {value!r}"):
        make_model(**{name: value})


def test_counts_of_numpy():
    model = make_model(**{name: np.int64(number) for name, number in SMALL.items() if type(number) is int and name != "seed"})
    assert model.learn(150).num_timesteps >= 150


@pytest.mark.parametrize("value", ["0.9", None, True, [0.9]])
@pytest.mark.parametrize("name", ["learning_rate", "gamma", "dropout", "random_action_hold", "ewc_lambda"])
def test_numbers_that_are_none(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        make_model(**{name: value})


def test_iterations_below_0():
    with pytest.raises(ValueError, match="n_plan_iterations must be an integer, at least 0, got -1"):
        make_model(n_plan_iterations=-1)


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "learning_rate",
        "learning_starts",
        "action_learning_rate",
        "action_init_std",
        "per_exponent",
        "per_epsilon",
        "ewc_lambda",
    ],
)
def test_negative_or_endless_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number that is not negative, got {value}"):
        make_model(**{name: value})


@pytest.mark.parametrize("value", [1.0, 1.5, -0.1, float("nan")])
@pytest.mark.parametrize("name", ["dropout", "action_noise_correlation"])
def test_rates_outside_0_to_1(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 0 and less than 1, got {value}"):
        make_model(**{name: value})


@pytest.mark.parametrize("gamma", [0, -0.5, 1.01, float("nan")])
def test_gamma_outside_0_to_1(gamma):
    with pytest.raises(ValueError, match=f"gamma must be more than 0 and at most 1, got {gamma}"):
        make_model(gamma=gamma)


def test_train_freq_with_an_unknown_unit():
    with pytest.raises(ValueError, match="must be either 'step' or 'episode' not 'hour'"):
        make_model(train_freq=(1, "hour"))


@pytest.mark.parametrize("train_freq", [0, -1, 2.5, (0, "episode"), (1.0, "step")], ids=str)
def test_train_freq_that_is_no_positive_integer(train_freq):
    with pytest.raises(ValueError, match="must be a positive integer"):
        make_model(train_freq=train_freq)


def test_episodes_of_several_environments():
    model = make_model(make_vec_env(WalkEnv, 2), train_freq=(1, "episode"))
    with pytest.raises(ValueError, match="only one env when doing episodic training"):
        model.learn(4)


@pytest.mark.parametrize(
    "desired_reward", [[1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]], float("nan"), float("inf"), [1.0, float("nan")]], ids=str
)
def test_desired_reward_of_wrong_shape_or_not_finite(desired_reward):
    with pytest.raises(ValueError, match="desired_reward must be one finite number, or one for each of the 2 members"):
        make_model(desired_reward=desired_reward)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"policy_kwargs": {"aim": "high"}}, "aim must be one of .*return.*step.*'high'"),
        ({"policy_kwargs": {"action_optimizer": "lbfgs"}}, "optimizer of the actions must be one of .*adam.*sgd.*'lbfgs'"),
        ({"replay_buffer_kwargs": {"priority_refresh": "never"}}, "priority_refresh must be one of .*drawn.*all.*'never'"),
    ],
    ids=["aim", "action_optimizer", "priority_refresh"],
)
def test_unknown_choices(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_model(**kwargs)


def test_buffer_file_that_is_none_leaves_the_agent_as_it_was(tmp_path: Path):
    model = make_model().learn(12)
    (tmp_path / "buffer.pkl").write_bytes(b"this is no buffer")
    before = model.replay_buffer
    # The file must be closed, too: an open one is a ResourceWarning, and warnings are errors here.
    with pytest.raises(ValueError, match="no replay buffer"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    gc.collect()
    assert model.replay_buffer is before
    assert before.size() == 12
    model.learn(8, reset_num_timesteps=False)


# Environments that return what is no number


def assert_nothing_bad(model: RGRL, tmp_path: Path) -> None:
    """Weights, units and stored steps are finite, and the agent can be saved and loaded."""
    assert model.replay_buffer is not None
    buffer = model.replay_buffer
    for name, value in model.policy.state_dict().items():
        if not name.startswith("scales.best_"):  # -inf until something was seen
            assert th.isfinite(value).all(), name
    for array in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        assert np.isfinite(array).all()
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", device="cpu")
    for name, value in loaded.policy.state_dict().items():
        assert th.equal(value, model.policy.state_dict()[name]), name


# Step 3 is one of random actions, 5 and 10 end episodes, 14 comes after planning and learning began.
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("observation", 1),
        ("observation", 14),
        ("reward", 3),
        ("reward", 14),
        ("reward", 15),
        ("terminal observation", 5),
        ("terminal observation", 15),
    ],
)
def test_bad_number_in_a_step(tmp_path: Path, bad, where, at):
    model = make_model(WalkEnv(bad, where, at))
    with pytest.raises(ValueError, match=rf"Environment 0 returned an? {where} that is not finite.*{bad}"):
        model.learn(100)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == model.num_timesteps == at - 1
    assert_nothing_bad(model, tmp_path)


@pytest.mark.parametrize("where", ["observation", "reward", "terminal observation"])
def test_bad_number_in_the_second_of_two_environments(tmp_path: Path, where):
    at = 10 if where == "terminal observation" else 8
    model = make_model(DummyVecEnv([WalkEnv, lambda: WalkEnv(np.nan, where, at)]))
    with pytest.raises(ValueError, match=rf"Environment 1 returned an? {where} that is not finite"):
        model.learn(100)
    assert model.replay_buffer is not None
    # Nothing of that step, not even that of the first environment.
    assert model.replay_buffer.size() == 2 * (at - 1)
    assert_nothing_bad(model, tmp_path)


def test_bad_number_with_discrete_actions(tmp_path: Path):
    model = make_model(WalkEnv(np.nan, "reward", 14, action_space=spaces.Discrete(3)))
    with pytest.raises(ValueError, match="Environment 0 returned a reward"):
        model.learn(100)
    assert_nothing_bad(model, tmp_path)


def test_bad_number_in_the_very_first_observation(tmp_path: Path):
    model = make_model(WalkEnv(np.nan, "first observation", at=1))
    with pytest.raises(ValueError, match=r"Environment 0 returned an? observation that is not finite"):
        model.learn(100)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == model.num_timesteps == 0
    assert_nothing_bad(model, tmp_path)
    # The next reset is a good one.
    model.learn(20)
    assert model.replay_buffer.size() == 20


def test_bad_number_in_the_first_observation_after_an_episode(tmp_path: Path):
    # The second episode begins with step 5, whose own terminal observation is good: still nothing of it is stored.
    model = make_model(WalkEnv(np.nan, "first observation", at=2))
    with pytest.raises(ValueError, match=r"Environment 0 returned an? observation that is not finite"):
        model.learn(100)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 4
    assert_nothing_bad(model, tmp_path)


def test_learning_goes_on_after_a_bad_number(tmp_path: Path):
    model = make_model(WalkEnv(np.nan, "observation", 14))
    with pytest.raises(ValueError, match="not finite"):
        model.learn(100)
    model.learn(12)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 13 + 12
    assert_windows_are_walks(model)


def assert_windows_are_walks(model: RGRL) -> None:
    """Inside a window time goes on by one: the first number of an observation is the time in its episode."""
    buffer = model.replay_buffer
    assert buffer is not None
    windows = buffer.windows(buffer.all_windows()[None])
    times, ends = windows.observations[0, :, 0], windows.next_observations[0, :, 0, 0]
    assert ends.tolist() == (times + model.sequence_length).clamp(max=5).tolist()


def test_going_on_without_a_reset_after_a_bad_number():
    # The environment did that step, and the second one began a new episode with it, though nothing was stored.
    model = make_model(DummyVecEnv([lambda: WalkEnv(np.nan, "reward", 10), WalkEnv]))
    with pytest.raises(ValueError, match="not finite"):
        model.learn(100)
    model.learn(16, reset_num_timesteps=False)
    assert_windows_are_walks(model)


@pytest.mark.parametrize("stop_at", [3, 5, 14])
def test_going_on_without_a_reset_after_a_callback_stopped(stop_at):
    # The step at which a callback stops is done but not stored, as in SB3.
    model = make_model(WalkEnv())
    model.learn(100, callback=lambda local, _: local["self"].num_timesteps != stop_at)
    assert model.num_timesteps == stop_at
    model.learn(12, reset_num_timesteps=False)
    assert_windows_are_walks(model)
