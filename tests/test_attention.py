"""Members that attend: what they may see, and the same numbers from plain loops."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_rgrl.ensemble import AttentionEnsemble, Layer, WindowPrediction
from tests import oracles_members as oracles

STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, BATCH = 3, 2, 4, 3, 2


def make_ensemble(net_arch=(8, 8), dropout=0.0, n_heads=2, **kwargs) -> AttentionEnsemble:
    th.manual_seed(0)
    ensemble = AttentionEnsemble(STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, net_arch, nn.SiLU, dropout, n_heads=n_heads, **kwargs)
    # Fresh positions are too small to tell whether they count.
    with th.no_grad():
        ensemble.positions *= 50.0
    return ensemble


def inputs(n_groups: int, batch: int = BATCH, dtype: th.dtype = th.float64) -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(1)
    state = th.randn(n_groups, batch, STATE_DIM, generator=generator, dtype=dtype)
    return state, th.randn(n_groups, batch, LENGTH, ACTION_DIM, generator=generator, dtype=dtype)


def by_step(prediction: WindowPrediction) -> th.Tensor:
    """As the head puts it out after each step: reward, change of state, end, return, reward if it is the end."""
    told = prediction.rewards, prediction.ended, prediction.return_to_go, prediction.end_rewards
    rewards, ended, tail, end_rewards = (part.unsqueeze(-1) for part in told)
    return th.cat([rewards, prediction.state_change, ended, tail, end_rewards], dim=-1)


# Plain loops


def oracle_window(layers: list[Layer], group: int, n_heads: int, state: list, actions: list) -> list[list[float]]:
    *own, positions = [(layer.weight[group], layer.bias[group]) for layer in layers]
    embed_state, embed_action, *blocks, head = [(weight.tolist(), bias[0].tolist()) for weight, bias in own]
    tokens = [oracles.linear(state, *embed_state), *(oracles.linear(action, *embed_action) for action in actions)]
    for k, token in enumerate(tokens):
        tokens[k] = [a + b for a, b in zip(token, positions[0][0, k].tolist(), strict=True)]
    for k in range(0, len(blocks), 4):
        tokens = oracles.transformer_block(tokens, blocks[k : k + 4], n_heads, oracles.silu)
    return [oracles.linear(oracles.normalised(token), *head) for token in tokens[1:]]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("chosen", [None, [2, 0, 2, 2]], ids=str)
@pytest.mark.parametrize(("net_arch", "n_heads"), [((4,), 1), ((8,), 4), ((6, 6), 2)], ids=str)
def test_equals_plain_loops(net_arch, n_heads, chosen, dropout):
    ensemble = make_ensemble(net_arch, dropout, n_heads).double()
    state, actions = inputs(MEMBERS if chosen is None else len(chosen))
    layers = ensemble.members(None if chosen is None else th.tensor(chosen), np.random.default_rng(3))
    outputs = by_step(ensemble(state, actions, layers))
    assert outputs.shape == (len(state), BATCH, LENGTH, 1 + STATE_DIM + 3)
    for group in range(len(state)):
        for row in range(BATCH):
            expected = oracle_window(layers, group, n_heads, state[group, row].tolist(), actions[group, row].tolist())
            th.testing.assert_close(outputs[group, row], th.tensor(expected, dtype=th.float64), rtol=1e-9, atol=1e-9)


def test_gradient_on_actions_equals_differences_of_plain_loops():
    ensemble = make_ensemble((6, 6)).double()
    state, actions = inputs(MEMBERS)
    actions.requires_grad_()
    layers = ensemble.members()
    weights = th.randn(LENGTH, 1 + STATE_DIM + 3, generator=th.Generator().manual_seed(2), dtype=th.float64)
    outputs = by_step(ensemble(state, actions, layers))
    (gradient,) = th.autograd.grad((weights * outputs).sum(), actions)

    def total(member: int, plan: list) -> float:
        outputs = oracle_window(layers, member, ensemble.n_heads, state[member, 0].tolist(), plan)
        return sum(w * x for ws, xs in zip(weights.tolist(), outputs, strict=True) for w, x in zip(ws, xs, strict=True))

    for member in range(MEMBERS):
        for k in range(LENGTH):
            for d in range(ACTION_DIM):
                above, below = actions[member, 0].tolist(), actions[member, 0].tolist()
                above[k][d] += 1e-5
                below[k][d] -= 1e-5
                slope = (total(member, above) - total(member, below)) / 2e-5
                assert gradient[member, 0, k, d].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_float32_equals_float64():
    # What is used is float32, where torch may take other code than in float64.
    ensemble = make_ensemble((64, 64), n_heads=4)
    state, actions = inputs(MEMBERS, dtype=th.float32)
    outputs = by_step(ensemble(state, actions, ensemble.members()))
    exact = by_step(ensemble.double()(state.double(), actions.double(), ensemble.members()))
    th.testing.assert_close(outputs.double(), exact, rtol=1e-5, atol=1e-5)


# Causality


def test_an_action_changes_nothing_before_it():
    ensemble = make_ensemble().double()
    state, actions = inputs(MEMBERS)
    before = by_step(ensemble(state, actions, ensemble.members()))
    for k in range(LENGTH):
        changed = actions.clone()
        changed[:, :, k] += 1.0
        after = by_step(ensemble(state, changed, ensemble.members()))
        assert th.equal(after[:, :, :k], before[:, :, :k])
        assert (after[:, :, k:] != before[:, :, k:]).all()


def test_gradient_of_a_reward_reaches_its_own_and_earlier_actions_alone():
    ensemble = make_ensemble().double()
    state, actions = inputs(MEMBERS)
    actions.requires_grad_()
    rewards = ensemble(state, actions, ensemble.members()).rewards
    for k in range(LENGTH):
        (gradient,) = th.autograd.grad(rewards[..., k].sum(), actions, retain_graph=True)
        assert not gradient[:, :, k + 1 :].any(), f"reward {k} sees later actions"
        assert (gradient[:, :, : k + 1] != 0).all(), f"reward {k} does not see all earlier actions"


def test_all_steps_see_the_state():
    ensemble = make_ensemble().double()
    state, actions = inputs(MEMBERS)
    state.requires_grad_()
    outputs = by_step(ensemble(state, actions, ensemble.members()))
    for k in range(LENGTH):
        (gradient,) = th.autograd.grad(outputs[:, :, k].pow(2).sum(), state, retain_graph=True)
        assert (gradient != 0).all()


def test_positions_tell_the_order_of_actions():
    # With more than one block, what earlier tokens have seen would tell it as well.
    ensemble = make_ensemble((8,)).double()
    state, actions = inputs(MEMBERS)
    swapped = actions[:, :, [1, 0, 2, 3]]
    last = by_step(ensemble(state, actions, ensemble.members()))[:, :, -1]
    assert (last - by_step(ensemble(state, swapped, ensemble.members()))[:, :, -1]).abs().max() > 1e-3
    with th.no_grad():
        ensemble.positions[:] = ensemble.positions[:, :, :1]
    last = by_step(ensemble(state, actions, ensemble.members()))[:, :, -1]
    without = by_step(ensemble(state, swapped, ensemble.members()))[:, :, -1]
    th.testing.assert_close(without, last, rtol=1e-9, atol=1e-12)


# Members


def test_chosen_members_answer_as_among_all():
    ensemble = make_ensemble().double()
    state, actions = inputs(1)
    for_all = (MEMBERS, -1, -1)
    whole = by_step(ensemble(state.expand(*for_all), actions.expand(*for_all, -1), ensemble.members()))
    chosen = th.tensor([2, 0, 2, 1])
    some = by_step(ensemble(state.expand(4, -1, -1), actions.expand(4, -1, -1, -1), ensemble.members(chosen)))
    th.testing.assert_close(some, whole[chosen], rtol=1e-12, atol=1e-12)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (whole[first] - whole[second]).abs().max() > 0.01


def test_every_weight_of_a_member_gets_its_own_gradient():
    ensemble = make_ensemble().double()
    state, actions = inputs(MEMBERS)
    errors = (by_step(ensemble(state, actions, ensemble.members())) ** 2).sum(dim=(1, 2, 3))
    errors[1].backward()
    for name, parameter in ensemble.named_parameters():
        assert parameter.grad[1].any(), name
        assert not parameter.grad[[0, 2]].any(), name


def test_rows_do_not_depend_on_their_batch():
    ensemble = make_ensemble(dropout=0.3)
    state, actions = inputs(MEMBERS, batch=6, dtype=th.float32)
    members = ensemble.members(thinning=np.random.default_rng(0))
    whole = by_step(ensemble(state, actions, members))
    for row in range(6):
        alone = by_step(ensemble(state[:, row : row + 1], actions[:, row : row + 1], members))
        th.testing.assert_close(alone[:, 0], whole[:, row], rtol=1e-5, atol=1e-6)


def test_thinning_takes_units_of_the_feed_forward_parts():
    ensemble = make_ensemble((300, 300), dropout=0.2, n_heads=3)
    layers = ensemble.members(th.tensor([0, 1, 0]), np.random.default_rng(0))
    masks = []
    for k, (layer, weight) in enumerate(zip(layers[:-1], ensemble.weights, strict=True)):
        if k in (5, 9):  # out of the feed-forward part of each block
            missing = (layer.weight == 0).all(dim=-1)
            assert missing.shape == (3, 600)
            # 1,800 units: a standard error of 0.009.
            assert missing.float().mean().item() == pytest.approx(0.2, abs=0.04)
            th.testing.assert_close(layer.weight, weight[[0, 1, 0]] / 0.8 * ~missing.unsqueeze(-1))
            masks.append(missing)
        else:
            assert th.equal(layer.weight, weight[[0, 1, 0]])
    for mask, expected in zip(masks, ensemble.draw_missing(3, np.random.default_rng(0)), strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert not th.equal(masks[0], masks[1])
    assert not th.equal(masks[0][0], masks[0][2])


@pytest.mark.parametrize(("n_milestones", "steps"), [(None, [0, 1, 2, 3]), (1, [3]), (2, [1, 3])])
def test_milestones_are_some_of_all_steps(n_milestones, steps):
    every, some = make_ensemble(n_milestones=4).double(), make_ensemble(n_milestones=n_milestones).double()
    state, actions = inputs(MEMBERS)
    whole, part = every(state, actions, every.members()), some(state, actions, some.members())
    assert some.n_milestones == len(steps)
    assert th.equal(part.rewards, whole.rewards)
    assert th.equal(part.state_change, whole.state_change[:, :, steps])
    assert th.equal(part.ended, whole.ended[:, :, steps])
    assert th.equal(part.return_to_go, whole.return_to_go[:, :, steps])


def test_members_begin_different_and_within_the_bounds_of_linear():
    th.manual_seed(0)
    ensemble = AttentionEnsemble(STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, (64,), nn.SiLU, 0.0)
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        bound = weight.shape[1] ** -0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert bias.abs().max() <= bound
        assert not th.equal(weight[0], weight[1])
    assert ensemble.positions.std().item() == pytest.approx(0.02, rel=0.1)
    assert not th.equal(ensemble.positions[0], ensemble.positions[1])
    assert ensemble.n_heads == 4, "where nothing is said"


@pytest.mark.parametrize(("net_arch", "n_heads"), [((), 2), ((8, 16), 2), ((8,), 3), ((8,), 0), ((8,), -2)], ids=str)
def test_widths_and_heads_that_do_not_fit(net_arch, n_heads):
    with pytest.raises(ValueError, match=r"net_arch of attention members is .*, e.g. \[64, 64\] with 4 heads: got .* with"):
        make_ensemble(net_arch, n_heads=n_heads)


def test_milestones_that_do_not_divide_the_window():
    with pytest.raises(ValueError, match=f"n_milestones must divide sequence_length, got 3 and {LENGTH}"):
        make_ensemble(n_milestones=3)
