"""The closed form of the gradient on the actions equals autograd."""

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_rgrl.ensemble import MlpEnsemble
from sb3_rgrl.imagination import STATE_LIMIT, Units, has_closed_form, imagine, imagine_fast


def make(n_groups, batch, dim, action_dim, length, n_windows, net_arch, activation, seed, dtype=th.float64):
    th.manual_seed(seed)
    ensemble = MlpEnsemble(dim, action_dim, length, n_groups, net_arch, activation, dropout=0.1).to(dtype)
    state = th.randn(n_groups, batch, dim, dtype=dtype)
    actions = th.randn(n_groups, batch, length * n_windows, action_dim, dtype=dtype)
    units = Units(th.rand(dim, dtype=dtype), *(th.rand(1, dtype=dtype) + 0.5 for _ in range(4)))
    return ensemble, state, actions, units


def outcome_and_gradient(function, ensemble, state, actions, units, members):
    actions = actions.clone().requires_grad_()
    outcome = function(ensemble, state, actions, members, units)
    # Any function of both outputs will do; this one weighs every element differently.
    weights = th.linspace(0.5, 1.5, outcome.rewards.shape[-1], dtype=actions.dtype)
    error = ((outcome.rewards * weights).sum(dim=-1) + outcome.return_to_go - 3.0) ** 2
    (gradient,) = th.autograd.grad(error.sum(), actions)
    return outcome, gradient


@settings(max_examples=40, deadline=None)
@given(
    n_groups=st.integers(1, 3),
    batch=st.integers(1, 4),
    dim=st.integers(1, 5),
    action_dim=st.integers(1, 3),
    length=st.integers(1, 4),
    n_windows=st.integers(1, 4),
    net_arch=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    activation=st.sampled_from([nn.SiLU, nn.Tanh, nn.ReLU]),
    thinned=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_autograd(n_groups, batch, dim, action_dim, length, n_windows, net_arch, activation, thinned, seed):
    ensemble, state, actions, units = make(n_groups, batch, dim, action_dim, length, n_windows, net_arch, activation, seed)
    assert has_closed_form(ensemble)
    with th.no_grad():
        members = ensemble.members(thinning=th.Generator().manual_seed(seed) if thinned else None)
    plain, plain_gradient = outcome_and_gradient(imagine, ensemble, state, actions, units, members)
    fast, fast_gradient = outcome_and_gradient(imagine_fast, ensemble, state, actions, units, members)
    th.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)
    th.testing.assert_close(fast_gradient, plain_gradient, rtol=1e-9, atol=1e-10)


def test_equals_autograd_in_float32():
    ensemble, state, actions, units = make(5, 8, 4, 2, 5, 4, [64, 64], nn.SiLU, seed=0, dtype=th.float32)
    plain, plain_gradient = outcome_and_gradient(imagine, ensemble, state, actions, units, ensemble.members())
    fast, fast_gradient = outcome_and_gradient(imagine_fast, ensemble, state, actions, units, ensemble.members())
    th.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(fast_gradient, plain_gradient, rtol=1e-5, atol=1e-5 * float(plain_gradient.abs().max()))


def test_equals_autograd_where_states_are_clamped():
    ensemble, state, actions, units = make(5, 8, 4, 2, 5, 4, [64, 64], nn.SiLU, seed=0)
    units = units._replace(relative_change=units.relative_change * 500.0)
    expected = ensemble(state, actions[:, :, :5], ensemble.members())
    assert bool(((state + expected.state_change * units.relative_change).abs() > STATE_LIMIT).any())
    plain, plain_gradient = outcome_and_gradient(imagine, ensemble, state, actions, units, ensemble.members())
    fast, fast_gradient = outcome_and_gradient(imagine_fast, ensemble, state, actions, units, ensemble.members())
    th.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)
    th.testing.assert_close(fast_gradient, plain_gradient, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("activation", "net_arch"), [(nn.GELU, [8]), (nn.SiLU, [])])
def test_what_has_no_closed_form_is_told(activation, net_arch):
    assert not has_closed_form(MlpEnsemble(2, 1, 2, 2, net_arch, activation, dropout=0.0))
