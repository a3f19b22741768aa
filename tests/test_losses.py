"""The error of Eq. (3) against plain loops (tests/oracles_learning.py), and its gradient against finite differences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_rgrl.ensemble import (
    AttentionEnsemble,
    Ensemble,
    GruEnsemble,
    Layer,
    LstmEnsemble,
    MixedEnsemble,
    MlpEnsemble,
    RnnEnsemble,
    WindowPrediction,
)
from sb3_rgrl.losses import WindowErrors, window_errors
from sb3_rgrl.policies import MlpEnsemblePolicy
from sb3_rgrl.targets import Scales, WindowSamples
from tests import oracles_learning as oracle

M, BATCH, DIM, ACTION_DIM, LENGTH = 3, 4, 2, 2, 4
KINDS: dict[str, tuple[type[Ensemble], list[int]]] = {
    "mlp": (MlpEnsemble, [5, 4]),
    "gru": (GruEnsemble, [3, 2]),
    "rnn": (RnnEnsemble, [3]),
    "lstm": (LstmEnsemble, [3]),
    "attention": (AttentionEnsemble, [4]),
}
PLAIN_ACTIVATIONS: dict[type[nn.Module], Callable[[float], float]] = {nn.SiLU: oracle.silu, nn.Tanh: math.tanh}
PLAIN_KINDS = {MlpEnsemble: oracle.mlp, GruEnsemble: oracle.gru}


def make_ensemble(kind: str, n_milestones: int, n_members: int = M, activation_fn: type[nn.Module] = nn.SiLU) -> Ensemble:
    member_class, net_arch = KINDS[kind]
    th.manual_seed(0)
    ensemble = member_class(
        DIM, ACTION_DIM, LENGTH, n_members, net_arch, activation_fn, dropout=0.4, n_milestones=n_milestones
    ).double()
    for parameter in ensemble.parameters():
        # Far from the calm of first weights: predictions of all sizes.
        parameter.data *= 2.0
    return ensemble


def make_scales(seed: int = 0) -> Scales:
    scales, rng = Scales(DIM).double(), np.random.default_rng(seed)
    states, changes = rng.normal([1.0, -3.0], [2.0, 0.5], (50, DIM)), rng.normal(0.0, [1.0, 0.2], (50, DIM))
    ends = th.zeros(50, 1, dtype=th.float64)
    ends[:15] = 1.0
    rewards = th.as_tensor(rng.normal(5.0, 3.0, (50, LENGTH)))
    scales.learn_windows(th.as_tensor(states), th.as_tensor(changes)[:, None], rewards + 4.0 * ends, ends)
    scales.learn_returns(th.as_tensor(rng.normal(-10.0, 7.0, 50)), th.as_tensor(rng.uniform(0.0, 1.0, 50)))
    return scales


def plain_units(scales: Scales) -> oracle.PlainUnits:
    return oracle.PlainUnits(
        scales.state.mean.tolist(),
        scales.state.std.tolist(),
        scales.state_change.std.tolist(),
        scales.step_reward.mean.item(),
        scales.step_reward.std.item(),
        scales.return_to_go.mean.item(),
        scales.return_to_go.std.item(),
        scales.end_reward.mean.item(),
        scales.end_reward.std.item(),
        float("inf"),
    )


def make_samples(
    n_windows: int, n_milestones: int, n_members: int = M, seed: int = 0
) -> tuple[WindowSamples, th.Tensor, th.Tensor]:
    """Samples of ``n_windows`` windows; row 0 never ends, the others end at the first, second, ... milestone."""
    rng, shape = np.random.default_rng(seed), (n_members, BATCH)
    n_told, n_steps = n_windows * n_milestones, n_windows * LENGTH
    terminated = np.zeros((*shape, n_told))
    for row in range(1, BATCH):
        terminated[:, row, row - 1 :] = 1.0
    states, next_states = rng.normal(size=(*shape, DIM)), rng.normal(size=(*shape, n_told, DIM))
    windows = WindowSamples(
        indices=np.arange(n_members * BATCH).reshape(shape),
        observations=th.as_tensor(states),
        actions=th.as_tensor(rng.normal(size=(*shape, n_steps, ACTION_DIM))),
        rewards=th.as_tensor(rng.normal(4.0, 2.0, (*shape, n_steps))),
        next_observations=th.as_tensor(next_states),
        terminated=th.as_tensor(terminated),
        returns_to_go=th.as_tensor(rng.normal(-8.0, 9.0, (*shape, n_told))),
        return_weights=th.as_tensor(rng.uniform(0.0, 1.0, (*shape, n_told))),
    )
    return windows, windows.observations, windows.next_observations


def plain_window(windows: WindowSamples, states: th.Tensor, next_states: th.Tensor, i: int, k: int) -> oracle.PlainWindow:
    parts = (
        states,
        windows.actions,
        windows.rewards,
        next_states,
        windows.terminated,
        windows.returns_to_go,
        windows.return_weights,
    )
    return oracle.PlainWindow(*(part[i, k].tolist() for part in parts))


def plain_member(ensemble: Ensemble, layers: list[Layer], i: int) -> oracle.Predict:
    """Member i by hand, or, of the kinds that are not written out, by asking it for one window alone."""
    own = [Layer(layer.weight[i : i + 1].detach(), layer.bias[i : i + 1].detach()) for layer in layers]
    if type(ensemble) in PLAIN_KINDS:
        plain = [oracle.LinearLayer(layer.weight[0].tolist(), layer.bias[0, 0].tolist()) for layer in own]
        activation = PLAIN_ACTIVATIONS[type(ensemble.activation)]
        return PLAIN_KINDS[type(ensemble)](plain, activation, ensemble.n_milestones)

    def predict(state: oracle.Vector, actions: oracle.Rows) -> oracle.Expected:
        with th.no_grad():
            asked = th.tensor(state, dtype=th.float64), th.tensor(actions, dtype=th.float64)
            expected: WindowPrediction = ensemble(asked[0][None, None], asked[1][None, None], own)
        return oracle.Expected(*(part[0, 0].tolist() for part in expected))

    return predict


def assert_equals_oracle(
    errors: WindowErrors, members: list[oracle.Predict], samples: tuple, scales: Scales, *weights: float
) -> None:
    units = plain_units(scales)
    assert errors.losses.shape == errors.rewards.shape == errors.returns.shape == (len(members), BATCH)
    for i, member in enumerate(members):
        for k in range(BATCH):
            expected = oracle.window_errors(member, plain_window(*samples, i, k), LENGTH, units, *weights)
            assert errors.losses[i, k].item() == pytest.approx(expected.loss, rel=1e-9)
            assert errors.rewards[i, k].item() == pytest.approx(expected.rewards, rel=1e-9)
            assert errors.returns[i, k].item() == pytest.approx(expected.returns, rel=1e-9)
            assert errors.states[i, k].item() == pytest.approx(expected.state_loss, rel=1e-9)
    assert not any(part.requires_grad for part in (errors.rewards, errors.returns, errors.states))


@pytest.mark.parametrize("return_weight", [0.0, 0.7])
@pytest.mark.parametrize("n_windows", [1, 3])
@pytest.mark.parametrize("n_milestones", [1, 2, LENGTH])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_equal_plain_loops(kind, n_milestones, n_windows, return_weight):
    ensemble, scales, samples = make_ensemble(kind, n_milestones), make_scales(), make_samples(n_windows, n_milestones)
    layers = ensemble.members()
    errors = window_errors(ensemble, layers, scales, *samples, return_weight)
    members = [plain_member(ensemble, layers, i) for i in range(M)]
    assert_equals_oracle(errors, members, samples, scales, return_weight)


@pytest.mark.parametrize("return_expectile", [0.2, 0.9])
def test_expectiles_of_returns_equal_plain_loops(return_expectile):
    ensemble, scales, samples = make_ensemble("mlp", 2), make_scales(), make_samples(3, 2)
    layers = ensemble.members()
    errors = window_errors(ensemble, layers, scales, *samples, 0.7, return_expectile)
    members = [plain_member(ensemble, layers, i) for i in range(M)]
    assert_equals_oracle(errors, members, samples, scales, 0.7, return_expectile)


def test_errors_where_expected_states_are_out_of_reach_equal_plain_loops():
    ensemble, scales, samples = make_ensemble("mlp", 2), make_scales(), make_samples(3, 2)
    scales.state_change.std *= 50.0
    layers, units = ensemble.members(), plain_units(scales)
    members = [plain_member(ensemble, layers, i) for i in range(M)]
    starts = []
    for i in range(M):
        window = plain_window(*samples, i, 0)
        relative_change = oracle.relative_change_of(units)
        starts += [start for start, _ in oracle.walk(members[i], window.state, window.actions, LENGTH, relative_change)]
    clamped = [number for start in starts for number in start if abs(number) == oracle.STATE_LIMIT]
    assert 0 < len(clamped) < 2 * M * DIM
    errors = window_errors(ensemble, layers, scales, *samples, return_weight=0.7)
    assert_equals_oracle(errors, members, samples, scales, 0.7)


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_errors_of_thinned_members_equal_plain_loops(kind):
    ensemble, scales, samples = make_ensemble(kind, 2, activation_fn=nn.Tanh), make_scales(), make_samples(2, 2)
    layers = ensemble.members(thinning=np.random.default_rng(0))
    errors = window_errors(ensemble, layers, scales, *samples, return_weight=1.0)
    whole = window_errors(ensemble, ensemble.members(), scales, *samples, return_weight=1.0)
    assert not th.allclose(errors.losses, whole.losses)
    assert_equals_oracle(errors, [plain_member(ensemble, layers, i) for i in range(M)], samples, scales, 1.0)


def test_errors_of_a_mixed_ensemble_equal_plain_loops():
    groups = [make_ensemble("mlp", 1, n_members=2), make_ensemble("gru", 1, n_members=1)]
    ensemble, scales, samples = MixedEnsemble(groups), make_scales(), make_samples(3, 1)
    errors = window_errors(ensemble, ensemble.members(), scales, *samples, return_weight=0.5)
    members = [plain_member(group, group.members(), i) for group in groups for i in range(group.n_members)]
    assert_equals_oracle(errors, members, samples, scales, 0.5)


def test_errors_by_hand_of_members_that_expect_nothing():
    # All outputs are 0: the errors are the standardised targets, and units are 0 and 1 before anything was seen.
    ensemble, scales = make_ensemble("mlp", 1, n_members=1), Scales(DIM).double()
    for parameter in ensemble.parameters():
        parameter.data.zero_()
    ones = th.ones(1, 1, 1, dtype=th.float64)
    windows = WindowSamples(
        indices=np.zeros((1, 1), dtype=np.int64),
        observations=th.tensor([[[1.0, 1.0]]], dtype=th.float64),
        actions=th.zeros(1, 1, LENGTH, ACTION_DIM, dtype=th.float64),
        rewards=th.tensor([[[1.0, -2.0, 3.0, 0.0]]], dtype=th.float64),
        next_observations=th.tensor([[[[2.0, 4.0]]]], dtype=th.float64),
        terminated=ones,
        returns_to_go=6.0 * ones,
        return_weights=0.5 * ones,
    )
    states = windows.observations, windows.next_observations
    errors = window_errors(ensemble, ensemble.members(), scales, windows, *states, return_weight=0.1)
    # (rewards, squared where an episode ends) + (state, 1 and, as it is more than 1, 2 * 3 - 1) + (end) + (return)
    of_end, of_return = math.log(1.0 + math.exp(4.0)), 0.1 * 0.5 * 36.0
    assert errors.losses.item() == pytest.approx(14.0 / 4 + (1.0 + 5.0) / 2 + of_end + of_return)
    # delta_ik of the paper: absolute errors of the rewards, summed over the window
    assert errors.rewards.item() == pytest.approx(6.0)
    assert errors.returns.item() == pytest.approx(0.1 * 0.5 * 6.0)
    assert errors.states.item() == pytest.approx(5.0)
    goes_on = windows._replace(terminated=0.0 * ones)
    errors = window_errors(ensemble, ensemble.members(), scales, goes_on, *states, return_weight=0.1)
    of_no_end = math.log(1.0 + math.exp(-4.0))
    assert errors.losses.item() == pytest.approx(14.0 / 4 + (1.0 + 5.0) / 2 + of_no_end + of_return)
    assert errors.rewards.item() == pytest.approx(6.0)


# What does not count


def with_garbage_after_the_end(samples: tuple) -> tuple:
    """Nonsense in everything that is told after the end of an episode."""
    windows, states, next_states = samples
    over = windows.terminated.roll(1, dims=-1).bool()
    over[..., 0] = False
    steps_over = over.repeat_interleave(windows.rewards.shape[-1] // over.shape[-1], dim=-1)
    garbage = windows._replace(
        rewards=th.where(steps_over, 1e3, windows.rewards),
        returns_to_go=th.where(over, -1e3, windows.returns_to_go),
        return_weights=th.where(over, 1.0, windows.return_weights),
    )
    return garbage, states, th.where(over[..., None], 1e3, next_states)


@pytest.mark.parametrize("n_milestones", [1, LENGTH])
@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_nothing_after_the_end_of_an_episode_counts_but_that_it_is_over(kind, n_milestones):
    ensemble, scales, samples = make_ensemble(kind, n_milestones), make_scales(), make_samples(3, n_milestones)
    garbage = with_garbage_after_the_end(samples)
    assert not th.equal(garbage[0].rewards, samples[0].rewards)
    results = []
    for data in (samples, garbage):
        errors = window_errors(ensemble, ensemble.members(), scales, *data, return_weight=1.0)
        results.append((errors, th.autograd.grad(errors.losses.sum(), list(ensemble.parameters()))))
    th.testing.assert_close(results[0], results[1], rtol=0.0, atol=0.0)


class Tells(Ensemble):
    """One member that tells ends by the number of the window alone, and nothing else."""

    def __init__(self, ended: list[float]) -> None:
        super().__init__(DIM, ACTION_DIM, LENGTH, 1, 1, 0.0, "torch")
        self.ended = nn.Parameter(th.tensor(ended, dtype=th.float64))
        self.n_asked = 0

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[Layer]) -> WindowPrediction:
        ended = self.ended[self.n_asked].expand(*state.shape[:2], 1)
        self.n_asked += 1
        nothing = th.zeros(*state.shape[:2], LENGTH, dtype=th.float64)
        return WindowPrediction(nothing, th.zeros_like(state)[:, :, None], ended, nothing[..., :1], nothing)


def losses_of_ends(ended: list[float], end: int) -> tuple[float, list[float]]:
    """Loss and its gradient by what is told of ends, of an episode that ends with window number ``end``."""
    n = len(ended)
    ensemble, scales = Tells(ended), Scales(DIM).double()
    zeros = th.zeros(1, 1, n, dtype=th.float64)
    terminated = zeros.clone()
    terminated[..., end:] = 1.0
    states = th.zeros(1, 1, DIM, dtype=th.float64), th.zeros(1, 1, n, DIM, dtype=th.float64)
    actions, rewards = zeros.new_zeros(1, 1, n * LENGTH, ACTION_DIM), zeros.new_zeros(1, 1, n * LENGTH)
    windows = WindowSamples(np.zeros((1, 1), np.int64), states[0], actions, rewards, states[1], terminated, zeros, zeros)
    loss = window_errors(ensemble, [], scales, windows, *states, return_weight=1.0).losses
    (gradient,) = th.autograd.grad(loss.sum(), ensemble.ended)
    return n * loss.item(), (n * gradient).tolist()


def test_an_end_that_was_missed_should_have_come_by_then():
    # Told 1, an end is as likely as not: the surprises of no end, of the end, and of being over by the third window.
    loss, gradient = losses_of_ends([1.0, 1.0, 1.0], end=1)
    assert loss == pytest.approx(2 * math.log(2.0) - math.log(1.0 - 0.5**3))
    # Whether it would be over by the third window depends on all three; each logit is 4 times what is told.
    missed = 4.0 * 0.5 * 0.5**3 / (1.0 - 0.5**3)
    assert gradient == pytest.approx([4.0 * 0.5 - missed, -4.0 * 0.5 - missed, -missed])


def test_an_end_that_was_told_in_time_leaves_later_windows_alone():
    loss, gradient = losses_of_ends([-9.0, 9.0, 0.0], end=1)
    assert loss == pytest.approx(0.0, abs=1e-12)
    assert gradient == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


def test_an_end_that_nobody_thought_of_is_surprising_but_not_infinitely_so():
    loss, gradient = losses_of_ends([-2.0, -2.0, -2.0], end=1)
    of_end = math.exp(-12.0)
    assert loss == pytest.approx(12.0 - math.log(3.0 * of_end), rel=1e-5)
    assert gradient[2] == pytest.approx(-4.0 / 3.0, rel=1e-4)
    loss, gradient = losses_of_ends([-1e4, -1e4, -1e4], end=1)
    assert math.isfinite(loss)
    assert all(map(math.isfinite, gradient))


def test_return_that_nobody_observed_does_not_count():
    ensemble, scales, (windows, *states) = make_ensemble("gru", 2), make_scales(), make_samples(2, 2)
    weights = windows.return_weights.clone()
    weights[:, :, 0] = 0.0
    other = windows.returns_to_go.clone()
    other[:, :, 0] = 1e6
    one, two = (
        window_errors(
            ensemble,
            ensemble.members(),
            scales,
            windows._replace(return_weights=weights, returns_to_go=returns),
            *states,
            return_weight=1.0,
        )
        for returns in (windows.returns_to_go, other)
    )
    th.testing.assert_close(one, two, rtol=0.0, atol=0.0)


# Gradients


def central_differences(function: Callable[[], float], tensor: th.Tensor, step: float = 1e-5) -> th.Tensor:
    """Derivative by each element of the tensor, which is moved in place."""
    flat, gradient = tensor.data.view(-1), th.empty(tensor.numel(), dtype=th.float64)
    for k in range(len(flat)):
        before, values = flat[k].item(), []
        for sign in (1.0, -1.0):
            flat[k] = before + sign * step
            values.append(function())
        flat[k] = before
        gradient[k] = (values[0] - values[1]) / (2.0 * step)
    return gradient.view(tensor.shape)


@pytest.mark.parametrize("n_milestones", [1, 2])
@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_gradient_of_the_weights_equals_finite_differences_of_the_oracle(kind, n_milestones):
    # Two windows in a row, so the first one learns from what its state makes of the second one, too.
    ensemble, scales, samples = make_ensemble(kind, n_milestones, n_members=2), make_scales(), make_samples(2, n_milestones, 2)
    units = plain_units(scales)
    losses = window_errors(ensemble, ensemble.members(), scales, *samples, return_weight=0.7).losses
    gradients = th.autograd.grad(losses[1, [0, 2]].sum(), list(ensemble.parameters()))

    def plain_loss() -> float:
        member = plain_member(ensemble, ensemble.members(), 1)
        errors = [oracle.window_errors(member, plain_window(*samples, 1, k), LENGTH, units, 0.7) for k in (0, 2)]
        return sum(error.loss for error in errors)

    for parameter, gradient in zip(ensemble.parameters(), gradients, strict=True):
        expected = central_differences(plain_loss, parameter[1])
        th.testing.assert_close(gradient[1], expected, rtol=1e-5, atol=1e-7)
        assert not gradient[0].any(), "members learn from each other's errors"


def test_gradient_of_the_states_leaves_the_target_where_it_is():
    # States come from a features extractor, which may learn: through what members make of a state, but not by moving the
    # state that changes are counted from toward the one that is expected.
    ensemble, scales, (windows, states, next_states) = make_ensemble("mlp", 1), make_scales(), make_samples(3, 1)
    states = states.clone().requires_grad_()
    losses = window_errors(ensemble, ensemble.members(), scales, windows, states, next_states, return_weight=0.7).losses
    (gradient,) = th.autograd.grad(losses.sum(), states)
    units = plain_units(scales)
    for i in range(M):
        member = plain_member(ensemble, ensemble.members(), i)
        for k in range(BATCH):
            window, moved = plain_window(windows, states, next_states, i, k), states.detach()[i, k].clone()

            def plain_loss(member=member, window=window, moved=moved) -> float:
                own = window._replace(state=moved.tolist())
                return oracle.window_errors(member, own, LENGTH, units, 0.7, origin=window.state).loss

            th.testing.assert_close(gradient[i, k], central_differences(plain_loss, moved), rtol=1e-5, atol=1e-7)


class LearningFeatures(BaseFeaturesExtractor):
    """A features extractor with weights."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=DIM)
        self.linear = nn.Linear(observation_space.shape[0], DIM)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(observations.to(self.linear.weight))


def policy_and_windows(**kwargs: Any) -> tuple[MlpEnsemblePolicy, WindowSamples]:
    th.manual_seed(0)
    space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
    policy = MlpEnsemblePolicy(
        space,
        spaces.Box(-1.0, 1.0, (ACTION_DIM,), dtype=np.float32),
        lambda _: 1e-3,
        ensemble_size=M,
        sequence_length=LENGTH,
        plan_horizon=LENGTH,
        net_arch=[4],
        dropout=0.4,
        features_extractor_class=LearningFeatures,
        **kwargs,
    ).double()
    policy.scales = make_scales()
    rng, (windows, _, _) = np.random.default_rng(3), make_samples(2, 1)
    return policy, windows._replace(
        observations=th.as_tensor(np.float32(rng.normal(size=(M, BATCH, 3)))),
        next_observations=th.as_tensor(np.float32(rng.normal(size=(M, BATCH, 2, 3)))),
    )


def test_features_extractor_learns_through_the_states_alone():
    policy, windows = policy_and_windows(return_weight=0.3)
    linear = policy.features_extractor.linear
    next_states = policy.next_states_of(windows)
    assert not next_states.requires_grad
    th.testing.assert_close(next_states, linear(windows.next_observations.double()).detach(), rtol=1e-12, atol=1e-12)

    policy.return_expectile = 0.5
    policy.window_errors(windows, thin=False).losses.sum().backward()
    states = linear(windows.observations.double()).detach().requires_grad_()
    errors = window_errors(policy.ensemble, policy.ensemble.members(), policy.scales, windows, states, next_states, 0.3)
    (by_state,) = th.autograd.grad(errors.losses.sum(), states)
    expected = th.einsum("gbd,gbo->do", by_state, windows.observations.double())
    th.testing.assert_close(linear.weight.grad, expected, rtol=1e-9, atol=1e-12)


def test_policy_thins_its_members_when_they_learn():
    policy, windows = policy_and_windows()
    whole = policy.window_errors(windows, thin=False).losses
    th.testing.assert_close(policy.window_errors(windows, thin=False).losses, whole, rtol=0.0, atol=0.0)
    assert not th.allclose(policy.window_errors(windows).losses, whole)


def test_element_that_hardly_changes_keeps_its_digits():
    # In single precision; its changes are a hundred-thousandth of the spread of its values.
    rng, n = np.random.default_rng(0), M * BATCH
    states = np.float32(rng.normal(0.0, [1.0, 3.0], (M, BATCH, DIM)))
    next_states = np.float32(states + rng.normal(0.0, [1e-5, 1.0], states.shape))[:, :, None]
    changes = (next_states.astype(np.float64) - states[:, :, None]).reshape(n, DIM)
    scales, windows = Scales(DIM), make_samples(1, 1)[0]
    scales.learn_windows(
        th.as_tensor(states.reshape(n, DIM)), th.as_tensor(changes)[:, None], windows.rewards.flatten(end_dim=1)
    )
    ensemble = make_ensemble("mlp", 1).float()
    windows = WindowSamples(windows.indices, *(part.float() for part in windows[1:]))
    samples = windows, th.as_tensor(states), th.as_tensor(next_states)
    errors = window_errors(ensemble, ensemble.members(), scales, *samples, return_weight=1.0)
    units = plain_units(scales)
    for i in range(M):
        member = plain_member(ensemble, ensemble.members(), i)
        for k in range(BATCH):
            expected = oracle.window_errors(member, plain_window(*samples, i, k), LENGTH, units, 1.0)
            assert errors.losses[i, k].item() == pytest.approx(expected.loss, rel=1e-5)
