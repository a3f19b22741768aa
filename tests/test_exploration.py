"""While training the best of a few plans is executed; predictions that are deterministic consider all of them."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv

from sb3_rgrl import RGRL
from sb3_rgrl.venturing import farthest_plans
from tests.toy import SMALL

N_PLANS = 12


@pytest.fixture(scope="module")
def model() -> RGRL:
    # Of one plan it can be told which it is; of the mean of some (tests/test_mean_plans.py) not.
    settings = {**SMALL, "n_candidates": N_PLANS, "policy_kwargs": {"plan_temperature": 0.0}}
    return RGRL("MlpEnsemblePolicy", "Pendulum-v1", seed=0, **settings).learn(100)


def ranks_of_chosen(model: RGRL, considered: int, deterministic: bool, n_decisions: int = 60) -> list[int]:
    """By the mean error of all members, which of the plans at the end of the descent was executed; 0 is the best."""
    policy, observation = model.policy, np.array([[0.9, 0.1, 0.3]], dtype=np.float32)
    policy.exploration_candidates = considered
    ranks = []
    for _ in range(n_decisions):
        plan = policy.plan(observation, deterministic=deterministic)
        finals = np.asarray(plan.descent.preactivated)[:, 0]
        everyone = [policy_error(model, observation, each) for each in finals]
        chosen = policy_error(model, observation, plan.preactivated[0])
        ranks.append(int(np.searchsorted(np.sort(everyone), chosen - 1e-4 * abs(chosen))))
    return ranks


def policy_error(model: RGRL, observation: np.ndarray, preactivated: np.ndarray) -> float:
    policy = model.policy
    actions = np.tanh(preactivated)[None] * 2.0  # Pendulum's torques
    rewards = policy.predict_reward(observation, actions)
    goal = policy.goal()
    assert goal.return_weight == 0.0, "no episode has ended, so rewards alone count"
    total = (rewards * goal.discounts).sum(dim=-1)[:, 0]
    return float((((total - goal.total) / goal.return_scale) ** 2).mean())


def test_deterministic_decisions_take_the_best_of_all(model):
    assert ranks_of_chosen(model, considered=1, deterministic=True, n_decisions=3) == [0, 0, 0]


def test_all_candidates_leave_nothing_to_chance(model):
    assert set(ranks_of_chosen(model, considered=N_PLANS, deterministic=False, n_decisions=10)) == {0}
    assert set(ranks_of_chosen(model, considered=N_PLANS + 5, deterministic=False, n_decisions=10)) == {0}


def test_one_candidate_is_any_of_them(model):
    ranks = ranks_of_chosen(model, considered=1, deterministic=False)
    assert len(set(ranks)) > N_PLANS // 2
    # Uniform on 0 .. 11: mean 5.5, and a standard error of 0.45.
    assert np.mean(ranks) == pytest.approx(5.5, abs=2.0)


def test_best_of_a_few(model):
    ranks = ranks_of_chosen(model, considered=4, deterministic=False)
    # The best rank of 4 out of 12 is 8 / 5 on average, and never beyond the 9th.
    assert np.mean(ranks) == pytest.approx(1.6, abs=0.8)
    assert max(ranks) <= N_PLANS - 4
    assert len(set(ranks)) > 2


def chosen_by(policy, observation, n_members, n_decisions=40):
    """
    For each decision which members alone would have chosen what was executed, shape (decisions, m, n), and whether all
    together would have, shape (decisions, n).
    """
    policy.exploration_candidates, policy.exploration_members = N_PLANS, n_members
    told = []
    for _ in range(n_decisions):
        plan = policy.plan(observation, deterministic=False)
        finals = np.asarray(plan.descent.preactivated)
        with th.no_grad():
            judges, _ = policy._judges(policy.standardised_states(observation), len(finals), np.random.default_rng(0))
            errors = np.asarray(judges.score(judges.take(finals)))
        chosen = np.abs(finals - plan.preactivated).max(axis=(2, 3)).argmin(axis=0)
        told.append((errors.argmin(axis=1) == chosen, errors.mean(axis=0).argmin(axis=0) == chosen))
    by_member, by_all = zip(*told, strict=True)
    return np.array(by_member), np.array(by_all)


def test_one_member_chooses_for_each_environment_and_each_gets_its_turn(model):
    observations = np.array([[0.9, 0.1, 0.3], [-0.5, 0.8, -2.0], [0.1, -1.0, 4.0]], dtype=np.float32)
    by_member, by_all = chosen_by(model.policy, observations, 1)
    assert by_member.any(axis=1).all(), "each plan is the best for one member"
    assert 0.0 < by_all.mean() < 0.9, "which is not always the best for all"
    # Of those that only one member wants, each member gets some.
    alone = by_member & (by_member.sum(axis=1, keepdims=True) == 1)
    assert (alone.sum(axis=(0, 2)) > 0).all()
    _, by_all = chosen_by(model.policy, observations, None)
    assert by_all.all()


def test_deterministic_decisions_are_of_all_members(model):
    observation = np.array([[0.9, 0.1, 0.3]], dtype=np.float32)
    model.policy.exploration_members = None
    expected = model.policy.plan(observation).preactivated
    model.policy.exploration_members = 1
    np.testing.assert_array_equal(model.policy.plan(observation).preactivated, expected)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "one"])
def test_no_member_is_refused(bad):
    with pytest.raises(ValueError, match="exploration_members must be an integer, at least 1"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs={"exploration_members": bad})


def test_training_explores_with_what_it_was_told():
    for considered in (1, 3):
        model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, exploration_candidates=considered, **SMALL)
        assert model.policy.exploration_candidates == considered
        assert model.learn(100).policy.exploration_candidates == considered


@pytest.mark.parametrize("bad", [0, -1])
def test_none_is_refused(bad):
    with pytest.raises(ValueError, match="exploration_candidates must be an integer, at least 1"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", exploration_candidates=bad)


def test_random_actions_depend_on_the_seed_alone():
    taken = []
    for settings in ({}, {"batch_size": 7, "gradient_steps": 3}, {"train_freq": 5}):
        model = RGRL("MlpEnsemblePolicy", "Pendulum-v1", seed=0, **{**SMALL, "learning_starts": 40, **settings}).learn(60)
        assert model._n_updates > 0
        taken.append(model.replay_buffer.actions[:40].copy())
    assert len(np.unique(taken[0])) < 33, "some were held"
    for others in taken[1:]:
        np.testing.assert_array_equal(taken[0], others)


class Nothing(gym.Env):
    """Episodes of eight steps in which no reward ever comes; they end by termination or by a limit of time."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Discrete(8)

    def __init__(self, terminates: bool, reward_at: int | None = None) -> None:
        self.terminates, self.reward_at, self.n_steps = terminates, reward_at, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 8
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left, self.n_steps = self.left - 1, self.n_steps + 1
        over = self.left == 0
        obs = np.array([1.0 - self.left / 8], np.float32)
        return obs, float(self.n_steps == self.reward_at), over and self.terminates, over and not self.terminates, {}


@pytest.mark.parametrize("terminates", [True, False])
def test_where_all_is_worth_the_same_agents_go_far_instead_of_planning(terminates):
    model = RGRL("MlpEnsemblePolicy", Nothing(terminates), seed=0, **{**SMALL, "learning_starts": 80}).learn(80)
    assert not model._may_venture(), "members have learned nothing yet"
    model.learn(200, reset_num_timesteps=False)
    assert model._may_venture()
    assert not model._may_plan()


def test_agents_plan_as_soon_as_something_was_different():
    model = RGRL("MlpEnsemblePolicy", Nothing(True, reward_at=203), seed=0, **{**SMALL, "learning_starts": 80})
    model.learn(200)
    assert not model._may_plan()
    model.learn(60, reset_num_timesteps=False)
    assert model._may_plan()


# Far away


class Line(gym.Env):
    """A point on a line that goes left, stays, or goes right; an episode lasts 30 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.left = 0.0, 30
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at, self.left = self.at + int(action) - 1, self.left - 1
        return np.array([self.at], np.float32), 0.0, False, self.left == 0, {}


def far_by_plain_loops(policy, state, actions):
    """Largest squared distance on the way of one plan, mean over the members at each step."""
    change, squares = policy.scales.relative_change, []
    members = policy.ensemble.members()
    states = state.expand(policy.ensemble_size, 1, -1)
    for action in actions:
        squares.append(float(states.square().sum(dim=-1).mean()))
        told = policy.ensemble(states, action.expand(policy.ensemble_size, 1, 1, -1), members)
        states = (states + told.state_change[:, :, -1] * change).clamp(-20.0, 20.0)
    return max(squares)


def test_the_plan_is_followed_that_leads_farthest():
    settings = {**SMALL, "sequence_length": 1, "plan_horizon": 6, "learning_starts": 60, "action_repeat": 1}
    policy = RGRL("MlpEnsemblePolicy", Line(), seed=0, **settings).learn(90).policy
    observation = np.array([[3.0], [-2.0]], np.float32)
    plans = farthest_plans(policy, observation, np.random.default_rng(1))
    drawn = policy.starts.fresh(2, np.random.default_rng(1))
    states = policy.standardised_states(observation)
    for k in range(2):
        actions = th.from_numpy(policy.codec.execute(drawn[:, k]))
        with th.no_grad():
            far = [far_by_plain_loops(policy, states[k], plan) for plan in actions]
        np.testing.assert_array_equal(plans[k], drawn[int(np.argmax(far)), k])


def test_the_flag_of_mountain_car_is_found():
    model = RGRL("MlpEnsemblePolicy", "MountainCar-v0", seed=200).learn(600)
    assert model.replay_buffer.terminated[:600].any(), "random actions need thousands of steps"


def test_features_that_are_still_to_be_learned_do_not_tell_what_is_far():
    env = FakeImageEnv(screen_height=36, screen_width=36)
    model = RGRL("CnnEnsemblePolicy", env, seed=0, **{**SMALL, "learning_starts": 20}).learn(60)
    assert model._knows_states
    assert not model._may_venture()


@pytest.mark.parametrize("settings", [{"venture": False}, {"plan_horizon": 1}])
def test_actions_stay_random_where_nobody_ventures_or_plans_have_no_way(settings, monkeypatch):
    monkeypatch.setattr("sb3_rgrl.acting.farthest_plans", None)  # would fail if it was asked
    model = RGRL("MlpEnsemblePolicy", Line(), seed=0, **{**SMALL, "sequence_length": 1, "learning_starts": 60, **settings})
    model.learn(150)
    assert model._knows_states
    assert not model._may_venture()


def test_several_environments_venture_side_by_side():
    model = RGRL("MlpEnsemblePolicy", make_vec_env(Line, 3), seed=0, **{**SMALL, "sequence_length": 1, "learning_starts": 60})
    model.learn(240)
    assert model._may_venture()
    plans, n_done = model._last_plans
    assert len(plans) == len(n_done) == 3
    assert not np.array_equal(plans[0], plans[1])
