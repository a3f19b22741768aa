"""Dict observations: stored, normalized, learned from and planned with, part by part."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_rgrl import RGRL, MlpEnsemblePolicy, MultiInputEnsemblePolicy
from tests.toy import SMALL

TINY = {**SMALL, "learning_starts": 40}
PARTS = {
    "vector": spaces.Box(-200.0, 200.0, (2,), dtype=np.float32),
    "image": spaces.Box(0, 255, (1, 36, 36), dtype=np.uint8),
    "choice": spaces.Discrete(7, start=1),
    "switches": spaces.MultiBinary(3),
}


class Counter(gym.Env):
    """Every part of an observation tells the step; every episode ends by termination or by a time limit."""

    action_space = spaces.Discrete(2)

    def __init__(self, parts: tuple[str, ...] = tuple(PARTS), truncate: bool = False, length: int = 6) -> None:
        self.observation_space = spaces.Dict({name: PARTS[name] for name in parts})
        self.truncate, self.length, self.steps = truncate, length, 0

    def _observation(self):
        parts = {
            "vector": np.array([100.0 + self.steps, -self.steps], dtype=np.float32),
            "image": np.full((1, 36, 36), 10 * self.steps, dtype=np.uint8),
            "choice": np.int64(1 + self.steps),
            "switches": np.array([self.steps >> k & 1 for k in range(3)], dtype=np.int8),
        }
        return {name: parts[name] for name in self.observation_space.spaces}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == self.length
        return self._observation(), float(self.steps), over and not self.truncate, over and self.truncate, {}


def observation_at(steps: int, parts: tuple[str, ...] = tuple(PARTS)) -> dict[str, np.ndarray]:
    env = Counter(parts)
    env.steps = steps
    return env._observation()


def make_model(env=None, **kwargs) -> RGRL:
    return RGRL("MultiInputEnsemblePolicy", env or Counter(("vector", "choice", "switches")), **{"seed": 0, **TINY, **kwargs})


def steps_in(observations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which step each part tells of."""
    told = {
        "vector": lambda x: x[..., 0] - 100,
        "image": lambda x: x[..., 0, 0, 0] / 10,
        "choice": lambda x: x[..., 0] - 1,
        "switches": lambda x: x @ (1 << np.arange(3)),
    }
    return {name: told[name](np.asarray(part)) for name, part in observations.items()}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_buffer_has_every_part_raw_with_its_terminal_observation(normalize, truncate, n_envs):
    env = DummyVecEnv([lambda: Counter(truncate=truncate) for _ in range(n_envs)])
    if normalize:
        env = VecNormalize(env, norm_obs_keys=["vector"], clip_obs=1e6)
    # Never learns: a state of 300 numbers is not what this is about.
    buffer = make_model(env, learning_starts=10_000).learn(90).replay_buffer
    step = np.arange(90) // n_envs % 6
    for name, told in steps_in(buffer.observations).items():
        np.testing.assert_allclose(told[:90], step, atol=1e-4, err_msg=name)
    for name, told in steps_in(buffer.next_observations).items():
        np.testing.assert_allclose(told[:90], step + 1, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(buffer.terminated[:90], (step == 5) & (not truncate))
    assert {name: part.dtype for name, part in buffer.observations.items()} == {
        name: space.dtype for name, space in PARTS.items()
    }


def test_windows_have_every_part_at_start_and_milestones():
    env = DummyVecEnv([lambda: Counter(truncate=True)])
    buffer = make_model(env, learning_starts=10_000).learn(30).replay_buffer
    assert buffer.milestone_every == 3
    windows = buffer.windows(buffer.all_windows()[None])
    start = buffer.all_windows() % 6
    assert set(start) == {0, 1, 2, 3}
    for name, told in steps_in({name: part.numpy() for name, part in windows.observations.items()}).items():
        np.testing.assert_array_equal(told[0], start, err_msg=name)
    for name, told in steps_in({name: part.numpy() for name, part in windows.next_observations.items()}).items():
        np.testing.assert_array_equal(told[0, :, 0], start + 3, err_msg=name)


def test_windows_stay_on_the_terminal_observation():
    buffer = make_model(DummyVecEnv([Counter]), learning_starts=10_000).learn(30).replay_buffer
    windows = buffer.windows(np.array([[5]]))
    for name, told in steps_in({name: part.numpy() for name, part in windows.next_observations.items()}).items():
        assert told.tolist() == [[[6]]], name


def test_members_see_normalized_parts():
    env = VecNormalize(DummyVecEnv([lambda: Counter(("vector", "choice"))]), norm_obs_keys=["vector"])
    model = make_model(env).learn(60)
    windows = model.replay_buffer.windows(np.array([[0, 3]]), env=env)
    normalized = env.normalize_obs({name: part[[0, 3]] for name, part in model.replay_buffer.observations.items()})
    np.testing.assert_allclose(windows.observations["vector"][0], normalized["vector"], rtol=1e-5)
    np.testing.assert_array_equal(windows.observations["choice"][0], [[1], [4]])


@pytest.mark.parametrize("parts", [("vector",), ("choice", "vector"), tuple(PARTS)], ids=str)
def test_learns_and_predicts(parts):
    env = DummyVecEnv([lambda: Monitor(Counter(parts)) for _ in range(2)])
    kwargs = {"policy_kwargs": {"net_arch": [16], "features_extractor_kwargs": {"cnn_output_dim": 8}}}
    model = make_model(env, **kwargs).learn(80)
    assert model._n_updates > 0
    rows = [observation_at(k, parts) for k in range(4)]
    batch = {name: np.stack([row[name] for row in rows]) for name in parts}
    actions, plans = model.predict(batch, deterministic=True)
    assert actions.shape == (4,)
    np.testing.assert_array_equal(model.predict(batch, deterministic=True)[0], actions)
    whole = model.policy.plan(batch)
    for k, row in enumerate(rows):
        # Features of an image may differ in their last bits, and so may errors: of equal plans another one may be chosen.
        alone = model.policy.plan(row)
        np.testing.assert_array_equal(alone.descent.path()[0][:, 0], whole.descent.path()[0][:, k])
        np.testing.assert_allclose(alone.error[0], whole.error[k], rtol=1e-3)
        assert np.ndim(model.predict(row, deterministic=True)[0]) == 0
    # Half of the plans go on from the last ones, unless an episode begins.
    anew, cold = model.predict(batch, state=(100.0 * plans[0],), episode_start=np.ones(4, dtype=bool), deterministic=True)
    np.testing.assert_array_equal(anew, actions)
    np.testing.assert_array_equal(cold[0], plans[0])
    _, warm = model.predict(batch, state=plans[:1], episode_start=np.zeros(4, dtype=bool), deterministic=True)
    assert not np.array_equal(warm[0], plans[0])
    assert model.policy.predict_reward(batch, whole.actions).shape == (2, 4, 6)


def test_environments_in_processes_of_their_own():
    env = SubprocVecEnv([lambda: Monitor(Counter(("vector", "choice"))) for _ in range(2)])
    assert make_model(env).learn(80).replay_buffer.size() == 80
    env.close()


def test_noise_depends_on_every_part():
    policy = make_model(Counter(), policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}}).policy
    noise = policy.plan(observation_at(2)).descent.path()[0]
    for name in PARTS:
        changed = {**observation_at(2), name: observation_at(3)[name]}
        assert not np.array_equal(policy.plan(changed).descent.path()[0], noise), name
    np.testing.assert_array_equal(policy.plan(observation_at(2)).descent.path()[0], noise)


class Named(gym.ObservationWrapper):
    """The observation is a part of a dict, and the only one."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"vec": env.observation_space})

    def observation(self, observation):
        return {"vec": observation}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_dict_of_one_vector_is_that_vector(env_id):
    settings = {**SMALL, "seed": 1}
    plain = RGRL("MlpEnsemblePolicy", gym.make(env_id), **settings)
    of_dict = RGRL("MultiInputEnsemblePolicy", Named(gym.make(env_id)), **settings)
    seen = plain.observation_space.sample()
    for _ in range(2):
        actions = [plain.predict(seen, deterministic=True)[0], of_dict.predict({"vec": seen}, deterministic=True)[0]]
        np.testing.assert_array_equal(*actions)
        plain.learn(120)
        of_dict.learn(120)


def test_state_is_the_parts_side_by_side():
    policy = make_model(Counter(("choice", "switches", "vector"))).policy
    # In the order of the keys, as gymnasium sorts them.
    assert policy.standardised_states(observation_at(5, ("choice", "switches", "vector"))).tolist() == [
        [0, 0, 0, 0, 0, 1, 0, 1, 0, 1, 105, -5]
    ]


@pytest.mark.parametrize(("windows_per_sample", "n_steps"), [(1, 250), (None, 750)])
def test_learns_what_a_part_tells(windows_per_sample, n_steps):
    class Told(gym.Env):
        """The right action is in a part of its own."""

        observation_space = spaces.Dict({"noise": spaces.Box(-1, 1, (2,)), "right": spaces.Discrete(3)})
        action_space = spaces.Discrete(3)

        def _observation(self):
            self.right, self.steps = int(self.np_random.integers(3)), self.steps + 1
            return {"noise": self.np_random.uniform(-1, 1, 2).astype(np.float32), "right": self.right}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps = 0
            return self._observation(), {}

        def step(self, action):
            reward = float(action == self.right)
            return self._observation(), reward, False, self.steps == 20, {}

    env = DummyVecEnv([lambda: Monitor(Told())])
    settings = {"plan_horizon": 2, "sequence_length": 1, "gamma": 0.5, "learning_starts": 100}
    # Each state is drawn anew, which is noticed after 1,000 steps only.
    # Nothing can be imagined of later states, so samples of one window are learned from sooner.
    settings["policy_kwargs"] = {"execute_steps": 1, "windows_per_sample": windows_per_sample}
    model = RGRL("MultiInputEnsemblePolicy", env, seed=0, **settings).learn(n_steps)
    assert evaluate_policy(model, env, n_eval_episodes=5)[0] > 18.0


def test_save_and_load(tmp_path):
    model = make_model().learn(80)
    model.save(tmp_path / "agent")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = RGRL.load(tmp_path / "agent", env=DummyVecEnv([lambda: Counter(("vector", "choice", "switches"))]))
    loaded.load_replay_buffer(tmp_path / "buffer")
    for name, part in model.replay_buffer.observations.items():
        np.testing.assert_array_equal(loaded.replay_buffer.observations[name], part, err_msg=name)
    observation = observation_at(2, ("vector", "choice", "switches"))
    for fresh in (loaded, MultiInputEnsemblePolicy):
        if fresh is MultiInputEnsemblePolicy:
            model.policy.save(str(tmp_path / "policy"))
            fresh = MultiInputEnsemblePolicy.load(str(tmp_path / "policy"))
        np.testing.assert_array_equal(
            fresh.predict(observation, deterministic=True)[1][0], model.predict(observation, deterministic=True)[1][0]
        )
    loaded.learn(40, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("parts", "match"), [(("vector",), "choice"), (("vector", "choice", "image"), None)], ids=["too few", "others"]
)
def test_buffer_of_other_parts_is_refused(parts, match, tmp_path):
    make_model(Counter(parts), learning_starts=10_000).learn(10).save_replay_buffer(tmp_path / "buffer")
    model = make_model().learn(40)
    before = model.replay_buffer
    with pytest.raises(ValueError, match=match or "switches"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is before


def test_stacked_frames():
    env = VecFrameStack(
        DummyVecEnv([lambda: Counter(("image", "vector"))]), 2, channels_order={"image": "first", "vector": "last"}
    )
    kwargs = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 8}}}
    buffer = make_model(env, **kwargs).learn(60).replay_buffer
    assert buffer.observations["image"].shape[1:] == (2, 36, 36)
    np.testing.assert_array_equal(buffer.observations["vector"][8], [101, -1, 102, -2])
    np.testing.assert_array_equal(buffer.next_observations["vector"][5], [105, -5, 106, -6])


@pytest.mark.parametrize("policy", ["MlpEnsemblePolicy", "CnnEnsemblePolicy", "GruEnsemblePolicy", "AttentionEnsemblePolicy"])
def test_other_policies_name_the_right_one(policy):
    words = f"You must use `MultiInputEnsemblePolicy` when working with dict observation space, not {policy}"
    with pytest.raises(ValueError, match=words):
        RGRL(policy, Counter(), **TINY)


def test_other_policies_may_have_an_extractor_for_dicts():
    kwargs = {"policy_kwargs": {"features_extractor_class": CombinedExtractor}}
    env = Counter(("vector", "choice"))
    assert RGRL("GruEnsemblePolicy", env, **{**TINY, **kwargs}).learn(60)._n_updates > 0


def test_dict_policy_without_dicts():
    with pytest.raises(ValueError, match="MultiInputEnsemblePolicy needs Dict observations"):
        RGRL("MultiInputEnsemblePolicy", "CartPole-v1", **TINY)


def test_policy_class_instead_of_name():
    with pytest.raises(ValueError, match="not MlpEnsemblePolicy"):
        RGRL(MlpEnsemblePolicy, Counter(), **TINY)
    assert isinstance(RGRL(MultiInputEnsemblePolicy, Counter(("vector",)), **TINY).policy, MultiInputEnsemblePolicy)


class Sum(BaseFeaturesExtractor):
    """Of all numbers of an observation, times a factor."""

    def __init__(self, observation_space: spaces.Dict, factor: float = 1.0) -> None:
        super().__init__(observation_space, 1)
        self.factor = factor

    def forward(self, observations):
        return self.factor * sum(part.flatten(start_dim=1).sum(dim=1, keepdim=True) for part in observations.values())


def test_extractor_of_the_callers_own_and_kwargs_that_stay_as_they_are():
    policy_kwargs = {"features_extractor_class": Sum, "features_extractor_kwargs": {"factor": 3.0}, "net_arch": [8]}
    model = make_model(Counter(("vector", "choice")), policy_kwargs=policy_kwargs).learn(60)
    assert policy_kwargs == {"features_extractor_class": Sum, "features_extractor_kwargs": {"factor": 3.0}, "net_arch": [8]}
    features = model.policy.states_of(
        {name: th.as_tensor(part)[None, :1] for name, part in model.replay_buffer.observations.items()}
    )
    assert features.tolist() == [[[3.0 * (100.0 + 0.0 + 1.0)]]]


@pytest.mark.parametrize("where", ["observation", "terminal observation"])
def test_bad_number_in_a_part_is_named(where):
    class Bad(Counter):
        def step(self, action):
            observation, *rest = super().step(action)
            if self.steps == (6 if where == "terminal observation" else 2):
                observation["vector"][1] = np.nan
            return observation, *rest

    model = make_model(Bad(("vector", "choice")))
    with pytest.raises(ValueError, match=f"returned an? {where} 'vector' that is not finite"):
        model.learn(20)
    assert np.isfinite(model.replay_buffer.next_observations["vector"]).all()
