"""Actions in their three forms: of the environment, encoded and pre-activated."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_rgrl.actions import make_codec

BOXES = {
    "one number": spaces.Box(-2.0, 2.0, (1,), dtype=np.float32),
    "double precision": spaces.Box(-1.0, 1.0, (3,), dtype=np.float64),
    "asymmetric": spaces.Box(np.array([-1.0, 0.0, -100.0]), np.array([0.5, 7.0, -99.0]), dtype=np.float64),
    "matrix": spaces.Box(-0.3, 0.7, (2, 3), dtype=np.float32),
    "no dimension": spaces.Box(-1.0, 3.0, (), dtype=np.float32),
    "one number of no freedom": spaces.Box(np.float32([0.25, -1.0]), np.float32([0.25, 1.0])),
}
MULTI_DISCRETES = {
    "two choices": spaces.MultiDiscrete([3, 2]),
    "one of them no choice": spaces.MultiDiscrete([1, 4, 2]),
    "other starts": spaces.MultiDiscrete([2, 3], start=[-1, 5]),
    "small numbers": spaces.MultiDiscrete([2, 3], dtype=np.int32),
}
MULTI_BINARIES = {"three": spaces.MultiBinary(3), "matrix": spaces.MultiBinary([2, 2])}
DISCRETES = {"from 0": spaces.Discrete(4), "from 3": spaces.Discrete(3, start=3), "from -2": spaces.Discrete(5, start=-2)}


def samples(space: spaces.Space, n: int = 50) -> np.ndarray:
    space.seed(0)
    return np.array([space.sample() for _ in range(n)])


@pytest.mark.parametrize("name", BOXES)
def test_box_round_trip(name):
    space = BOXES[name]
    codec, actions = make_codec(space), samples(space)
    encoded = codec.encode(actions)
    assert codec.dim == np.prod(space.shape)
    assert encoded.shape == (50, codec.dim)
    assert encoded.dtype == np.float32
    assert np.all(np.abs(encoded) <= 1.0 + 1e-6)
    decoded = codec.decode(encoded)
    assert decoded.dtype == space.dtype
    assert decoded.shape == actions.shape
    # Encoded actions are single precision: some 1e-7 of the width of the space.
    np.testing.assert_allclose(decoded, actions, rtol=1e-6, atol=1e-6 * float((space.high - space.low).max()))
    assert all(space.contains(np.asarray(action)) for action in decoded)


def test_box_ends_and_middle_by_hand():
    space = spaces.Box(np.array([-1.0, 10.0]), np.array([3.0, 20.0]), dtype=np.float64)
    codec = make_codec(space)
    actions = np.array([[-1.0, 10.0], [1.0, 15.0], [3.0, 20.0], [0.0, 17.5]])
    encoded = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [-0.5, 0.5]])
    np.testing.assert_allclose(codec.encode(actions), encoded, atol=1e-7)
    np.testing.assert_allclose(codec.decode(encoded), actions, atol=1e-12)


def test_whole_numbers_survive_the_round_trip():
    # Cutting off what single precision lost would turn 1 into 0; and every action must be within reach of tanh.
    space = spaces.Box(np.array([0, -7]), np.array([3, 12]), dtype=np.int64)
    codec = make_codec(space)
    actions = np.array([[k % 4, -7 + k] for k in range(20)])
    decoded = codec.decode(codec.encode(actions))
    assert decoded.dtype == np.int64
    np.testing.assert_array_equal(decoded, actions)
    reached = codec.decode(codec.execute(th.linspace(-3, 3, 200).repeat(2, 1).T).numpy())
    assert set(reached[:, 0].tolist()) == {0, 1, 2, 3}


def test_matrices_keep_the_place_of_each_number():
    space = spaces.Box(np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3) + 10.0, dtype=np.float64)
    codec = make_codec(space)
    action = np.arange(6.0).reshape(1, 2, 3) + np.array([0, 1, 2, 3, 4, 5]).reshape(1, 2, 3)
    np.testing.assert_allclose(codec.encode(action)[0], [-1.0, -0.8, -0.6, -0.4, -0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(codec.decode(codec.encode(action)), action, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widest_box(dtype):
    # Its width is no number any more.
    largest = np.finfo(dtype).max
    codec = make_codec(spaces.Box(-largest, largest, (2,), dtype=dtype))
    encoded = np.array([[-1.0, 1.0], [0.0, 0.5], [-0.25, 0.75]], dtype=np.float32)
    decoded = codec.decode(encoded)
    np.testing.assert_allclose(decoded, encoded.astype(np.float64) * largest, rtol=1e-6)
    np.testing.assert_allclose(codec.encode(decoded), encoded, rtol=1e-6)


def test_box_without_bounds():
    with pytest.raises(ValueError, match="must have a finite lower and upper bound"):
        make_codec(spaces.Box(-1.0, np.inf, (2,), dtype=np.float32))


@settings(max_examples=100, deadline=None)
@given(
    bounds=st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(0.0, 1e6, width=32)), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float32, np.float64]),
    preactivated=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
)
def test_whatever_is_planned_can_be_executed_in_any_box(bounds, dtype, preactivated):
    low = np.array([a for a, _ in bounds], dtype=dtype)
    high = low + np.array([width for _, width in bounds], dtype=dtype)
    space = spaces.Box(low, high, dtype=dtype)
    codec = make_codec(space)
    executed = codec.execute(th.tensor([preactivated[: codec.dim]])).numpy()
    decoded = codec.decode(executed)
    assert decoded.dtype == dtype
    assert decoded.shape == (1, codec.dim)
    assert space.contains(decoded[0])
    encoded = codec.encode(decoded)
    assert encoded.dtype == np.float32
    assert np.all(np.isfinite(encoded))
    assert np.all(np.abs(encoded) <= 1.0 + 1e-6)
    # What is stored is what the members were asked about, as far as the numbers of that size can tell.
    width = np.where(high > low, high.astype(np.float64) - low, 1.0)
    resolution = np.spacing(np.maximum(np.abs(low), np.abs(high))).astype(np.float64) / width
    free = high > low
    assert np.all(np.abs(encoded[0] - executed[0])[free] <= 1e-6 + 4.0 * resolution[free])


@pytest.mark.parametrize("name", DISCRETES)
def test_discrete_round_trip(name):
    space = DISCRETES[name]
    codec = make_codec(space)
    actions = np.arange(space.start, space.start + space.n)
    encoded = codec.encode(actions)
    np.testing.assert_array_equal(encoded, np.eye(space.n))
    assert encoded.dtype == np.float32
    decoded = codec.decode(encoded)
    np.testing.assert_array_equal(decoded, actions)
    assert decoded.dtype == space.dtype
    assert all(space.contains(action) for action in decoded)


@pytest.mark.parametrize("name", DISCRETES)
def test_discrete_execution_is_one_hot_at_the_largest(name):
    space = DISCRETES[name]
    codec = make_codec(space)
    # Any number of dimensions in front, as the planner has them.
    preactivated = th.randn(3, 2, 5, space.n, generator=th.Generator().manual_seed(0))
    executed = codec.execute(preactivated)
    assert executed.shape == preactivated.shape
    assert executed.dtype == preactivated.dtype
    for one_hot, values in zip(executed.reshape(-1, space.n), preactivated.reshape(-1, space.n), strict=True):
        assert one_hot.tolist() == [float(k == max(range(space.n), key=values.tolist().__getitem__)) for k in range(space.n)]
    decoded = codec.decode(executed.reshape(-1, space.n).numpy())
    np.testing.assert_array_equal(decoded, preactivated.reshape(-1, space.n).argmax(-1).numpy() + space.start)


@pytest.mark.parametrize("name", MULTI_DISCRETES)
def test_multi_discrete_is_its_choices_side_by_side(name):
    space = MULTI_DISCRETES[name]
    codec, actions = make_codec(space), samples(space)
    sizes, starts = space.nvec.tolist(), space.start.tolist()
    assert codec.dim == sum(sizes)
    by_hand = [
        [float(k == choice - start) for choice, n, start in zip(action, sizes, starts, strict=True) for k in range(n)]
        for action in actions.tolist()
    ]
    encoded = codec.encode(actions)
    np.testing.assert_array_equal(encoded, by_hand)
    assert encoded.dtype == np.float32
    decoded = codec.decode(encoded)
    np.testing.assert_array_equal(decoded, actions)
    assert decoded.dtype == space.dtype
    assert all(space.contains(action) for action in decoded)


@pytest.mark.parametrize("name", MULTI_DISCRETES)
def test_multi_discrete_executes_the_largest_of_each_choice(name):
    space = MULTI_DISCRETES[name]
    codec = make_codec(space)
    preactivated = th.randn(3, 2, 5, codec.dim, generator=th.Generator().manual_seed(0))
    executed = codec.execute(preactivated)
    assert executed.shape == preactivated.shape
    actions = codec.decode(executed.reshape(-1, codec.dim).numpy())
    for action, values in zip(actions.tolist(), preactivated.reshape(-1, codec.dim).tolist(), strict=True):
        for choice, n, start in zip(action, space.nvec.tolist(), space.start.tolist(), strict=True):
            own, values = values[:n], values[n:]
            assert choice == start + max(range(n), key=own.__getitem__)


@pytest.mark.parametrize("name", MULTI_BINARIES)
def test_multi_binary_round_trip_and_execution(name):
    space = MULTI_BINARIES[name]
    codec, actions = make_codec(space), samples(space)
    encoded = codec.encode(actions)
    np.testing.assert_array_equal(encoded, actions.reshape(50, codec.dim))
    assert encoded.dtype == np.float32
    decoded = codec.decode(encoded)
    np.testing.assert_array_equal(decoded, actions)
    assert decoded.dtype == space.dtype
    assert all(space.contains(action) for action in decoded)
    preactivated = th.tensor([[-0.1, 0.0, 1e-3, 50.0][: codec.dim]])
    assert codec.execute(preactivated).tolist() == [[0.0, 0.0, 1.0, 1.0][: codec.dim]]


def test_tie_executes_one_action():
    executed = make_codec(spaces.Discrete(3)).execute(th.zeros(2, 3))
    assert executed.sum(dim=-1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=2), spaces.MultiDiscrete([1, 2]), spaces.MultiBinary(3)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [th.float32, th.float64])
def test_execution_is_the_same_in_numpy(space, dtype):
    preactivated = th.randn(4, 2, 5, 3, generator=th.Generator().manual_seed(0), dtype=dtype)
    preactivated[0, 0] = 0.0
    codec = make_codec(space)
    executed = codec.execute(preactivated.numpy())
    assert isinstance(executed, np.ndarray)
    assert executed.dtype == preactivated.numpy().dtype
    np.testing.assert_allclose(executed, codec.execute(preactivated).numpy(), rtol=1e-6)


def test_box_execution_is_what_was_planned():
    codec = make_codec(spaces.Box(-1, 1, (2,)))
    preactivated = th.linspace(-3, 3, 8).reshape(2, 2, 2)
    th.testing.assert_close(codec.execute(preactivated), codec.activate(preactivated), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("space", "slow"),
    [
        (spaces.Box(-5.0, 3.0, (3,)), lambda values: [np.tanh(x) for x in values]),
        (spaces.Discrete(3, start=1), lambda values: [np.exp(x) / sum(np.exp(values)) for x in values]),
        (
            spaces.MultiDiscrete([1, 2]),
            lambda values: [1.0, *(np.exp(x) / sum(np.exp(values[1:])) for x in values[1:])],
        ),
        (spaces.MultiBinary(3), lambda values: [1.0 / (1.0 + np.exp(-x)) for x in values]),
    ],
    ids=["Box", "Discrete", "MultiDiscrete", "MultiBinary"],
)
def test_activation_and_its_gradient(space, slow):
    codec = make_codec(space)
    values = np.array([0.3, -1.2, 0.9])
    preactivated = th.tensor(values, requires_grad=True)
    encoded = codec.activate(preactivated)
    np.testing.assert_allclose(encoded.detach().numpy(), slow(values), rtol=1e-12)
    for k in range(3):
        (gradient,) = th.autograd.grad(encoded[k], preactivated, retain_graph=True)
        for j in range(3):
            shift = 1e-6 * (np.arange(3) == j)
            by_difference = (slow(values + shift)[k] - slow(values - shift)[k]) / 2e-6
            assert gradient[j].item() == pytest.approx(by_difference, abs=1e-8)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]),
        spaces.Text(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_spaces_are_named(space):
    words = "Box, Discrete, MultiDiscrete, MultiBinary, but the action space is "
    with pytest.raises(ValueError, match=words + type(space).__name__):
        make_codec(space)


def test_choices_in_a_matrix_are_refused():
    with pytest.raises(ValueError, match=r"(?s)Multi-dimensional MultiDiscrete.* You can flatten it instead"):
        make_codec(spaces.MultiDiscrete([[2, 3], [4, 5]]))
