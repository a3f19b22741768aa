"""Eq. (5) against a loop over every single weight."""

import pytest
import torch as th
from torch import nn

from sb3_rgrl.ewc import ElasticWeightConsolidation

STRENGTH = 1.7


def make_weights() -> list[nn.Parameter]:
    generator = th.Generator().manual_seed(0)
    shapes = [(2, 3, 4), (2, 1, 4), (2, 4, 1)]
    return [nn.Parameter(th.randn(shape, generator=generator, dtype=th.float64)) for shape in shapes]


def make_loss(weights: list[nn.Parameter], rows: slice) -> th.Tensor:
    """Sum of the errors of a small net on some of 12 rows, divided by 12: shares of the mean over all."""
    generator = th.Generator().manual_seed(1)
    x = th.randn(2, 12, 3, generator=generator, dtype=th.float64)[:, rows]
    y = th.randn(2, 12, 1, generator=generator, dtype=th.float64)[:, rows]
    prediction = th.tanh(x @ weights[0] + weights[1]) @ weights[2]
    return ((prediction - y) ** 2).sum() / 12


def move(weights: list[nn.Parameter], seed: int = 2) -> None:
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for weight in weights:
            weight += 0.3 * th.randn(weight.shape, generator=generator, dtype=th.float64)


def test_penalty_and_its_gradient_are_eq_5():
    weights = make_weights()
    ewc = ElasticWeightConsolidation(weights, STRENGTH)
    anchors = [weight.detach().clone() for weight in weights]
    fisher = [gradient**2 for gradient in th.autograd.grad(make_loss(weights, slice(None)), weights)]
    ewc.consolidate(iter([make_loss(weights, slice(None))]))
    move(weights)

    expected = 0.0
    expected_gradients = []
    for weight, anchor, importance in zip(weights, anchors, fisher, strict=True):
        gradient = th.zeros_like(weight)
        flat = zip(weight.flatten().tolist(), anchor.flatten().tolist(), importance.flatten().tolist(), strict=True)
        for j, (w, w_star, f) in enumerate(flat):
            expected += STRENGTH / 2 * f * (w - w_star) ** 2
            gradient.view(-1)[j] = STRENGTH * f * (w - w_star)
        expected_gradients.append(gradient)
    assert expected > 1e-3, "the test needs something to pull at"
    penalty = ewc.penalty()
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(expected, rel=1e-9)
    for gradient, wanted in zip(th.autograd.grad(penalty, weights), expected_gradients, strict=True):
        th.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)


def test_consolidating_in_shares_equals_one_batch():
    weights = make_weights()
    whole, shares = (ElasticWeightConsolidation(weights, STRENGTH) for _ in range(2))
    whole.consolidate([make_loss(weights, slice(None))])
    shares.consolidate(make_loss(weights, rows) for rows in (slice(0, 5), slice(5, 6), slice(6, 12)))
    for name, value in whole.state_dict().items():
        th.testing.assert_close(shares.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert any(value.abs().sum() > 0 for name, value in whole.state_dict().items() if name.startswith("fisher"))


def test_no_pull_before_the_first_phase_and_at_the_anchor():
    weights = make_weights()
    ewc = ElasticWeightConsolidation(weights, STRENGTH)
    move(weights)
    assert ewc.penalty().item() == 0.0
    ewc.consolidate([make_loss(weights, slice(None))])
    assert ewc.penalty().item() == 0.0
    assert all(gradient.abs().max() == 0.0 for gradient in th.autograd.grad(ewc.penalty(), weights))


def test_anchor_is_that_of_the_last_phase_only():
    weights = make_weights()
    ewc, fresh = (ElasticWeightConsolidation(weights, STRENGTH) for _ in range(2))
    ewc.consolidate([make_loss(weights, slice(0, 6))])
    move(weights)
    ewc.consolidate([make_loss(weights, slice(6, 12))])
    fresh.consolidate([make_loss(weights, slice(6, 12))])
    move(weights, seed=3)
    assert ewc.penalty().item() == fresh.penalty().item() > 0.0


def test_consolidating_leaves_weights_and_their_gradients_alone():
    weights = make_weights()
    before = [weight.detach().clone() for weight in weights]
    ElasticWeightConsolidation(weights, STRENGTH).consolidate([make_loss(weights, slice(None))])
    for weight, same in zip(weights, before, strict=True):
        assert th.equal(weight.detach(), same)
        assert weight.grad is None


def test_strength_0_keeps_nothing_and_costs_nothing():
    weights = make_weights()
    ewc = ElasticWeightConsolidation(weights, 0.0)
    assert ewc.state_dict() == {}
    move(weights)
    assert ewc.penalty().item() == 0.0
    assert not ewc.penalty().requires_grad


def test_weights_belong_to_the_policy():
    ewc = ElasticWeightConsolidation(make_weights(), STRENGTH)
    assert list(ewc.parameters()) == []
    assert set(ewc.state_dict()) == {f"{kind}_{j}" for kind in ("anchor", "fisher") for j in range(3)}


def test_state_dict_round_trip():
    weights = make_weights()
    ewc, other = (ElasticWeightConsolidation(weights, STRENGTH) for _ in range(2))
    ewc.consolidate([make_loss(weights, slice(None))])
    other.load_state_dict(ewc.state_dict())
    move(weights)
    assert other.penalty().item() == ewc.penalty().item() > 0.0


@pytest.mark.parametrize("strength", [-1e-9, -1.0])
def test_negative_strength_is_refused(strength):
    with pytest.raises(ValueError, match="must not be negative"):
        ElasticWeightConsolidation(make_weights(), strength)


def two_tasks(strength: float, seed: int) -> tuple[float, float]:
    """
    The first task sees the first input alone and asks for y = 2 x_1; the second sees equal inputs and asks for y = 0,
    which any weights with w_1 = -w_2 give. Keeping w_1 and moving w_2 alone serves both.

    :return: Errors on both tasks after learning one after the other.
    """
    th.manual_seed(seed)
    net = nn.Linear(2, 1, bias=False)
    u = th.randn(64, 1)
    tasks = [(th.cat([u, th.zeros(64, 1)], dim=1), 2.0 * u), (th.cat([u, u], dim=1), th.zeros(64, 1))]
    ewc = ElasticWeightConsolidation(net.parameters(), strength)
    # The first phase ends before its optimum: there, the squared gradient of the whole batch would vanish.
    for (x, y), n_updates, learning_rate in zip(tasks, (20, 600), (0.05, 0.01), strict=True):
        optimizer = th.optim.SGD(net.parameters(), lr=learning_rate)
        for _ in range(n_updates):
            optimizer.zero_grad()
            (((net(x) - y) ** 2).mean() + ewc.penalty()).backward()
            optimizer.step()
        if strength > 0:
            ewc.consolidate([((net(x) - y) ** 2).mean()])
    errors = [((net(x) - y) ** 2).mean().item() for x, y in tasks]
    return errors[0], errors[1]


@pytest.mark.parametrize("seed", range(4))
def test_consolidated_net_forgets_less_and_still_learns(seed):
    free, held = two_tasks(0.0, seed), two_tasks(100.0, seed)
    assert free[1] < 1e-2
    assert held[1] < 1e-2
    assert held[0] < 0.5 * free[0]
