"""Members that are told how actions of a window changed while they lasted (``uneven_actions``)."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.testing import assert_allclose, assert_array_equal
from stable_baselines3.common.envs import BitFlippingEnv
from torch import nn

from sb3_rgrl import RGRL, HerSequenceReplayBuffer
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.ensemble import MEMBER_KINDS, Ensemble, MlpEnsemble
from sb3_rgrl.ensemble.kinds import make_ensemble
from tests.toy import SMALL

M, BATCH, STATE_DIM, ACTION_DIM, LENGTH = 3, 4, 2, 2, 4
KINDS = sorted(MEMBER_KINDS)


class PriceOfForce(gym.Env):
    """Each step costs the size of its action, in either direction; the state tells nothing."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self.observation(), {}

    def step(self, action):
        self.n_steps += 1
        return self.observation(), -float(np.abs(action).sum()), False, self.n_steps == 40, {}

    def observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)


def filled_buffer(actions: np.ndarray, action_repeat: int, uneven_actions: bool) -> SequenceReplayBuffer:
    """One episode of these actions, shape (n, action_dim)."""
    space = spaces.Box(-1.0, 1.0, (1,))
    about = {"action_dim": actions.shape[1], "sequence_length": 2, "action_repeat": action_repeat}
    buffer = SequenceReplayBuffer(100, space, space, "cpu", **about, uneven_actions=uneven_actions)
    nothing = np.zeros((1, 1), np.float32)
    for action in actions:
        buffer.add(nothing, nothing, action[None], np.zeros(1), np.zeros(1, bool), [{}])
    return buffer


@pytest.mark.parametrize("action_repeat", [2, 3])
def test_windows_tell_every_step_of_an_action(action_repeat):
    actions = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    windows = filled_buffer(actions, action_repeat, uneven_actions=True).windows(np.array([[0, 1, 5]]))
    assert windows.actions.shape == (1, 3, 2, 6)
    mean, first, last = windows.actions.numpy()[0].reshape(3, 2, 3, 2).transpose(2, 0, 1, 3)
    for row, start in enumerate([0, 1, 5]):
        steps = actions[start : start + 2 * action_repeat].reshape(2, action_repeat, 2)
        assert_allclose(mean[row] + first[row], steps[:, 0], atol=1e-6)
        assert_allclose(mean[row] + last[row], steps[:, -1], atol=1e-6)
        assert_allclose(action_repeat * mean[row], steps.sum(axis=1), atol=1e-6)


def test_windows_tell_nothing_more_of_actions_of_one_step_or_where_nobody_asks():
    actions = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    indices = np.array([[0, 3]])
    alone = filled_buffer(actions, 1, uneven_actions=True).windows(indices).actions
    assert_array_equal(alone, filled_buffer(actions, 1, uneven_actions=False).windows(indices).actions)
    assert filled_buffer(actions, 3, uneven_actions=False).windows(indices).actions.shape[-1] == 2


def make_members(kind: str, action_dim: int, **settings) -> Ensemble:
    th.manual_seed(0)
    shared = {"state_dim": STATE_DIM, "action_dim": action_dim, "sequence_length": LENGTH, "dropout": 0.0}
    return make_ensemble(kind, M, None, **shared, net_arch=[4, 4], activation_fn=nn.Tanh, **settings)


def expected_of(ensemble: Ensemble, states: th.Tensor, actions: th.Tensor) -> th.Tensor:
    answers = ensemble(states, actions, ensemble.members())
    return th.cat([part.flatten(start_dim=2) for part in answers], dim=-1)


def some_inputs() -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(1)
    shapes = (M, BATCH, STATE_DIM), (M, BATCH, LENGTH, 3 * ACTION_DIM)
    return th.randn(shapes[0], generator=generator), th.randn(shapes[1], generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_of_held_actions_members_begin_as_those_that_are_not_told(kind):
    states, actions = some_inputs()
    told, untold = make_members(kind, ACTION_DIM, uneven_actions=True), make_members(kind, ACTION_DIM)
    assert "uneven_weight" not in untold.state_dict()
    held = actions[..., :ACTION_DIM]
    assert_array_equal(expected_of(told, states, held).detach(), expected_of(untold, states, held).detach())
    assert not np.allclose(expected_of(told, states, actions).detach(), expected_of(untold, states, held).detach(), atol=0.01)


# Which of the stacked weights takes actions, and its first row of them.
WEIGHT_OF_ACTIONS = {"mlp": (0, STATE_DIM), "rnn": (1, 0), "gru": (1, 0), "lstm": (2, 0), "attention": (1, 0)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_members_are_told_is_more_of_their_input(kind):
    """The same as members whose actions are three times as long, with the weights put in their places."""
    states, actions = some_inputs()
    told, longer = make_members(kind, ACTION_DIM, uneven_actions=True), make_members(kind, 3 * ACTION_DIM)
    with th.no_grad():
        told.uneven_weight.normal_(generator=th.Generator().manual_seed(2))
        which, first = WEIGHT_OF_ACTIONS[kind]
        for index, (weight, source) in enumerate(zip(longer.weights, told.weights, strict=True)):
            if index != which:
                weight.copy_(source)
                continue
            n_actions = LENGTH if kind == "mlp" else 1
            of_held = source[:, first:].reshape(M, n_actions, ACTION_DIM, -1)
            of_uneven = told.uneven_weight.reshape(M, n_actions, 2 * ACTION_DIM, -1)
            weight[:, :first] = source[:, :first]
            weight[:, first:] = th.cat([of_held, of_uneven], dim=2).flatten(start_dim=1, end_dim=2)
        for bias, source in zip(longer.biases, told.biases, strict=True):
            bias.copy_(source)
        if kind == "attention":
            longer.positions.copy_(told.positions)
    both = expected_of(told, states, actions).detach(), expected_of(longer, states, actions).detach()
    assert_allclose(*both, atol=2e-6)
    assert not np.allclose(both[0], expected_of(told, states, actions[..., :ACTION_DIM]).detach(), atol=0.01)


def test_members_of_one_layer_are_told_as_well():
    ensemble = MlpEnsemble(STATE_DIM, ACTION_DIM, 1, M, [], nn.SiLU, 0.0, uneven_actions=True)
    states, actions = some_inputs()
    before = expected_of(ensemble, states, actions[:, :, :1]).detach()
    with th.no_grad():
        ensemble.uneven_weight += 1.0
    more = actions[:, :, 0, ACTION_DIM:].sum(dim=-1, keepdim=True)
    assert more.abs().max() > 1.0
    assert_allclose(expected_of(ensemble, states, actions[:, :, :1]).detach(), before + more, atol=1e-5)


def learned(env, n_steps: int = 150, **settings) -> RGRL:
    policy_kwargs = {"net_arch": [32], **settings.pop("policy_kwargs", {})}
    small = {**SMALL, "ensemble_size": 2, "n_candidates": 4, "policy_kwargs": policy_kwargs, "seed": 0}
    return RGRL(settings.pop("policy", "MlpEnsemblePolicy"), env, **{**small, **settings}).learn(n_steps)


def test_members_know_what_held_actions_cost():
    """Force one way and back costs twice, and in the mean it is none: who knows only the mean thinks that none costs, too."""

    def costs_of_holding(actions: list[float], uneven_actions: bool) -> np.ndarray:
        # Each step's action is another one, so all windows are uneven.
        random = {"action_repeat": 2, "learning_starts": 399, "train_freq": 400, "random_action_hold": 0.0}
        learning = {"gradient_steps": 600, "batch_size": 32, "learning_rate": 1e-2}
        model = learned(PriceOfForce(), 400, **random, **learning, policy_kwargs={"uneven_actions": uneven_actions})
        plans = np.broadcast_to(np.array(actions, np.float32)[:, None, None], (len(actions), model.sequence_length, 1))
        return -model.policy.predict_reward(np.zeros((len(actions), 1), np.float32), plans).mean(dim=(0, 2)).numpy()

    (untold,), told = costs_of_holding([0.0], uneven_actions=False), costs_of_holding([-1.0, 0.0, 1.0], uneven_actions=True)
    # Of two actions uniform within 1 that sum to 0 each costs half a unit in the mean: one in all.
    assert 0.7 < untold < 1.3
    assert_allclose(told[[0, 2]], 2.0, atol=0.3)
    assert told[1] < 0.6 * untold


def test_nothing_changes_where_actions_last_one_step():
    told, untold = (learned("Pendulum-v1", action_repeat=1, policy_kwargs={"uneven_actions": on}) for on in (True, False))
    for name, weight in untold.policy.ensemble.state_dict().items():
        assert_array_equal(weight, told.policy.ensemble.state_dict()[name])


@pytest.mark.parametrize("policy", ["MlpEnsemblePolicy", "GruEnsemblePolicy", "AttentionEnsemblePolicy"])
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_agents_learn_what_they_are_told_and_keep_it(env, policy, tmp_path):
    more = {"uneven_actions": True, "net_arch": [8]}
    model = learned(env, action_repeat=2, policy=policy, policy_kwargs=more)
    assert model.policy.ensemble.uneven_weight.grad.any()
    model.save(tmp_path / "agent")
    again = RGRL.load(tmp_path / "agent")
    assert again.policy.uneven_actions
    assert_array_equal(again.policy.ensemble.uneven_weight.detach(), model.policy.ensemble.uneven_weight.detach())
    observation = model.observation_space.sample()
    assert_array_equal(again.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0])


def test_groups_of_members_are_told():
    groups = [{"n_members": 1, "net_arch": [8]}, {"n_members": 2, "kind": "gru", "net_arch": [4], "activation_fn": nn.Tanh}]
    more = {"uneven_actions": True, "member_groups": groups}
    model = learned("Pendulum-v1", action_repeat=3, ensemble_size=3, n_candidates=6, policy_kwargs=more)
    assert all(group.uneven_weight.grad.any() for group in model.policy.ensemble.groups())


@pytest.mark.parametrize("continuous", [False, True])
def test_windows_with_other_goals_tell_it_too(continuous):
    hindsight = {"replay_buffer_class": HerSequenceReplayBuffer, "replay_buffer_kwargs": {"n_sampled_goal": 4}}
    env = BitFlippingEnv(n_bits=3, continuous=continuous)
    more = {"policy": "MultiInputEnsemblePolicy", "policy_kwargs": {"uneven_actions": True}}
    model = learned(env, action_repeat=2, **more, **hindsight)
    action_dim = model.policy.ensemble.action_dim
    windows = model.replay_buffer.sample(32)
    assert windows.actions.shape[-1] == 3 * action_dim
    assert windows.actions[..., action_dim:].any()
    assert model.policy.ensemble.uneven_weight.grad.any()


def test_settings_that_are_not_told_load_as_before(tmp_path):
    model = learned("Pendulum-v1", action_repeat=2)
    assert not model.policy.uneven_actions
    assert model.policy.ensemble.uneven_weight is None
    model.save(tmp_path / "agent")
    assert RGRL.load(tmp_path / "agent").policy.ensemble.uneven_weight is None
