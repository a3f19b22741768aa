"""Members of different kinds and widths in one ensemble equal their groups asked one by one."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_rgrl import RGRL
from sb3_rgrl.ensemble import (
    MEMBER_KINDS,
    AttentionEnsemble,
    GruEnsemble,
    LstmEnsemble,
    MixedEnsemble,
    MlpEnsemble,
    RnnEnsemble,
    WindowPrediction,
    make_ensemble,
)
from tests.toy import SMALL

STATE_DIM, ACTION_DIM, LENGTH, BATCH = 3, 2, 4, 5
SHARED: dict[str, Any] = {
    "state_dim": STATE_DIM,
    "action_dim": ACTION_DIM,
    "sequence_length": LENGTH,
    "net_arch": [8],
    "activation_fn": nn.Tanh,
    "dropout": 0.0,
}
# Members 0 and 1, 2, 3 to 5, 6.
GROUPS: list[dict[str, Any]] = [
    {"n_members": 2},
    {"n_members": 1, "net_arch": [16, 4], "activation_fn": nn.SiLU},
    {"n_members": 3, "kind": "gru", "net_arch": [6]},
    {"n_members": 1, "kind": "lstm"},
]
FIRSTS = [0, 2, 3, 6]


def make_mixed(**kwargs) -> MixedEnsemble:
    th.manual_seed(0)
    ensemble = make_ensemble("mlp", 7, GROUPS, **{**SHARED, **kwargs})
    assert isinstance(ensemble, MixedEnsemble)
    return ensemble


def inputs(n_groups: int) -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(1)
    state = th.randn(n_groups, BATCH, STATE_DIM, generator=generator)
    return state, th.randn(n_groups, BATCH, LENGTH, ACTION_DIM, generator=generator)


def alone(ensemble: MixedEnsemble, member: int, state: th.Tensor, actions: th.Tensor) -> WindowPrediction:
    """What one member answers when its own group is asked, and nobody else, each of shape (b, ...)."""
    group = max(k for k, first in enumerate(FIRSTS) if first <= member)
    own = ensemble.groups()[group]
    answer = own(state[None], actions[None], own.members(th.tensor([member - FIRSTS[group]])))
    return WindowPrediction(*(part[0] for part in answer))


def test_groups_are_what_was_asked_for():
    ensemble = make_mixed()
    assert [type(group) for group in ensemble.groups()] == [MlpEnsemble, MlpEnsemble, GruEnsemble, LstmEnsemble]
    assert [group.n_members for group in ensemble.groups()] == [2, 1, 3, 1]
    assert [group.weights[0].shape[-1] for group in ensemble.groups()] == [8, 16, 6, 8]
    assert [type(group.activation) for group in ensemble.groups()] == [nn.Tanh, nn.SiLU, nn.Tanh, nn.Tanh]
    assert ensemble.n_members == 7
    assert ensemble.sequence_length == LENGTH
    assert GROUPS[1] == {"n_members": 1, "net_arch": [16, 4], "activation_fn": nn.SiLU}, "the caller's own"


@pytest.mark.parametrize(
    "chosen",
    [
        None,
        [0, 1, 2, 3, 4, 5, 6],
        [6, 5, 4, 3, 2, 1, 0],
        [3, 0, 3, 6, 0, 5, 3, 1],  # nobody asks the second group
        [6],
        [4, 4],  # nor the first, when it is not asked
    ],
    ids=str,
)
def test_equals_its_groups_asked_one_by_one(chosen):
    ensemble = make_mixed()
    asked = list(range(7)) if chosen is None else chosen
    state, actions = inputs(len(asked))
    actions.requires_grad_()
    answer = ensemble(state, actions, ensemble.members(None if chosen is None else th.tensor(chosen)))
    weights = [th.randn(part.shape, generator=th.Generator().manual_seed(k)) for k, part in enumerate(answer)]
    (gradient,) = th.autograd.grad(sum((w * part).sum() for w, part in zip(weights, answer, strict=True)), actions)
    for place, member in enumerate(asked):
        own = actions[place].detach().clone().requires_grad_()
        expected = alone(ensemble, member, state[place], own)
        for part, other in zip(answer, expected, strict=True):
            th.testing.assert_close(part[place], other, rtol=1e-6, atol=1e-6)
        total = sum((w[place] * part).sum() for w, part in zip(weights, expected, strict=True))
        (expected_gradient,) = th.autograd.grad(total, own)
        th.testing.assert_close(gradient[place], expected_gradient, rtol=1e-6, atol=1e-6)


def test_members_answer_differently():
    # Else the test above could not tell who was asked.
    ensemble = make_mixed()
    state, actions = inputs(1)
    answers = [alone(ensemble, member, state[0], actions[0]).rewards for member in range(7)]
    for i in range(7):
        for j in range(i):
            assert (answers[i] - answers[j]).abs().max() > 0.05


def test_gradients_reach_the_weights_of_those_who_are_asked():
    ensemble = make_mixed()
    state, actions = inputs(3)
    answer = ensemble(state, actions, ensemble.members(th.tensor([4, 0, 4])))
    sum((part**2).sum() for part in answer).backward()
    reached = [
        [bool(group.weights[-1].grad is not None and group.weights[-1].grad[i].any()) for i in range(group.n_members)]
        for group in ensemble.groups()
    ]
    assert reached == [[True, False], [False], [False, True, False], [False]]


@pytest.mark.parametrize("chosen", [None, [3, 0, 3, 6]], ids=str)
def test_members_are_thinned_group_by_group(chosen):
    ensemble = make_mixed(dropout=0.4)
    index = None if chosen is None else th.tensor(chosen)
    state, actions = inputs(7 if chosen is None else 4)
    thinned = ensemble(state, actions, ensemble.members(index, np.random.default_rng(0)))
    again = ensemble(state, actions, ensemble.members(index, np.random.default_rng(0)))
    other = ensemble(state, actions, ensemble.members(index, np.random.default_rng(1)))
    whole = ensemble(state, actions, ensemble.members(index))
    for place in range(len(state)):
        assert th.equal(thinned.rewards[place], again.rewards[place])
        assert not th.allclose(thinned.rewards[place], other.rewards[place])
        assert not th.allclose(thinned.rewards[place], whole.rewards[place])
    if chosen is not None:
        same = ensemble(
            state[:1].expand(4, -1, -1), actions[:1].expand(4, -1, -1, -1), ensemble.members(index, np.random.default_rng())
        )
        assert not th.allclose(same.rewards[0], same.rewards[2]), "each group of rows is thinned for itself"


# Milestones: all members of an ensemble have to tell the same


def test_milestones_with_perceptrons_are_one():
    ensemble = make_mixed()
    assert ensemble.n_milestones == 1
    assert [group.n_milestones for group in ensemble.groups()] == [1, 1, 1, 1]
    assert ensemble(*inputs(7), ensemble.members()).state_change.shape == (7, BATCH, 1, STATE_DIM)


def test_milestones_with_perceptrons_can_be_more():
    ensemble = make_mixed(n_milestones=2)
    assert [group.n_milestones for group in ensemble.groups()] == [2, 2, 2, 2]
    assert ensemble(*inputs(7), ensemble.members()).ended.shape == (7, BATCH, 2)


def test_milestones_without_perceptrons_are_all_steps():
    groups = [{"n_members": 1}, {"n_members": 2, "kind": "attention", "n_heads": 2}]
    ensemble = make_ensemble("gru", 3, groups, **SHARED)
    assert [type(group) for group in ensemble.groups()] == [GruEnsemble, AttentionEnsemble]
    assert ensemble.groups()[1].n_heads == 2
    assert ensemble.n_milestones == LENGTH


def test_groups_that_do_not_fit_together():
    with pytest.raises(ValueError, match="Groups of members must agree on n_milestones, got 1 and 2"):
        make_ensemble("mlp", 2, [{"n_members": 1}, {"n_members": 1, "n_milestones": 2}], **SHARED)
    with pytest.raises(ValueError, match="Groups of members must agree on state_dim, got 3 and 4"):
        make_ensemble("mlp", 2, [{"n_members": 1}, {"n_members": 1, "state_dim": 4}], **SHARED)


# From names


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mlp", MlpEnsemble),
        ("gru", GruEnsemble),
        ("lstm", LstmEnsemble),
        ("rnn", RnnEnsemble),
        ("attention", AttentionEnsemble),
    ],
)
def test_each_kind_by_its_name(kind, expected):
    ensemble = make_ensemble(kind, 3, None, **SHARED)
    assert type(ensemble) is expected
    assert ensemble.n_members == 3
    assert set(MEMBER_KINDS) == {"mlp", "gru", "lstm", "rnn", "attention"}


@pytest.mark.parametrize("sizes", [[2, 2], [3, 3], [5, 0], [6, -1], [], [2.0, 3.0], [5, None]], ids=str)
def test_sizes_that_do_not_add_up(sizes):
    groups = [{"n_members": size} for size in sizes]
    with pytest.raises(ValueError, match="needs its n_members, and they must add up to ensemble_size 5, got") as error:
        make_ensemble("mlp", 5, groups, **SHARED)
    assert str(sizes) in str(error.value)


def test_group_without_a_size():
    with pytest.raises(ValueError, match="Each of the member_groups needs its n_members"):
        make_ensemble("mlp", 5, [{"n_members": 5}, {"net_arch": [4]}], **SHARED)


@pytest.mark.parametrize("groups", [None, [{"n_members": 2}]], ids=str)
def test_unknown_kind(groups):
    message = r"Members must be of one of the kinds \['attention', 'gru', 'lstm', 'mlp', 'rnn'\], got 'cnn'"
    with pytest.raises(ValueError, match=message):
        make_ensemble("cnn", 2, groups, **SHARED)


def test_unknown_kind_of_a_group():
    with pytest.raises(ValueError, match=r"Members must be of one of the kinds .*, got 'GRU'"):
        make_ensemble("mlp", 2, [{"n_members": 1}, {"n_members": 1, "kind": "GRU"}], **SHARED)


def test_wrong_key_of_a_group():
    with pytest.raises(ValueError, match=r"The member_groups entry .*'width': 8.* does not fit 'gru' members: .*'width'"):
        make_ensemble("mlp", 2, [{"n_members": 1}, {"n_members": 1, "kind": "gru", "width": 8}], **SHARED)


def test_wrong_setting_of_all_members():
    with pytest.raises(ValueError, match=r"A setting of the members does not fit 'mlp' members: .*'n_heads'"):
        make_ensemble("mlp", 2, None, n_heads=2, **SHARED)


# In an agent


def groups_of_an_agent() -> list[dict[str, Any]]:
    return [
        {"n_members": 2, "net_arch": [16]},
        {"n_members": 1, "net_arch": [8, 8], "activation_fn": nn.Tanh},
        {"n_members": 1, "kind": "gru", "net_arch": [6], "activation_fn": nn.Tanh},
        {"n_members": 1, "kind": "lstm", "net_arch": [7]},
    ]


@pytest.mark.parametrize(("env_id", "n_candidates"), [("CartPole-v1", 10), ("Pendulum-v1", 3)], ids=["dealt out", "drawn"])
def test_agent_learns_is_saved_and_decides_the_same(env_id, n_candidates, tmp_path):
    settings = {
        **SMALL,
        "ensemble_size": 5,
        "n_candidates": n_candidates,
        "learning_starts": 220,
        "policy_kwargs": {"member_groups": groups_of_an_agent()},
    }
    model = RGRL("MlpEnsemblePolicy", env_id, seed=0, **settings)
    before = [parameter.detach().clone() for parameter in model.policy.ensemble.parameters()]
    model.learn(300)
    assert model._n_updates > 0
    for old, new in zip(before, model.policy.ensemble.parameters(), strict=True):
        assert all(not th.equal(old[i], new[i]) for i in range(len(old))), "every member learns"
        assert th.isfinite(new).all()
    assert settings["policy_kwargs"] == {"member_groups": groups_of_an_agent()}

    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", env=gym.make(env_id))
    assert isinstance(loaded.policy.ensemble, MixedEnsemble)
    observations = np.random.default_rng(0).normal(size=(4, *model.observation_space.shape)).astype(np.float32)
    action, plans = model.predict(observations, deterministic=True)
    again, plans_again = loaded.predict(observations, deterministic=True)
    np.testing.assert_array_equal(action, again)
    np.testing.assert_array_equal(plans[0], plans_again[0])
    rewards = model.policy.predict_reward(observations, model.policy.plan(observations).actions)
    assert rewards.shape == (5, 4, 6)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 320


@pytest.mark.parametrize("fisher", ["batch", "window"])
def test_weight_consolidation_holds_all_groups(fisher):
    settings = {**SMALL, "ensemble_size": 5, "policy_kwargs": {"member_groups": groups_of_an_agent()}}
    settings["learning_starts"] = 100
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, ewc_lambda=1.0, ewc_fisher=fisher, **settings).learn(120)
    assert model._n_updates > 0
    assert model.ewc.penalty().item() == 0.0, "the weights are those of the last learning phase"
    for parameter in model.policy.ensemble.parameters():
        before = parameter.detach().clone()
        with th.no_grad():
            parameter += 0.1
        assert model.ewc.penalty().item() > 0.0
        with th.no_grad():
            parameter.copy_(before)
