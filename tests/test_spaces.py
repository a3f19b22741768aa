"""Every space that SB3 knows, as action and as observation, and its words for those that it does not."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_rgrl import RGRL
from tests.toy import SMALL

# No more than it takes to act at random, to learn and to plan.
TINY = {**SMALL, "learning_starts": 25, "train_freq": 25, "plan_horizon": 3}

VECTOR = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Discrete from 5": spaces.Discrete(3, start=5),
    "Box": spaces.Box(np.float32([-1.0, 0.0]), np.float32([0.5, 70.0])),
    "Box of double precision": spaces.Box(-1e-3, 1e6, (2,), dtype=np.float64),
    "Box of whole numbers": spaces.Box(-2, 3, (2,), dtype=np.int32),
    "Box of a matrix": spaces.Box(-1.0, 1.0, (2, 3), dtype=np.float32),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiDiscrete from others": spaces.MultiDiscrete([3, 2], start=[1, -1]),
    "MultiBinary": spaces.MultiBinary(4),
}
OBSERVATIONS = {
    "Box": VECTOR,
    "Box of double precision": spaces.Box(-1.0, 1.0, (3,), dtype=np.float64),
    "Box of a matrix": spaces.Box(-1.0, 1.0, (3, 2), dtype=np.float32),
    "Discrete": spaces.Discrete(4),
    "Discrete from -2": spaces.Discrete(4, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiDiscrete from others": spaces.MultiDiscrete([3, 2], start=[1, -1]),
    "MultiBinary": spaces.MultiBinary(3),
    "MultiBinary of a matrix": spaces.MultiBinary([3, 2]),
}


class AnyEnv(gym.Env):
    """Random observations; it insists on actions that lie in its space."""

    def __init__(self, observation_space: spaces.Space = VECTOR, action_space: spaces.Space = ACTIONS["Discrete"]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert np.asarray(action).dtype == self.action_space.dtype
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), float(np.sum(action)), self.steps == 5, False, {}


def assert_acts_and_learns(model: RGRL) -> None:
    n_steps = 75
    model.learn(n_steps)
    assert model._n_updates > 0
    assert np.isfinite(model.replay_buffer.actions).all()
    space, observations = model.action_space, model.observation_space
    one, several = observations.sample(), np.array([observations.sample() for _ in range(3)])
    action, _ = model.predict(one)
    assert space.contains(np.asarray(action, dtype=space.dtype)[()])
    actions, plans = model.predict(several, deterministic=True)
    assert actions.dtype == space.dtype
    assert actions.shape == (3, *(space.shape or ()))
    assert all(space.contains(action) for action in actions)
    for k in range(3):
        alone, plan = model.predict(several[k], deterministic=True)
        if isinstance(space, spaces.Box):
            # Some processors round products of one row in another way than the same row among others.
            np.testing.assert_allclose(alone, actions[k], rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(alone, actions[k])
        np.testing.assert_allclose(plan[0][0], plans[0][k], rtol=1e-3, atol=1e-3)
    assert_alone_as_among_others_to_the_bit(model, several)


def assert_alone_as_among_others_to_the_bit(model: RGRL, observations: np.ndarray) -> None:
    """Without closed forms states are decided one by one."""
    model.policy.fast_gradients = False
    actions, _ = model.predict(observations, deterministic=True)
    for k in range(len(observations)):
        np.testing.assert_array_equal(model.predict(observations[k], deterministic=True)[0], actions[k])


@pytest.mark.parametrize("name", ACTIONS)
def test_actions(name):
    settings = {**TINY, "action_noise_correlation": 0.5}
    assert_acts_and_learns(RGRL("MlpEnsemblePolicy", AnyEnv(action_space=ACTIONS[name]), seed=0, **settings))


@pytest.mark.parametrize("name", ["MultiDiscrete", "MultiBinary"])
@pytest.mark.parametrize("policy", ["GruEnsemblePolicy", "AttentionEnsemblePolicy"])
def test_actions_of_several_parts_with_other_members(name, policy):
    settings = {**TINY, "policy_kwargs": {}}
    assert_acts_and_learns(RGRL(policy, AnyEnv(action_space=ACTIONS[name]), seed=0, **settings))


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations(name):
    space = OBSERVATIONS[name]
    model = RGRL("MlpEnsemblePolicy", AnyEnv(observation_space=space), seed=0, **TINY)
    assert_acts_and_learns(model)
    assert model.policy.scales.state.mean.shape == (get_flattened_obs_dim(space),)


@pytest.mark.parametrize(
    ("space", "observation", "state"),
    [
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(3, start=-1), -1, [1, 0, 0]),
        (spaces.MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0]),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), [5, 1], [1, 0, 0, 0, 1]),
        (spaces.MultiBinary([2, 2]), [[1, 0], [0, 1]], [1, 0, 0, 1]),
    ],
    ids=str,
)
def test_states_are_one_hot(space, observation, state):
    policy = RGRL("MlpEnsemblePolicy", AnyEnv(observation_space=space), **TINY).policy
    # Nothing was learned, so units are 1.
    assert policy.standardised_states(np.array(observation)).tolist() == [state]
    stored = th.as_tensor(np.array(observation)).reshape(1, 1, *(space.shape or (1,)))
    assert policy.states_of(stored).tolist() == [[state]]


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), ACTIONS["Box"]], ids=str)
def test_random_actions_are_held(space):
    model = RGRL("MlpEnsemblePolicy", AnyEnv(action_space=space), seed=0, **{**TINY, "random_action_hold": 0.95})
    model._setup_learn(10)
    starts = np.zeros(1, dtype=bool)
    actions = np.array([model._random_actions(starts)[0] for _ in range(400)])
    held = (actions[1:] == actions[:-1]).all(axis=1).mean()
    assert 0.92 < held < 1.0


@pytest.mark.parametrize("env_class", [IdentityEnvMultiDiscrete, IdentityEnvMultiBinary])
def test_parts_of_an_action_are_optimised_jointly(env_class):
    # Only an action that is right in all its parts is rewarded: chance gets 1/9 or 1/8, and with one part left to chance
    # it is 1/3 or 1/2.
    env = DummyVecEnv([lambda: Monitor(env_class(dim=3, ep_length=20))])
    settings = {"plan_horizon": 2, "sequence_length": 1, "gamma": 0.5, "learning_starts": 300}
    # Each state is drawn anew, which is noticed after 1,000 steps only, and of which nothing can be imagined.
    settings["policy_kwargs"] = {"execute_steps": 1, "windows_per_sample": 1}
    model = RGRL("MlpEnsemblePolicy", env, seed=0, **settings).learn(900)
    assert evaluate_policy(model, env, n_eval_episodes=3)[0] / 20 > 0.9


# What is refused, in SB3's words


@pytest.mark.parametrize("bound", [(-np.inf, 1.0), (-1.0, np.inf)])
def test_box_without_bounds(bound):
    space = spaces.Box(*bound, (1,), dtype=np.float32)
    with pytest.raises(AssertionError, match="Continuous action space must have a finite lower and upper bound"):
        RGRL("MlpEnsemblePolicy", AnyEnv(action_space=space), **TINY)


@pytest.mark.parametrize(
    "space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Dict({"a": spaces.Discrete(2)})], ids=["Tuple", "Dict"]
)
def test_nested_actions(space):
    with pytest.raises(AssertionError, match=r"The algorithm only supports .* as action spaces but"):
        RGRL("MlpEnsemblePolicy", AnyEnv(action_space=space), **TINY)


def test_switches_in_a_matrix():
    with pytest.raises(AssertionError, match=r"Multi-dimensional MultiBinary\(.*\) action space is not supported"):
        RGRL("MlpEnsemblePolicy", AnyEnv(action_space=spaces.MultiBinary([2, 2])), **TINY)


def test_nested_observations():
    space = spaces.Dict({"a": spaces.Dict({"b": VECTOR})})
    with pytest.raises(NotImplementedError, match="Nested observation spaces are not supported"):
        RGRL("MultiInputEnsemblePolicy", AnyEnv(observation_space=space), **TINY)


@pytest.mark.parametrize("in_dict", [False, True])
def test_observed_choices_in_a_matrix(in_dict):
    space = spaces.MultiDiscrete([[2, 3], [3, 2]])
    policy, space = ("MultiInputEnsemblePolicy", spaces.Dict({"a": space})) if in_dict else ("MlpEnsemblePolicy", space)
    with pytest.raises(ValueError, match=r"(?s)Multi-dimensional MultiDiscrete\(.*observation space is not supported"):
        RGRL(policy, AnyEnv(observation_space=space), **TINY)


def test_tuple_of_observations():
    space = spaces.Tuple([VECTOR, VECTOR])
    with pytest.raises(NotImplementedError, match="observation space is not supported"):
        RGRL("MlpEnsemblePolicy", AnyEnv(observation_space=space), **TINY)
