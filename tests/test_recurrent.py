"""Recurrent members against torch's own cells with the same weights, and against plain loops."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_rgrl.ensemble import (
    GruEnsemble,
    Layer,
    LstmEnsemble,
    RecurrentEnsemble,
    RnnEnsemble,
    WindowPrediction,
)
from tests import oracles_members as oracles

STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, BATCH = 3, 2, 6, 4, 5

# Class, activation of the encoders (of plain cells as well), and torch's module.
KINDS = {
    "gru": (GruEnsemble, nn.Tanh, lambda *sizes: nn.GRU(*sizes, batch_first=True)),
    "lstm": (LstmEnsemble, nn.Tanh, lambda *sizes: nn.LSTM(*sizes, batch_first=True)),
    "rnn tanh": (RnnEnsemble, nn.Tanh, lambda *sizes: nn.RNN(*sizes, nonlinearity="tanh", batch_first=True)),
    "rnn relu": (RnnEnsemble, nn.ReLU, lambda *sizes: nn.RNN(*sizes, nonlinearity="relu", batch_first=True)),
}
GATES = {"gru": "rzn", "lstm": "ifgo", "rnn tanh": "h", "rnn relu": "h"}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make_ensemble(kind: str, net_arch=(8,), dropout=0.0, n_milestones=None, **kwargs) -> RecurrentEnsemble:
    ensemble_class, activation_fn, _ = KINDS[kind]
    th.manual_seed(0)
    return ensemble_class(
        STATE_DIM, ACTION_DIM, LENGTH, MEMBERS, net_arch, activation_fn, dropout, n_milestones=n_milestones, **kwargs
    )


def inputs(n_groups: int, batch: int = BATCH) -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(1)
    state = th.randn(n_groups, batch, STATE_DIM, generator=generator)
    return state, th.randn(n_groups, batch, LENGTH, ACTION_DIM, generator=generator)


def by_step(prediction: WindowPrediction) -> th.Tensor:
    """As the head puts it out after each step: reward, change of state, end, return, reward if it is the end."""
    told = prediction.rewards, prediction.ended, prediction.return_to_go, prediction.end_rewards
    rewards, ended, tail, end_rewards = (part.unsqueeze(-1) for part in told)
    return th.cat([rewards, prediction.state_change, ended, tail, end_rewards], dim=-1)


def loaded_linear(weight: th.Tensor, bias: th.Tensor) -> nn.Linear:
    """
    :param weight: Shape (in, out).
    :param bias: Shape (1, out).
    """
    layer = nn.Linear(*weight.shape)
    layer.weight.data, layer.bias.data = weight.detach().T.clone(), bias.detach()[0].clone()
    return layer


class TorchMember(nn.Module):
    """One member of plain torch: encoders, a recurrent module of one or more layers, a head."""

    def __init__(self, ensemble: RecurrentEnsemble, member: int, kind: str) -> None:
        super().__init__()
        parts = [(weight[member], bias[member]) for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True)]
        *parts, head = parts
        per_layer = ensemble.n_memories + 2
        n_layers = len(parts) // per_layer
        width = parts[0][0].shape[1]
        self.activation = KINDS[kind][1]()
        self.head = loaded_linear(*head)
        self.cells = KINDS[kind][2](ACTION_DIM, width, n_layers)
        self.encoders = nn.ModuleList()
        for k in range(n_layers):
            *encoders, (w_x, b_x), (w_h, b_h) = parts[k * per_layer : (k + 1) * per_layer]
            self.encoders.append(nn.ModuleList([loaded_linear(*encoder) for encoder in encoders]))
            for name, value in (("weight_ih", w_x.T), ("weight_hh", w_h.T), ("bias_ih", b_x[0]), ("bias_hh", b_h[0])):
                getattr(self.cells, f"{name}_l{k}").data = value.detach().clone()

    def forward(self, state: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param state: Shape (b, d).
        :param actions: Shape (b, t, action_dim).
        :return: Shape (b, t, 1 + d + 3).
        """
        hidden = th.stack([self.activation(encoders[0](state)) for encoders in self.encoders])
        if isinstance(self.cells, nn.LSTM):
            outputs, _ = self.cells(actions, (hidden, th.stack([encoders[1](state) for encoders in self.encoders])))
        else:
            outputs, _ = self.cells(actions, hidden)
        return self.head(outputs)

    def gradients(self) -> list[th.Tensor]:
        """Of all weights and biases, in the order and the form of the ensemble's."""
        found = []
        for k, encoders in enumerate(self.encoders):
            found += [(encoder.weight.grad.T, encoder.bias.grad) for encoder in encoders]
            for name in ("ih", "hh"):
                weight, bias = (getattr(self.cells, f"{part}_{name}_l{k}").grad for part in ("weight", "bias"))
                found.append((weight.T, bias))
        return [*found, (self.head.weight.grad.T, self.head.bias.grad)]


@pytest.mark.parametrize("members", [None, [3, 0, 3, 3, 1], [2]], ids=str)
@pytest.mark.parametrize("net_arch", [(8,), (8, 8)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    # Fresh cells hardly listen to actions; with weights of twice the size all gates do, and float32 no longer tells.
    [(th.float32, 1.0, 1e-6), (th.float64, 2.0, 1e-12)],
    ids=str,
)
@each_kind
def test_outputs_and_gradients_on_actions_equal_torchs(kind, net_arch, members, dtype, size, tolerance):
    ensemble = make_ensemble(kind, net_arch).to(dtype)
    chosen = list(range(MEMBERS)) if members is None else members
    state, actions = (part.to(dtype) for part in inputs(len(chosen)))
    actions.requires_grad_()
    with th.no_grad():
        for weight in ensemble.weights:
            weight *= size
    outputs = by_step(ensemble(state, actions, ensemble.members(None if members is None else th.tensor(members))))
    assert outputs.shape == (len(chosen), BATCH, LENGTH, 1 + STATE_DIM + 3)
    assert outputs.dtype == dtype
    # A weight of its own for each output, so that outputs that changed places show in the gradient.
    weights = th.randn(outputs.shape, generator=th.Generator().manual_seed(2), dtype=dtype)
    (gradient,) = th.autograd.grad((weights * outputs).sum(), actions)
    for group, member in enumerate(chosen):
        own = actions[group].detach().clone().requires_grad_()
        expected = TorchMember(ensemble, member, kind).to(dtype)(state[group], own)
        th.testing.assert_close(outputs[group], expected, rtol=tolerance, atol=tolerance)
        (expected_gradient,) = th.autograd.grad((weights[group] * expected).sum(), own)
        assert expected_gradient.abs().max() > 0.01, "the test could not tell"
        th.testing.assert_close(gradient[group], expected_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("net_arch", [(8,), (8, 8)], ids=str)
@each_kind
def test_gradients_on_weights_equal_torchs(kind, net_arch):
    ensemble = make_ensemble(kind, net_arch).double()
    state, actions = (part.double() for part in inputs(MEMBERS))
    (by_step(ensemble(state, actions, ensemble.members())) ** 2).sum().backward()
    for member in range(MEMBERS):
        twin = TorchMember(ensemble, member, kind).double()
        (twin(state[member], actions[member]) ** 2).sum().backward()
        gradients = twin.gradients()
        assert len(gradients) == len(ensemble.weights) == len(ensemble.biases)
        for weight, bias, (of_weight, of_bias) in zip(ensemble.weights, ensemble.biases, gradients, strict=True):
            th.testing.assert_close(weight.grad[member], of_weight, rtol=1e-10, atol=1e-10)
            th.testing.assert_close(bias.grad[member, 0], of_bias, rtol=1e-10, atol=1e-10)


# Plain loops


def gates_of(kind: str, from_input: Layer, from_hidden: Layer, group: int) -> dict[str, oracles.Gate]:
    """The stacked weights of one member, cut into gates."""
    names = GATES[kind]
    width = from_hidden.weight.shape[1]
    assert from_input.weight.shape[2] == from_hidden.weight.shape[2] == len(names) * width
    gates = {}
    for k, name in enumerate(names):
        own = slice(k * width, (k + 1) * width)
        w_x, w_h = from_input.weight[group][:, own].tolist(), from_hidden.weight[group][:, own].tolist()
        b_x, b_h = from_input.bias[group, 0, own].tolist(), from_hidden.bias[group, 0, own].tolist()
        gates[name] = (w_x, b_x, w_h, b_h)
    return gates


def oracle_step(kind: str, x: list[float], memory: tuple, gates: dict[str, oracles.Gate]) -> tuple:
    if kind == "gru":
        return (oracles.gru_step(x, memory[0], gates),)
    if kind == "lstm":
        return oracles.lstm_step(x, memory[0], memory[1], gates)
    return (oracles.rnn_step(x, memory[0], gates, activation_of(kind)),)


def activation_of(kind: str):
    return (lambda x: max(x, 0.0)) if kind == "rnn relu" else oracles.math.tanh


@each_kind
def test_one_step_of_a_cell_equals_plain_loops(kind):
    ensemble = make_ensemble(kind, (5,)).double()
    *_, from_input, from_hidden, _ = ensemble.members()
    generator = th.Generator().manual_seed(4)
    x = th.randn(MEMBERS, BATCH, ACTION_DIM, generator=generator, dtype=th.float64)
    memory = tuple(th.randn(MEMBERS, BATCH, 5, generator=generator, dtype=th.float64) for _ in range(ensemble.n_memories))
    after = ensemble.step(from_input(x), from_hidden(memory[0]), memory)
    assert len(after) == ensemble.n_memories
    for member in range(MEMBERS):
        gates = gates_of(kind, from_input, from_hidden, member)
        for row in range(BATCH):
            before = tuple(part[member, row].tolist() for part in memory)
            expected = oracle_step(kind, x[member, row].tolist(), before, gates)
            for part, numbers in zip(after, expected, strict=True):
                assert part[member, row].tolist() == pytest.approx(numbers, rel=1e-12, abs=1e-12)


def oracle_window(ensemble: RecurrentEnsemble, kind: str, layers: list[Layer], group: int, state: list, actions: list) -> list:
    """Step by step through all layers at once, unlike the ensemble, which goes layer by layer."""

    def apply(layer: Layer, x: list[float]) -> list[float]:
        return oracles.linear(x, layer.weight[group].tolist(), layer.bias[group, 0].tolist())

    per_layer = ensemble.n_memories + 2
    stacked = [layers[k : k + per_layer] for k in range(0, len(layers) - 1, per_layer)]
    memories = []
    for *encoders, _, _ in stacked:
        hidden = [activation_of(kind)(number) for number in apply(encoders[0], state)]
        memories.append((hidden, *(apply(encoder, state) for encoder in encoders[1:])))
    outputs = []
    for action in actions:
        x = action
        for k, (*_, from_input, from_hidden) in enumerate(stacked):
            memories[k] = oracle_step(kind, x, memories[k], gates_of(kind, from_input, from_hidden, group))
            x = memories[k][0]
        outputs.append(apply(layers[-1], x))
    return outputs


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@each_kind
def test_layers_of_different_width_equal_plain_loops(kind, dropout):
    ensemble = make_ensemble(kind, (5, 3, 4), dropout).double()
    state, actions = (part.double() for part in inputs(3, batch=2))
    layers = ensemble.members(th.tensor([2, 0, 2]), np.random.default_rng(5))
    outputs = by_step(ensemble(state, actions, layers))
    for group in range(3):
        for row in range(2):
            expected = oracle_window(ensemble, kind, layers, group, state[group, row].tolist(), actions[group, row].tolist())
            th.testing.assert_close(outputs[group, row], th.tensor(expected, dtype=th.float64), rtol=1e-11, atol=1e-11)


# In time


@each_kind
def test_an_action_changes_what_comes_after_it_and_nothing_before(kind):
    ensemble = make_ensemble(kind, (8, 8))
    state, actions = inputs(MEMBERS)
    before = by_step(ensemble(state, actions, ensemble.members()))
    for k in range(LENGTH):
        changed = actions.clone()
        changed[:, :, k] += 1.0
        differs = (by_step(ensemble(state, changed, ensemble.members())) != before).any(dim=-1)
        assert not differs[:, :, :k].any()
        assert differs[:, :, k].all()


@pytest.mark.parametrize("n_milestones", [1, 2, 3, 6])
@each_kind
def test_milestones_are_some_of_all_steps(kind, n_milestones):
    every, some = make_ensemble(kind), make_ensemble(kind, n_milestones=n_milestones)
    assert every.n_milestones == LENGTH, "after each step, where nothing is said"
    some.load_state_dict(every.state_dict())
    state, actions = inputs(MEMBERS)
    whole, part = every(state, actions, every.members()), some(state, actions, some.members())
    steps = {1: [5], 2: [2, 5], 3: [1, 3, 5], 6: [0, 1, 2, 3, 4, 5]}[n_milestones]
    assert th.equal(part.rewards, whole.rewards)
    assert th.equal(part.state_change, whole.state_change[:, :, steps])
    assert th.equal(part.ended, whole.ended[:, :, steps])
    assert th.equal(part.return_to_go, whole.return_to_go[:, :, steps])


def test_rows_do_not_depend_on_their_batch():
    for kind in KINDS:
        ensemble = make_ensemble(kind, dropout=0.3)
        state, actions = inputs(MEMBERS)
        members = ensemble.members(thinning=np.random.default_rng(0))
        whole = by_step(ensemble(state, actions, members))
        for row in range(BATCH):
            alone = by_step(ensemble(state[:, row : row + 1], actions[:, row : row + 1], members))
            th.testing.assert_close(alone[:, 0], whole[:, row], rtol=1e-5, atol=1e-6)


# Dropout


def hidden_rows(ensemble: RecurrentEnsemble, layer: int) -> list[int]:
    """Which of the weights have the units of that recurrent layer as their rows: its own memory, and what lies above."""
    per_layer = ensemble.n_memories + 2
    above = (layer + 1) * per_layer
    return [above - 1, above + ensemble.n_memories if above < len(ensemble.weights) - 1 else above]


@pytest.mark.parametrize("chosen", [None, [3, 0, 3]], ids=str)
@each_kind
def test_thinned_member_is_a_net_without_those_units(kind, chosen):
    ensemble = make_ensemble(kind, (12, 14), dropout=0.5).double()
    groups = list(range(MEMBERS)) if chosen is None else chosen
    state, actions = (part.double() for part in inputs(len(groups)))
    layers = ensemble.members(None if chosen is None else th.tensor(chosen), np.random.default_rng(3))
    thinned, n_missing = by_step(ensemble(state, actions, layers)), 0
    for group, member in enumerate(groups):
        by_hand = make_ensemble(kind, (12, 14)).double()
        by_hand.load_state_dict(ensemble.state_dict())
        for layer in range(2):
            memory, above = hidden_rows(ensemble, layer)
            missing = (layers[memory].weight[group] == 0).all(dim=-1)
            n_missing += int(missing.sum())
            with th.no_grad():
                for rows in (memory, above):
                    # Units that are left count double, so that the expectation stays.
                    by_hand.weights[rows][member, missing] = 0.0
                    by_hand.weights[rows][member, ~missing] *= 2.0
        one = th.tensor([member])
        expected = by_hand(state[group : group + 1], actions[group : group + 1], by_hand.members(one))
        th.testing.assert_close(thinned[group], by_step(expected)[0], rtol=1e-12, atol=1e-12)
    assert 0.3 < n_missing / (26 * len(groups)) < 0.7, "the test could not tell"
    whole = by_step(ensemble(state, actions, ensemble.members(None if chosen is None else th.tensor(chosen))))
    assert not th.allclose(thinned, whole)


@each_kind
def test_nothing_of_a_missing_unit_is_left(kind):
    """Whatever a missing unit is told or remembers: no output depends on any weight of it."""
    ensemble = make_ensemble(kind, (12, 14), dropout=0.5)
    state, actions = inputs(MEMBERS)
    layers = ensemble.members(thinning=np.random.default_rng(3))
    masks = [(layers[hidden_rows(ensemble, layer)[0]].weight == 0).all(dim=-1) for layer in range(2)]
    (by_step(ensemble(state, actions, layers)) ** 2).sum().backward()
    per_layer = ensemble.n_memories + 2
    for layer, missing in enumerate(masks):
        for k in range(layer * per_layer, (layer + 1) * per_layer):
            # Columns are units, once for each gate.
            reach = ensemble.weights[k].grad.abs().sum(dim=1).unflatten(-1, (-1, missing.shape[1])).sum(dim=1)
            assert not reach[missing].any()
            if kind != "rnn relu":  # of which units may be silent
                assert (reach[~missing] > 0).all()
        for k in hidden_rows(ensemble, layer):
            assert not ensemble.weights[k].grad[missing].any()


@each_kind
def test_thinning_has_its_rate(kind):
    ensemble = make_ensemble(kind, (500, 400), dropout=0.2)
    layers = ensemble.members(th.tensor([0, 1, 2, 3, 0, 0]), np.random.default_rng(0))
    drawn = ensemble.draw_missing(6, np.random.default_rng(0))
    assert [missing.shape for missing in drawn] == [(6, 500), (6, 400)]
    for layer in range(2):
        masks = [(layers[k].weight == 0).all(dim=-1) for k in hidden_rows(ensemble, layer)]
        assert th.equal(masks[0], masks[1]), "memory and reader miss the same units"
        np.testing.assert_array_equal(masks[0], drawn[layer])
        # 2,400 units at least: a standard error of 0.008.
        assert masks[0].float().mean().item() == pytest.approx(0.2, abs=0.035)
        assert not th.equal(masks[0][0], masks[0][4])
    assert th.equal(layers[0].weight, ensemble.weights[0][[0, 1, 2, 3, 0, 0]]), "states are never missing"


@each_kind
def test_no_thinning_without_a_generator(kind):
    ensemble = make_ensemble(kind, dropout=0.5)
    for layer, weight, bias in zip(ensemble.members(), ensemble.weights, ensemble.biases, strict=True):
        assert th.equal(layer.weight, weight)
        assert th.equal(layer.bias, bias)


# How they begin


@each_kind
def test_first_weights_are_within_torchs_bounds(kind):
    ensemble = make_ensemble(kind, (100, 60))
    twin = TorchMember(make_ensemble(kind, (100,)), 0, kind)  # tells the shapes of torch's modules
    assert twin.cells.weight_ih_l0.shape == ensemble.weights[ensemble.n_memories][0].T.shape
    bounds = []
    for width in (100, 60):
        # torch.nn.Linear: one over the square root of its inputs; torch's cells: of their width.
        bounds += ensemble.n_memories * [STATE_DIM**-0.5] + 2 * [width**-0.5]
    bounds.append(60**-0.5)
    for bound, weight, bias in zip(bounds, ensemble.weights, ensemble.biases, strict=True):
        assert 0.95 * bound < weight.abs().max() <= bound
        assert 0.8 * bound < bias.abs().max() <= bound
        for member in range(1, MEMBERS):
            assert not th.equal(weight[0], weight[member])
            assert not th.equal(bias[0], bias[member])


def test_encoders_of_hidden_and_cell_state_are_two():
    ensemble = make_ensemble("lstm")
    hidden, cell, *_ = ensemble.members()
    assert not th.equal(hidden.weight, cell.weight)
    state = 10.0 * th.ones(MEMBERS, 1, STATE_DIM)
    first = ensemble.encode(state, [hidden, cell])
    assert first[0].abs().max() <= 1.0
    assert first[1].abs().max() > 1.0, "cell states have no bounds"


# Errors


@each_kind
def test_no_layer(kind):
    with pytest.raises(ValueError, match=r"net_arch of recurrent members needs the width of one layer at least, got \[\]"):
        make_ensemble(kind, ())


@each_kind
def test_milestones_that_do_not_divide_the_window(kind):
    with pytest.raises(ValueError, match=f"n_milestones must divide sequence_length, got 4 and {LENGTH}"):
        make_ensemble(kind, n_milestones=4)


@each_kind
def test_unknown_initializer(kind):
    with pytest.raises(ValueError, match="weight_initializer must be one of"):
        make_ensemble(kind, weight_initializer="zeros")
