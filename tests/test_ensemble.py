"""Stacked members against separate nets of plain torch with the same weights."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_rgrl.ensemble import MlpEnsemble, WindowPrediction
from sb3_rgrl.ensemble.initializers import WEIGHT_INITIALIZERS, initialize

STATE_DIM, ACTION_DIM, LENGTH, MEMBERS = 3, 2, 4, 5


def make_ensemble(net_arch: tuple[int, ...] = (16, 8), dropout: float = 0.0, activation_fn=nn.SiLU, **kwargs) -> MlpEnsemble:
    th.manual_seed(0)
    return MlpEnsemble(STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, net_arch, activation_fn, dropout, **kwargs)


def separate_nets(ensemble: MlpEnsemble, activation_fn: type[nn.Module]) -> list[nn.Sequential]:
    """One plain net for each member, with the member's weights."""
    nets = []
    for member in range(ensemble.n_members):
        parts: list[nn.Module] = []
        for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.weight.data = weight.data[member].T.clone()
            layer.bias.data = bias.data[member, 0].clone()
            parts += [layer, activation_fn()]
        nets.append(nn.Sequential(*parts[:-1]))
    return nets


def concatenated(prediction: WindowPrediction) -> th.Tensor:
    """As one output vector, in the order of the net's last layer: milestones lie side by side."""
    changes = prediction.state_change.flatten(start_dim=2)
    told = prediction.rewards, changes, prediction.ended, prediction.return_to_go, prediction.end_rewards
    return th.cat(told, dim=-1)


def inputs(n_groups: int, batch: int, seed: int = 1) -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(seed)
    state = th.randn(n_groups, batch, STATE_DIM, generator=generator)
    return state, th.randn(n_groups, batch, LENGTH, ACTION_DIM, generator=generator)


@pytest.mark.parametrize("activation_fn", [nn.SiLU, nn.Tanh])
@pytest.mark.parametrize("net_arch", [(), (16,), (16, 8)], ids=str)
@pytest.mark.parametrize("members", [None, [3, 0, 3, 1], [4]], ids=str)
@pytest.mark.parametrize("n_milestones", [1, 2, 4])
def test_stacked_members_equal_separate_nets(n_milestones, net_arch, members, activation_fn):
    ensemble = make_ensemble(net_arch, activation_fn=activation_fn, n_milestones=n_milestones)
    nets = separate_nets(ensemble, activation_fn)
    chosen = range(MEMBERS) if members is None else members
    state, actions = inputs(len(chosen), batch=6)
    actions.requires_grad_()
    index = None if members is None else th.tensor(members)
    prediction = ensemble(state, actions, ensemble.members(index))
    assert prediction.rewards.shape == (len(chosen), 6, LENGTH)
    assert prediction.state_change.shape == (len(chosen), 6, n_milestones, STATE_DIM)
    assert prediction.ended.shape == prediction.return_to_go.shape == (len(chosen), 6, n_milestones)

    outputs = concatenated(prediction)
    # A weight of its own for each output, so that outputs that changed places show in the gradient.
    weights = th.randn(outputs.shape, generator=th.Generator().manual_seed(2))
    (gradient,) = th.autograd.grad((weights * outputs).sum(), actions)
    for group, member in enumerate(chosen):
        for row in range(6):
            own = actions[group, row].detach().clone().requires_grad_()
            # s, then the first action, then the second ..., as the docstring tells.
            expected = nets[member](th.cat([state[group, row], *own]))
            th.testing.assert_close(outputs[group, row], expected, rtol=1e-6, atol=1e-6)
            (expected_gradient,) = th.autograd.grad((weights[group, row] * expected).sum(), own)
            th.testing.assert_close(gradient[group, row], expected_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_milestones", [1, 2])
def test_gradients_of_the_weights_equal_those_of_separate_nets(n_milestones):
    ensemble = make_ensemble(n_milestones=n_milestones)
    nets = separate_nets(ensemble, nn.SiLU)
    state, actions = inputs(MEMBERS, batch=6)
    (concatenated(ensemble(state, actions, ensemble.members())) ** 2).sum().backward()
    for member, net in enumerate(nets):
        (net(th.cat([state[member], actions[member].flatten(1)], dim=-1)) ** 2).sum().backward()
        linears = [layer for layer in net if isinstance(layer, nn.Linear)]
        for weight, bias, linear in zip(ensemble.weights, ensemble.biases, linears, strict=True):
            th.testing.assert_close(weight.grad[member], linear.weight.grad.T, rtol=1e-5, atol=1e-5)
            th.testing.assert_close(bias.grad[member, 0], linear.bias.grad, rtol=1e-5, atol=1e-5)


def test_members_begin_different_and_within_the_bounds_of_linear():
    ensemble = make_ensemble((100, 200), state_gain=None)
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        # torch.nn.Linear draws both within one over the square root of the number of inputs.
        bound = weight.shape[1] ** -0.5
        assert 0.95 * bound < weight.abs().max() <= bound
        assert bias.abs().max() <= bound
        assert abs(weight.mean()) < 0.05 * bound
        for member in range(1, MEMBERS):
            assert not th.equal(weight[0], weight[member])
            assert not th.equal(bias[0], bias[member])


def test_rows_do_not_depend_on_their_batch():
    ensemble = make_ensemble(dropout=0.3)
    state, actions = inputs(MEMBERS, batch=6)
    for thinning in (None, np.random.default_rng(0)):
        members = ensemble.members(thinning=thinning)
        whole = concatenated(ensemble(state, actions, members))
        for row in range(6):
            alone = concatenated(ensemble(state[:, row : row + 1], actions[:, row : row + 1], members))
            th.testing.assert_close(alone[:, 0], whole[:, row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chosen", [None, [3, 0, 3]], ids=str)
def test_no_thinning_without_dropout_or_without_a_generator(chosen):
    index = None if chosen is None else th.tensor(chosen)
    for ensemble, generator in ((make_ensemble(dropout=0.0), np.random.default_rng(0)), (make_ensemble(dropout=0.5), None)):
        before = None if generator is None else generator.bit_generator.state
        layers = ensemble.members(index, generator)
        for layer, weight, bias in zip(layers, ensemble.weights, ensemble.biases, strict=True):
            assert th.equal(layer.weight, weight if index is None else weight[index])
            assert th.equal(layer.bias, bias if index is None else bias[index])
        if generator is not None:
            assert generator.bit_generator.state == before, "a rate of 0 costs draws"


def missing_units(ensemble: MlpEnsemble, generator: np.random.Generator, chosen: list[int] | None = None) -> list[th.Tensor]:
    """For each hidden layer, which units of the asked members are missing, read off the weights, shape (g, width)."""
    index = None if chosen is None else th.tensor(chosen)
    return [(layer.weight == 0).all(dim=-1) for layer in ensemble.members(index, generator)[1:]]


def test_thinning_has_its_rate_and_is_drawn_anew_for_each_member_and_time():
    ensemble, generator = make_ensemble((500, 400), dropout=0.2), np.random.default_rng(0)
    asked = [0, 1, 2, 3, 4, 0, 0, 0]
    missing = missing_units(ensemble, generator, asked)
    assert [mask.shape for mask in missing] == [(8, 500), (8, 400)]
    for mask in missing:
        # 3,200 units at least: a standard error of 0.007.
        assert mask.float().mean().item() == pytest.approx(0.2, abs=0.03)
        # Groups that the same member got are thinned each for itself.
        assert not th.equal(mask[0], mask[5])
        assert not th.equal(mask[0], mask[1])
    assert not th.equal(missing[0][:, :400], missing[1])
    assert not th.equal(missing_units(ensemble, generator, asked)[0], missing[0])
    assert th.equal(missing_units(ensemble, np.random.default_rng(0), asked)[0], missing[0])


def test_thinned_members_miss_what_was_drawn():
    ensemble = make_ensemble((30, 20), dropout=0.5)
    for chosen in (None, [3, 0, 3]):
        drawn = ensemble.draw_missing(MEMBERS if chosen is None else 3, np.random.default_rng(4))
        missing = missing_units(ensemble, np.random.default_rng(4), chosen)
        for mask, expected in zip(missing, drawn, strict=True):
            np.testing.assert_array_equal(mask, expected)
    assert make_ensemble(dropout=0.0).draw_missing(3, np.random.default_rng()) is None


def test_thinning_leaves_the_global_generator_and_the_weights_alone():
    ensemble = make_ensemble(dropout=0.5)
    state, weights = th.get_rng_state(), [weight.detach().clone() for weight in ensemble.weights]
    ensemble.members(None, np.random.default_rng(0))
    assert th.equal(th.get_rng_state(), state)
    assert all(th.equal(weight, before) for weight, before in zip(ensemble.weights, weights, strict=True))


@pytest.mark.parametrize("chosen", [None, [3, 0, 3]], ids=str)
def test_thinned_member_misses_its_units_for_the_whole_batch(chosen):
    ensemble = make_ensemble(dropout=0.5)
    groups = list(range(MEMBERS)) if chosen is None else chosen
    state, actions = inputs(len(groups), batch=6)
    missing = missing_units(ensemble, np.random.default_rng(3), chosen)
    assert all(0 < mask.sum() < mask.numel() for mask in missing)
    # The same draws once more.
    layers = ensemble.members(None if chosen is None else th.tensor(chosen), np.random.default_rng(3))
    thinned = concatenated(ensemble(state, actions, layers))
    nets = separate_nets(ensemble, nn.SiLU)
    for group, member in enumerate(groups):
        for row in range(6):
            x = th.cat([state[group, row], actions[group, row].flatten()])
            for layer in nets[member]:
                x = layer(x)
                if isinstance(layer, nn.SiLU):
                    # Missing units are 0, the others count double, so that the expectation stays.
                    mask = next(mask for mask in missing if mask.shape[1] == len(x))[group]
                    x = th.tensor([0.0 if gone else 2.0 * unit for unit, gone in zip(x.tolist(), mask.tolist(), strict=True)])
            th.testing.assert_close(thinned[group, row], x, rtol=1e-5, atol=1e-6)
    assert not th.allclose(thinned, concatenated(ensemble(state, actions, ensemble.members(chosen and th.tensor(chosen)))))


def test_thinning_keeps_the_expectation():
    # Over many draws the thinned outputs of a net with one hidden layer, in which dropout is linear, average out.
    ensemble, generator = make_ensemble((16,), dropout=0.3), np.random.default_rng(0)
    state, actions = inputs(MEMBERS, batch=2)
    whole = concatenated(ensemble(state, actions, ensemble.members()))
    with th.no_grad():
        draws = th.stack([concatenated(ensemble(state, actions, ensemble.members(None, generator))) for _ in range(6000)])
    standard_error = draws.std(dim=0) / 6000**0.5
    assert ((draws.mean(dim=0) - whole).abs() < 5.0 * standard_error).all()
    assert standard_error.max() < 0.02, "the test could not tell"


def test_one_milestone_is_the_default():
    ensemble = MlpEnsemble(STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, (16,), nn.SiLU, 0.0)
    assert ensemble.n_milestones == 1
    assert ensemble.weights[-1].shape[-1] == 2 * LENGTH + STATE_DIM + 2


def test_milestones_are_told_in_their_order():
    # A net without hidden layers whose outputs are its biases: output k is the number k.
    ensemble = make_ensemble((), n_milestones=2)
    n_outputs = 2 * LENGTH + 2 * (STATE_DIM + 2)
    with th.no_grad():
        ensemble.weights[0].zero_()
        ensemble.biases[0].copy_(th.arange(float(n_outputs)).expand(MEMBERS, 1, -1))
    prediction = ensemble(*inputs(MEMBERS, batch=1), ensemble.members())
    assert prediction.rewards[0, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert prediction.state_change[0, 0].tolist() == [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]
    assert prediction.ended[0, 0].tolist() == [10.0, 11.0]
    assert prediction.return_to_go[0, 0].tolist() == [12.0, 13.0]
    assert prediction.end_rewards[0, 0].tolist() == [14.0, 15.0, 16.0, 17.0]


@pytest.mark.parametrize("n_milestones", [0, -1, 3, 5, 8])
def test_milestones_that_do_not_divide_the_window(n_milestones):
    with pytest.raises(ValueError, match=f"n_milestones must divide sequence_length, got {n_milestones} and {LENGTH}"):
        make_ensemble(n_milestones=n_milestones)


def test_layer_without_width():
    with pytest.raises(ValueError, match="Every layer in net_arch must be at least 1 wide"):
        make_ensemble((16, 0))


# How weights begin


@pytest.mark.parametrize(
    ("kind", "std"),
    [
        ("xavier_uniform", (2 / (100 + 300)) ** 0.5),
        ("xavier_normal", (2 / (100 + 300)) ** 0.5),
        ("kaiming_uniform", (2 / 100) ** 0.5),
        ("kaiming_normal", (2 / 100) ** 0.5),
        ("orthogonal", (1 / 300) ** 0.5),
    ],
)
def test_weights_begin_as_wide_as_their_papers_have_it(kind, std):
    # What goes in is 100 and what comes out 300: each formula tells them apart.
    weight, bias = initialize(kind, n_members=4, n_in=100, n_out=300, fan=7)
    assert weight.shape == (4, 100, 300)
    assert weight.is_contiguous()
    for member in range(4):
        assert weight[member].std().item() == pytest.approx(std, rel=0.02)
        assert abs(weight[member].mean()) < 0.03 * std
        # A uniform number has bounds, 3 of 100,000 normal ones are farther out than 4 standard deviations.
        assert (weight[member].abs().max() > 1.01 * 3**0.5 * std) == (not kind.endswith("uniform"))
    assert not th.equal(weight[0], weight[1])
    assert bias.shape == (4, 1, 300)
    assert not bias.any()
    assert weight.requires_grad
    assert bias.requires_grad


def test_fan_bounds_the_weights_in_torchs_own_way():
    weight, bias = initialize("torch", n_members=4, n_in=100, n_out=100, fan=25)
    for drawn in (weight, bias):
        assert 0.19 < drawn.abs().max() <= 0.2
        # The standard deviation of a uniform number within +-0.2.
        assert drawn.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("kind", WEIGHT_INITIALIZERS)
def test_members_take_the_initializer(kind):
    th.manual_seed(0)
    ensemble = MlpEnsemble(STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, (16, 8), nn.SiLU, 0.0, weight_initializer=kind)
    assert all(bool(bias.any()) == (kind == "torch") for bias in ensemble.biases)
    if kind == "orthogonal":
        th.testing.assert_close(
            ensemble.weights[1].transpose(1, 2) @ ensemble.weights[1], th.eye(8).expand(MEMBERS, 8, 8), rtol=0.0, atol=1e-5
        )


def test_unknown_initializer():
    with pytest.raises(ValueError, match=r"weight_initializer must be one of .*'orthogonal'.*, got 'glorot'"):
        MlpEnsemble(STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, (16,), nn.SiLU, 0.0, weight_initializer="glorot")


def first_layers(**kwargs) -> tuple[th.Tensor, th.Tensor]:
    th.manual_seed(0)
    ensemble = MlpEnsemble(STATE_DIM, ACTION_DIM, LENGTH, 200, (16,), nn.SiLU, 0.0, **kwargs)
    return ensemble.weights[0].data, ensemble.biases[0].data


@pytest.mark.parametrize("gain", [0.5, 3.5, 10.0])
def test_state_gain_bounds_the_first_weights_of_states(gain):
    plain_weight, plain_bias = first_layers(state_gain=None)
    weight, bias = first_layers(state_gain=gain)
    of_states, of_actions = weight[:, :STATE_DIM], weight[:, STATE_DIM:]
    bound = gain / STATE_DIM**0.5
    assert 0.99 * bound < of_states.abs().max() <= bound * (1 + 1e-6)
    assert of_states.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    # Actions begin as they would, and the same numbers are drawn.
    assert th.equal(of_actions, plain_weight[:, STATE_DIM:])
    th.testing.assert_close(of_states / of_states.std(), plain_weight[:, :STATE_DIM] / plain_weight[:, :STATE_DIM].std())
    assert 1.4 < bias.abs().max() <= 1.5
    assert plain_bias.abs().max() < 1.0


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan"), float("inf")])
def test_odd_state_gain(gain):
    with pytest.raises(ValueError, match="state_gain must be a positive number or None"):
        first_layers(state_gain=gain)
