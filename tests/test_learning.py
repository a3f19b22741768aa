"""
RGRL learns, and it is planning, learning and the buffer that do it: with any of them broken the same test fails.
"""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_rgrl import RGRL
from sb3_rgrl.buffers import SequenceReplayBuffer


class Steer(gym.Env):
    """A point on a line that one pushes toward a goal. Random pushes get about -20, good ones about -2 an episode."""

    observation_space = spaces.Box(-3.0, 3.0, (2,), dtype=np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), dtype=np.float32)

    def _observation(self):
        return np.array([self.x, self.goal], dtype=np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.goal = self.np_random.uniform(-1, 1, size=2)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        self.x = float(np.clip(self.x + 0.5 * action[0], -2, 2))
        return self._observation(), -abs(self.x - self.goal), False, self.steps == 20, {}


def trained_on_steer(**changes) -> RGRL:
    # Episodes have 20 steps, so a return over 100 steps would be mostly guessed.
    settings = {"plan_horizon": 6, "sequence_length": 3, "learning_starts": 100, "gamma": 0.9, **changes}
    return RGRL("MlpEnsemblePolicy", Steer(), seed=0, **settings).learn(1_000)


def steer_return(model: RGRL) -> float:
    return evaluate_policy(model, make_vec_env(Steer, n_envs=10, seed=100), n_eval_episodes=20)[0]


def cartpole_return() -> float:
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0).learn(1_000)
    return evaluate_policy(model, make_vec_env("CartPole-v1", n_envs=10, seed=100), n_eval_episodes=10)[0]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(threads)


# Random actions get 22 on CartPole, and about -20 on Steer.
CARTPOLE_LEARNED, STEER_LEARNED = 120.0, -5.0


def mix_up(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    """Let every window that is drawn have what belongs to another one."""
    windows = SequenceReplayBuffer.windows

    def mixed_up(self, *args, **kwargs):
        sample = windows(self, *args, **kwargs)
        return sample._replace(**{field: getattr(sample, field).roll(1, dims=1)})

    monkeypatch.setattr(SequenceReplayBuffer, "windows", mixed_up)


def test_cartpole_with_the_defaults():
    assert cartpole_return() > CARTPOLE_LEARNED


def test_continuous_actions():
    assert steer_return(trained_on_steer()) > STEER_LEARNED


@pytest.mark.parametrize(
    "broken", [{"n_candidates": 1, "n_plan_iterations": 0}, {"learning_rate": 0.0}], ids=["planning", "learning"]
)
def test_without_planning_or_learning_nothing_is_learned(broken):
    assert steer_return(trained_on_steer(**broken)) < STEER_LEARNED


@pytest.mark.parametrize("field", ["actions", "rewards"])
def test_with_a_broken_buffer_nothing_is_learned(field, monkeypatch):
    mix_up(monkeypatch, field)
    assert steer_return(trained_on_steer()) < STEER_LEARNED


def prediction_errors(model: RGRL) -> dict[str, float]:
    """How wrong the members are about what the buffer holds, in standard deviations (squared for states)."""
    every = model.replay_buffer.all_windows()
    errors = model.policy.window_errors(model.replay_buffer.windows(np.stack([every] * 5)), thin=False)
    return {"next_observations": errors.states.mean().item(), "returns_to_go": errors.returns.mean().item()}


@pytest.mark.parametrize("field", ["next_observations", "returns_to_go"])
def test_members_learn_states_and_returns_unless_the_buffer_mixes_them_up(field, monkeypatch):
    # Returns of random actions differ, those of an agent that steers well hardly do.
    learned = prediction_errors(trained_on_steer(learning_starts=600))[field]
    with monkeypatch.context() as patch:
        mix_up(patch, field)
        broken = trained_on_steer(learning_starts=600)
    assert learned < 0.3
    assert prediction_errors(broken)[field] > 1.5 * learned


@pytest.mark.parametrize(
    ("per_exponent", "n_updates", "drawn"),
    [(0.0, 4, [20]), (0.0, 13, [50, 15]), (0.7, 3, [5, 5, 5])],
    ids=["uniform", "uniform, more than at once", "prioritized"],
)
def test_windows_of_several_updates_are_drawn_at_once_where_errors_have_no_say(per_exponent, n_updates, drawn, monkeypatch):
    model = trained_on_steer(per_exponent=per_exponent, gradient_steps=1, train_freq=200)
    batches, learned, renewed = [], [], []
    buffer, sample, update = model.replay_buffer, model.replay_buffer.sample, model._update

    def counted_sample(n, env=None):
        batches.append(n)
        return sample(n, env)

    def counted_update(buffer, windows):
        learned.append(windows.indices)
        assert len({part.shape[:2] for part in windows}) == 1
        return update(buffer, windows)

    monkeypatch.setattr(buffer, "sample", counted_sample)
    monkeypatch.setattr(model, "_update", counted_update)
    monkeypatch.setattr(buffer, "update_priorities", lambda *args: renewed.append(args))
    model.train(n_updates, 5)
    assert batches == drawn
    assert [indices.shape for indices in learned] == [(5, 5)] * n_updates
    assert len({indices.tobytes() for indices in learned}) == n_updates
    assert len(renewed) == (n_updates if per_exponent > 0 else 0)
