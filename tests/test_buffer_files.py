"""Sequence buffers on the disk: they come back as they were, and what is none is refused."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_rgrl.buffers import SequenceReplayBuffer
from tests.oracles_buffer import ENDINGS, NaiveBuffer, Name, assert_same, make_buffer, names_of, step_both


def endings_of(k: int, n_envs: int) -> list[str | None]:
    return ["terminated" if k % 5 == 4 else None, "truncated" if k % 6 == 5 else None, None][:n_envs]


def filled(buffer_size: int = 20, n_envs: int = 2, n_steps: int = 13, **kwargs) -> tuple[SequenceReplayBuffer, NaiveBuffer]:
    """A buffer with terminated, truncated and running episodes and with priorities of its own."""
    naive = NaiveBuffer(buffer_size, n_envs, 3, kwargs.get("milestone_every"))
    buffer, rng = make_buffer(buffer_size, n_envs, **kwargs), np.random.default_rng(4)
    for k in range(n_steps):
        step_both(buffer, naive, endings_of(k, n_envs), rng)
    buffer.sample(1)
    windows, n_members = buffer.all_windows(), buffer.sampler.n_members
    errors = rng.uniform(0.0, 3.0, (n_members, len(windows)))
    buffer.update_priorities(np.tile(windows, (n_members, 1)), th.as_tensor(errors), th.zeros(errors.shape))
    return buffer, naive


def saved(buffer: SequenceReplayBuffer) -> bytes:
    file = io.BytesIO()
    buffer.save(file)
    return file.getvalue()


def contents(buffer: SequenceReplayBuffer) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(saved(buffer)), allow_pickle=False) as archive:
        return dict(archive)


def assert_same_contents(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def probabilities_by_name(buffer: SequenceReplayBuffer, member: int) -> dict[Name, float]:
    places = buffer.all_windows()
    return dict(zip(names_of(buffer, places), buffer.probabilities(member)[places].tolist(), strict=True))


# 20 steps hold all of 7 steps of two environments, and overwrite most of 13 or 31.
@pytest.mark.parametrize("n_steps", [0, 1, 7, 10, 13, 31])
@pytest.mark.parametrize(("buffer_size", "n_envs"), [(20, 2), (33, 2), (50, 3), (20, 1)])
def test_save_and_load_through_a_file(tmp_path: Path, n_steps, buffer_size, n_envs):
    if n_steps < 3:
        buffer, naive = make_buffer(n_envs=2, n_members=2), NaiveBuffer(20, 2, 3)
        for _ in range(n_steps):
            step_both(buffer, naive, [None, None], np.random.default_rng(0))
    else:
        buffer, naive = filled(n_steps=n_steps, n_members=2)
    with open(tmp_path / "buffer.pkl", "wb") as file:
        buffer.save(file)
    # Into one that has something else in it already.
    loaded, _ = filled(buffer_size, n_envs, 9, n_members=2, seed=9)
    loaded.pop_new_windows()
    with open(tmp_path / "buffer.pkl", "rb") as file:
        loaded.load(file)

    again = NaiveBuffer(buffer_size, n_envs, 3)
    again.n_episodes = 100
    again.steps.extend(naive.steps)
    again.running = (naive.running + [again.new_episode(env) for env in range(n_envs)][2:])[:n_envs]
    assert_same(loaded, again)
    for member in range(2):
        expected = probabilities_by_name(buffer, member) if buffer.n_windows else {}
        assert (probabilities_by_name(loaded, member) if loaded.n_windows else {}) == pytest.approx(expected, rel=1e-9)
    # The running episodes go on where they were, and old steps go first.
    rng = np.random.default_rng(8)
    for k in range(25):
        step_both(loaded, again, endings_of(k, n_envs), rng)
        assert_same(loaded, again)
    loaded.cut_running_episodes()
    again.cut()
    assert_same(loaded, again)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), n_envs=st.integers(1, 3), seed=st.integers(0, 100), every=st.sampled_from([1, 3]))
def test_loaded_buffer_goes_on_like_the_saved_one(data, n_envs, seed, every):
    buffer_size = data.draw(st.integers(3 * n_envs, 25))
    # Milestones are read off the steps, so a saved buffer serves agents with others, too.
    buffer, naive = make_buffer(buffer_size, n_envs), NaiveBuffer(buffer_size, n_envs, 3, every)
    rng = np.random.default_rng(seed)
    for _ in range(data.draw(st.integers(0, 12))):
        step_both(buffer, naive, data.draw(st.lists(ENDINGS, min_size=n_envs, max_size=n_envs)), rng)
    loaded = make_buffer(buffer_size, n_envs, milestone_every=every)
    loaded.load(io.BytesIO(saved(buffer)))
    assert_same(loaded, naive)
    assert_same_contents(contents(loaded), contents(buffer))
    for _ in range(data.draw(st.integers(0, 12))):
        step_both(loaded, naive, data.draw(st.lists(ENDINGS, min_size=n_envs, max_size=n_envs)), rng)
        assert_same(loaded, naive)


def test_windows_that_nobody_has_looked_at_are_not_lost_by_saving():
    # A checkpoint comes in the middle of a rollout: its last windows are then still without priorities of their own.
    buffer, naive = filled(n_steps=7)
    buffer.pop_new_windows()
    buffer.pop_finished_windows()
    rng = np.random.default_rng(0)
    for endings in ([None, None], ["terminated", None]):
        step_both(buffer, naive, endings, rng)
    loaded = make_buffer(n_envs=2)
    loaded.load(io.BytesIO(saved(buffer)))
    new, finished = buffer.pop_new_windows(), buffer.pop_finished_windows()
    assert len(new) > 0
    assert len(finished) > 0
    # 18 of 20 steps: nothing was overwritten yet, so places are the same.
    np.testing.assert_array_equal(loaded.pop_new_windows(), new)
    np.testing.assert_array_equal(loaded.pop_finished_windows(), finished)


def test_unseen_windows_are_drawn_soon_after_loading():
    buffer, naive = filled(n_steps=7)
    for _ in range(2):
        step_both(buffer, naive, [None, None], np.random.default_rng(0))
    loaded = make_buffer(n_envs=2)
    loaded.load(io.BytesIO(saved(buffer)))
    for either in (buffer, loaded):
        either.sample(1)
        assert either.probabilities(0)[either.all_windows()].min() > 1e-4


def test_file_has_no_pickle_in_it():
    for name, array in contents(filled()[0]).items():
        assert array.dtype != object, name


def test_images_are_saved_as_bytes():
    space = spaces.Box(0, 255, (1, 6, 6), dtype=np.uint8)
    buffer = make_buffer(observation_space=space, sequence_length=1)
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 6, 6), dtype=np.uint8)
    buffer.add(image, image, np.zeros((1, 2)), np.ones(1), np.array([False]), [{}])
    other = make_buffer(observation_space=space, sequence_length=1)
    other.load(io.BytesIO(saved(buffer)))
    assert contents(buffer)["observations"].dtype == np.uint8
    np.testing.assert_array_equal(other.windows(np.array([[0]])).observations[0].numpy(), image)


def as_npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def changed(**changes) -> bytes:
    """A saved buffer in which some arrays were replaced; None leaves one out."""
    arrays = {**contents(filled()[0]), **changes}
    return as_npz(**{name: array for name, array in arrays.items() if array is not None})


NO_BUFFER = {
    "empty": lambda: b"",
    "garbage": lambda: b"this is no buffer" * 100,
    "only a zip's first bytes": lambda: b"PK\x03\x04" + b"\x00" * 200,
    "a pickle": lambda: pickle.dumps({"observations": [1, 2, 3]}),
    "one array": lambda: as_npy(np.zeros(3)),
    "other arrays": lambda: as_npz(a=np.zeros(3)),
    "objects": lambda: changed(rewards=np.array([{}] * 20, dtype=object)),
    "a name is missing": lambda: changed(priorities=None),
    "no size": lambda: changed(size=None),
    "size is no number": lambda: changed(size=np.arange(3)),
    "size is negative": lambda: changed(size=-20),
    "fewer steps than it says": lambda: changed(rewards=np.zeros(19, dtype=np.float32)),
    "other type of observation": lambda: changed(observations=np.zeros((20, 3), dtype=np.float64)),
    "priorities are NaN": lambda: changed(priorities=np.full((1, 20), np.nan)),
    "priorities are negative": lambda: changed(priorities=np.full((1, 20), -1.0)),
    "fewer priorities than steps": lambda: changed(priorities=np.zeros((1, 5))),
    "fewer successors than steps": lambda: changed(steps_to_successor=np.ones(5, dtype=np.int64)),
    "successors outside": lambda: changed(steps_to_successor=np.full(20, 10_000, dtype=np.int64)),
    "running steps outside": lambda: changed(running=np.array([[0, 20]])),
    "running environments outside": lambda: changed(running=np.array([[-1, 3]])),
    "running is no list of pairs": lambda: changed(running=np.arange(5)),
    "new windows where none is": lambda: changed(new_windows=no_windows()),
    "finished windows where none is": lambda: changed(finished_windows=no_windows()),
    "new windows outside": lambda: changed(new_windows=np.array([20])),
    "fewer steps added than there are": lambda: changed(n_added=np.array(19)),
    "numbers of steps added": lambda: changed(n_added=np.array([26, 26])),
    "windows of nothing": lambda: changed(sequence_length=np.array(0)),
    "actions that last for nothing": lambda: changed(action_repeat=np.array(0)),
    "errors without end": lambda: changed(largest_error=np.array(np.inf)),
}


def no_windows() -> np.ndarray:
    """The first step of a saved buffer that starts no window."""
    (steps,) = np.nonzero(~contents(filled()[0])["is_window"])
    return steps[:1]


def test_steps_without_priority_stay_so_by_another_exponent():
    buffer, _ = filled(n_members=2, per_exponent=0.6, per_epsilon=0.1)
    places = buffer.all_windows()
    other = make_buffer(n_envs=2, n_members=2, per_exponent=1.0, per_epsilon=0.5)
    other.load(io.BytesIO(saved(buffer)))
    for member in range(2):
        raised = (buffer.sampler.priorities(places)[member] ** (1.0 / 0.6) - 0.1 + 0.5) ** 1.0
        np.testing.assert_allclose(other.sampler.priorities(places)[member], raised, rtol=1e-6)
        elsewhere = np.setdiff1d(np.arange(20), places)
        assert len(elsewhere) > 0
        assert not other.sampler.priorities(elsewhere)[member].any()


def assert_refused(buffer: SequenceReplayBuffer, file: bytes, match: str) -> None:
    before = contents(buffer)
    probabilities = buffer.probabilities(0)
    with pytest.raises(ValueError, match=match):
        buffer.load(io.BytesIO(file))
    assert_same_contents(contents(buffer), before)
    np.testing.assert_array_equal(buffer.probabilities(0), probabilities)


@pytest.mark.parametrize("kind", NO_BUFFER)
def test_no_buffer_is_refused_and_nothing_changes(kind):
    assert_refused(filled(seed=2)[0], NO_BUFFER[kind](), match="saved")


def test_half_a_file_is_refused():
    buffer, whole = filled(seed=2)[0], saved(filled()[0])
    for length in np.linspace(1, len(whole) - 1, 25).astype(int):
        assert_refused(buffer, whole[:length], match="no replay buffer")


def test_file_with_a_wrong_byte_is_refused_or_harmless():
    # Checksums find most; a bit in a place without meaning (a date, say) may load, but as the same buffer.
    whole = saved(filled()[0])
    expected, rng = contents(filled()[0]), np.random.default_rng(0)
    for place in rng.choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        buffer = filled(seed=2)[0]
        before = contents(buffer)
        try:
            buffer.load(io.BytesIO(bytes(damaged)))
        except ValueError:
            assert_same_contents(contents(buffer), before)
        else:
            assert_same_contents(contents(buffer), expected)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"observation_space": spaces.Box(-1, 1, (4,), dtype=np.float32)}, "observations of shape"),
        ({"observation_space": spaces.Box(0, 255, (3,), dtype=np.uint8)}, "uint8"),
        ({"action_dim": 1}, "actions of shape"),
        ({"sequence_length": 4}, "windows of 3 steps"),
        ({"n_members": 2}, "for 1 members"),
        ({"buffer_size": 19}, "more than this agent's buffer_size 19"),
    ],
)
def test_buffer_of_another_agent_is_refused(other, match):
    assert_refused(make_buffer(**{"n_envs": 2, **other}), saved(filled()[0]), match)
