"""The sequence buffer against a deque of steps and loops over it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_rgrl.buffers import SequenceReplayBuffer
from tests.oracles_buffer import (
    ENDINGS,
    GAMMA,
    NaiveBuffer,
    Name,
    assert_same,
    make_buffer,
    milestone_spacings,
    names_of,
    step_both,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n_envs=st.integers(1, 3), sequence_length=st.sampled_from([1, 2, 3, 4, 6]), seed=st.integers(0, 1000))
def test_windows_equal_naive_reference(data, n_envs, sequence_length, seed):
    # Smaller than the data most of the time, so old steps are overwritten; yet a step of all environments and the
    # window that it completes fit in.
    buffer_size = data.draw(st.integers(n_envs * sequence_length, 40))
    rng = np.random.default_rng(seed)
    every = data.draw(st.sampled_from(milestone_spacings(sequence_length)))
    buffer = make_buffer(buffer_size, n_envs, sequence_length, milestone_every=every)
    naive = NaiveBuffer(buffer_size, n_envs, sequence_length, every)
    known_new: set[Name] = set()
    known_finished: set[Name] = set()
    for _ in range(data.draw(st.integers(1, 30))):
        step_both(buffer, naive, data.draw(st.lists(ENDINGS, min_size=n_envs, max_size=n_envs)), rng)
        if data.draw(st.sampled_from([False] * 9 + [True])):
            buffer.cut_running_episodes()
            naive.cut()
        if data.draw(st.booleans()):
            # Each window is reported once, as long as it is not overwritten before anyone asked.
            for pop, known, now in (
                (buffer.pop_new_windows, known_new, set(naive.windows())),
                (buffer.pop_finished_windows, known_finished, naive.finished()),
            ):
                popped = names_of(buffer, pop()) if buffer.size() else []
                assert len(popped) == len(set(popped))
                assert set(popped) == now - known
                known |= now
                assert len(pop()) == 0
        assert_same(buffer, naive)


@pytest.mark.parametrize("sequence_length", [2, 3])
def test_buffer_that_is_small_for_its_environments(sequence_length):
    # By the time a window of 3 environments is complete, its start may have been overwritten already.
    for buffer_size in range(sequence_length, 3 * sequence_length):
        try:
            buffer = make_buffer(buffer_size, 3, sequence_length)
        except ValueError:
            continue  # to refuse such a buffer is fine, to hand out wrong windows is not
        naive, rng = NaiveBuffer(buffer_size, 3, sequence_length), np.random.default_rng(0)
        for k in range(12):
            step_both(buffer, naive, [None, None, "terminated" if k % 5 == 4 else None], rng)
            assert_same(buffer, naive)
        buffer.cut_running_episodes()


def test_windows_by_hand():
    # An episode of 4 that terminates, then one of 4 that is cut off, windows of 3.
    buffer, naive, rng = make_buffer(), NaiveBuffer(20, 1, 3), np.random.default_rng(0)
    for ending in [None, None, None, "terminated", None, None, None, "truncated"]:
        step_both(buffer, naive, [ending], rng)
    starts = sorted(names_of(buffer, buffer.all_windows()))
    assert starts == [(0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 1, 3), (0, 2, 0), (0, 2, 1)]
    last_of_first = buffer.windows(np.array([[3]]))
    assert last_of_first.rewards[0, 0, 1:].tolist() == [0.0, 0.0]
    assert last_of_first.terminated.item() == 1.0
    assert last_of_first.next_observations[0, 0].tolist() == [[0.0, 1.0, 4.0]]
    last_of_second = buffer.windows(np.array([[5]]))
    assert last_of_second.terminated.item() == 0.0
    assert last_of_second.return_weights.item() == 0.0, "nothing was observed after the cut"


def one_episode(ending: str, every: int | None) -> SequenceReplayBuffer:
    """Rewards 1, 2, 4, 8, 16, 32 at the states 0 .. 6 of the first episode, and windows of 6."""
    buffer = make_buffer(sequence_length=6, milestone_every=every)
    for k in range(6):
        obs, next_obs = np.float32([[0, 1, k]]), np.float32([[0, 1, k + 1]])
        info = {"TimeLimit.truncated": ending == "truncated"} if k == 5 else {}
        buffer.add(obs, next_obs, np.full((1, 2), 0.1 * k), np.array([2.0**k]), np.array([k == 5]), [info])
    return buffer


def test_milestones_by_hand_past_a_terminal_end():
    # Steps 3, 4 and 5 are left of the episode; its last state is number 6.
    window = one_episode("terminated", 2).windows(np.array([[3]]))
    assert window.rewards.tolist() == [[[8.0, 16.0, 32.0, 0.0, 0.0, 0.0]]]
    assert window.next_observations[0, 0, :, 2].tolist() == [5.0, 6.0, 6.0]
    assert window.terminated.tolist() == [[[0.0, 1.0, 1.0]]]
    assert window.returns_to_go.tolist() == [[[32.0, 0.0, 0.0]]]
    assert window.return_weights.tolist() == [[[1.0, 1.0, 1.0]]]
    # The end may fall on a milestone exactly, and on the first of them.
    window = one_episode("terminated", 3).windows(np.array([[3, 5]]))
    assert window.terminated.tolist() == [[[1.0, 1.0], [1.0, 1.0]]]
    assert window.next_observations[0, :, :, 2].tolist() == [[6.0, 6.0], [6.0, 6.0]]


def test_milestones_by_hand_of_an_episode_that_was_cut_off():
    buffer = one_episode("truncated", 3)
    assert buffer.all_windows().tolist() == [0]
    window = buffer.windows(np.array([[0]]))
    assert window.next_observations[0, 0, :, 2].tolist() == [3.0, 6.0]
    assert window.terminated.tolist() == [[[0.0, 0.0]]]
    # 8, 16 and 32 follow the first milestone, nothing that was seen the second.
    seen = 1.0 - GAMMA**3
    assert window.return_weights[0, 0].tolist() == pytest.approx([seen, 0.0])
    assert window.returns_to_go[0, 0].tolist() == pytest.approx([(8.0 + GAMMA * 16.0 + GAMMA**2 * 32.0) / seen, 0.0])


@pytest.mark.parametrize("every", [0, -1, 4, 12])
def test_milestones_that_do_not_divide_the_window_are_refused(every):
    with pytest.raises(ValueError, match=f"milestone_every must divide sequence_length 6, got {every}"):
        make_buffer(sequence_length=6, milestone_every=every)


def test_done_without_a_word_about_time_limits_is_termination():
    buffer = make_buffer(sequence_length=3)
    zeros = np.zeros((1, 3), dtype=np.float32)
    buffer.add(zeros, zeros + 1, np.zeros((1, 2)), np.ones(1), np.array([True]), [{}])
    assert buffer.n_windows == 1
    assert buffer.windows(np.array([[0]])).terminated.item() == 1.0


def test_capacity_is_never_exceeded_and_the_oldest_go_first():
    buffer, naive, rng = make_buffer(buffer_size=7, sequence_length=2), NaiveBuffer(7, 1, 2), np.random.default_rng(0)
    for k in range(40):
        step_both(buffer, naive, ["terminated" if k % 3 == 2 else None], rng)
        assert buffer.size() == min(k + 1, 7)
        kept = sorted(names_of(buffer, buffer.all_windows())) if buffer.n_windows else []
        assert kept == sorted(naive.windows())
    assert buffer.full


@pytest.mark.parametrize(("n_steps", "n_asked"), [(4, 10), (4, 3), (7, 3), (12, 5), (12, 100)])
def test_the_oldest_steps_are_told_from_before_to_after(n_steps, n_asked):
    buffer, naive, rng = make_buffer(buffer_size=7, sequence_length=2), NaiveBuffer(7, 1, 2), np.random.default_rng(0)
    for k in range(n_steps):
        step_both(buffer, naive, ["terminated" if k % 3 == 2 else None], rng)
    before, after = buffer.steps(n_asked)
    expected = [(0, 1 + k // 3, k % 3) for k in range(max(0, n_steps - 7), n_steps)][:n_asked]
    assert before.shape == after.shape == (1, len(expected), 3)
    assert [tuple(row) for row in before[0].tolist()] == expected
    assert [tuple(row) for row in after[0].tolist()] == [(env, episode, k + 1) for env, episode, k in expected]


def test_weight_is_0_while_the_episode_runs():
    buffer, naive, rng = make_buffer(sequence_length=1), NaiveBuffer(20, 1, 1), np.random.default_rng(0)
    for _ in range(5):
        step_both(buffer, naive, [None], rng)
        assert buffer.windows(buffer.all_windows()[None]).return_weights.sum() == 0.0
        assert len(buffer.pop_finished_windows()) == 0
    step_both(buffer, naive, ["terminated"], rng)
    assert buffer.windows(buffer.all_windows()[None]).return_weights.tolist() == [[[1.0]] * 6]
    assert len(buffer.pop_finished_windows()) == 6


def test_episode_longer_than_the_buffer():
    buffer, naive, rng = make_buffer(buffer_size=6, sequence_length=2), NaiveBuffer(6, 1, 2), np.random.default_rng(0)
    for _ in range(25):
        step_both(buffer, naive, [None], rng)
    step_both(buffer, naive, ["terminated"], rng)
    assert_same(buffer, naive)
    assert len(buffer.pop_finished_windows()) == 6


def test_cut_running_episodes_ends_them_without_termination():
    buffer, naive, rng = make_buffer(n_envs=2), NaiveBuffer(20, 2, 3), np.random.default_rng(0)
    for endings in ([None, None], [None, "terminated"], [None, None], [None, None]):
        step_both(buffer, naive, endings, rng)
    buffer.cut_running_episodes()
    naive.cut()
    assert_same(buffer, naive)
    n_windows = buffer.n_windows
    buffer.cut_running_episodes()
    assert buffer.n_windows == n_windows, "there was nothing left to cut"
    # What comes next does not go on from what was cut.
    for _ in range(3):
        step_both(buffer, naive, [None, None], rng)
    assert_same(buffer, naive)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_windows_of_another_length_are_those_of_a_buffer_that_had_it_from_the_start(length):
    buffer, naive, rng = make_buffer(n_envs=2, milestone_every=1), NaiveBuffer(20, 2, length, 1), np.random.default_rng(0)
    endings = [[None, None], [None, "truncated"], [None, None], ["terminated", None], [None, None], [None, "truncated"]]
    for ending in endings:
        step_both(buffer, naive, ending, rng)
    # Of two and of four steps; the one of four steps that terminated was not cut off.
    assert buffer.longest_cut_episode() == 4
    buffer.set_windows(1, length)
    assert_same(buffer, naive)
    # The ring is overwritten, and episodes that ran go on.
    for ending in 2 * endings:
        step_both(buffer, naive, ending, rng)
        assert_same(buffer, naive)


@pytest.mark.parametrize("n_steps", [6, 17])
def test_everything_is_new_once_more(n_steps):
    # 20 steps fit in: after 17 of two environments, the ring was overwritten.
    buffer, naive, rng = make_buffer(n_envs=2), NaiveBuffer(20, 2, 3), np.random.default_rng(0)
    for k in range(n_steps):
        step_both(buffer, naive, [None, "truncated" if k % 5 == 4 else None], rng)
    buffer.pop_new_windows()
    buffer.pop_finished_windows()
    buffer.mark_all_as_new()
    # Asked for later, when some of them were overwritten.
    step_both(buffer, naive, [None, None], rng)
    assert set(names_of(buffer, buffer.pop_new_windows())) == set(naive.windows())
    assert set(names_of(buffer, buffer.pop_finished_windows())) == naive.finished()
    assert naive.finished() < set(naive.windows())


def test_reset_forgets_everything():
    buffer, naive, rng = make_buffer(buffer_size=12, n_envs=2), NaiveBuffer(12, 2, 3), np.random.default_rng(0)
    for k in range(10):
        step_both(buffer, naive, [None, "terminated" if k == 5 else None], rng)
    buffer.sample(4)
    buffer.reset()
    assert (buffer.size(), buffer.n_windows, len(buffer.all_windows())) == (0, 0, 0)
    assert len(buffer.pop_new_windows()) == len(buffer.pop_finished_windows()) == 0
    np.testing.assert_array_equal(buffer.probabilities(0), 0.0)
    with pytest.raises(ValueError, match="no window"):
        buffer.sample(1)
    naive = NaiveBuffer(12, 2, 3)
    for k in range(10):
        step_both(buffer, naive, [None, "truncated" if k == 5 else None], rng)
        assert_same(buffer, naive)


# Drawing


@pytest.mark.parametrize(("every", "n_milestones"), [(None, 1), (3, 1), (1, 3)])
def test_samples_are_windows_for_each_member(every, n_milestones):
    buffer = make_buffer(buffer_size=15, n_envs=2, n_members=3, milestone_every=every)
    naive, rng = NaiveBuffer(15, 2, 3), np.random.default_rng(0)
    for k in range(30):
        step_both(buffer, naive, ["terminated" if k % 7 == 6 else None, "truncated" if k % 4 == 3 else None], rng)
        if buffer.n_windows == 0:
            continue
        samples, legal = buffer.sample(8), set(buffer.all_windows())
        assert samples.indices.shape == (3, 8)
        assert set(samples.indices.ravel()) <= legal
        assert samples.observations.shape == (3, 8, 3)
        assert samples.next_observations.shape == (3, 8, n_milestones, 3)
        assert samples.actions.shape == (3, 8, 3, 2)
        assert samples.rewards.shape == (3, 8, 3)
        assert samples.terminated.shape == samples.returns_to_go.shape == samples.return_weights.shape
        assert samples.terminated.shape == (3, 8, n_milestones)
        assert {samples.actions.dtype, samples.rewards.dtype, samples.terminated.dtype} == {th.float32}
        assert {samples.returns_to_go.dtype, samples.return_weights.dtype} == {th.float32}
        buffer.update_priorities(samples.indices, th.rand(3, 8), th.rand(3, 8))


def test_sampling_without_windows():
    buffer, naive = make_buffer(), NaiveBuffer(20, 1, 3)
    with pytest.raises(ValueError, match="no window"):
        buffer.sample(1)
    step_both(buffer, naive, [None], np.random.default_rng(0))
    with pytest.raises(ValueError, match="no window"):
        buffer.sample(1)


@pytest.mark.parametrize("return_in_priority", [False, True])
def test_priorities_are_the_errors_of_each_member(return_in_priority):
    buffer = make_buffer(sequence_length=1, n_members=2, return_in_priority=return_in_priority, per_epsilon=0.0)
    naive, rng = NaiveBuffer(20, 1, 1), np.random.default_rng(0)
    for _ in range(3):
        step_both(buffer, naive, [None], rng)
    buffer.sample(1)
    reward_errors, return_errors = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 0.0]]), np.array([[1.0, 0.0, 1.0], [0.0, 4.0, 4.0]])
    buffer.update_priorities(np.array([[0, 1, 2]] * 2), th.as_tensor(reward_errors), th.as_tensor(return_errors))
    expected = reward_errors + (return_errors if return_in_priority else 0.0)
    for member in range(2):
        np.testing.assert_allclose(buffer.probabilities(member)[:3], expected[member] / expected[member].sum())
        np.testing.assert_array_equal(buffer.probabilities(member)[3:], 0.0)


def test_new_window_gets_the_largest_error_so_far():
    buffer, naive, rng = make_buffer(sequence_length=1, per_epsilon=0.0), NaiveBuffer(20, 1, 1), np.random.default_rng(0)
    for _ in range(2):
        step_both(buffer, naive, [None], rng)
    buffer.sample(1)
    buffer.update_priorities(np.array([[0, 1]]), th.tensor([[6.0, 2.0]]), th.zeros(1, 2))
    step_both(buffer, naive, [None], rng)
    buffer.sample(1)
    np.testing.assert_allclose(buffer.probabilities(0)[:3], np.array([6.0, 2.0, 6.0]) / 14.0)


def test_same_seed_same_samples():
    drawn = []
    for seed in (1, 1, 2):
        buffer, naive, rng = make_buffer(seed=seed), NaiveBuffer(20, 1, 3), np.random.default_rng(0)
        for k in range(18):
            step_both(buffer, naive, ["terminated" if k % 6 == 5 else None], rng)
        drawn.append(buffer.sample(30))
    np.testing.assert_array_equal(drawn[0].indices, drawn[1].indices)
    th.testing.assert_close(drawn[0].actions, drawn[1].actions, rtol=0, atol=0)
    assert not np.array_equal(drawn[0].indices, drawn[2].indices)


def test_images_stay_bytes():
    space = spaces.Box(0, 255, (1, 6, 6), dtype=np.uint8)
    buffer = make_buffer(observation_space=space, sequence_length=2, milestone_every=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 1, 1, 6, 6), dtype=np.uint8)
    for k in range(5):
        buffer.add(images[k], images[k + 1], np.zeros((1, 2)), np.ones(1), np.array([k == 4]), [{}])
    assert buffer.observations.dtype == np.uint8
    samples = buffer.windows(np.array([[0, 3, 4]]))
    assert samples.observations.dtype == samples.next_observations.dtype == th.uint8
    np.testing.assert_array_equal(samples.observations[0].numpy(), images[[0, 3, 4], 0])
    np.testing.assert_array_equal(samples.next_observations[0].numpy(), images[[[1, 2], [4, 5], [5, 5]], 0])


# Size


def test_sequence_longer_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match="a buffer of 4 steps never holds a window of 5"):
        make_buffer(buffer_size=4, sequence_length=5)
    with pytest.raises(ValueError, match="sequence_length must be within"):
        make_buffer(sequence_length=0)
    make_buffer(buffer_size=4, sequence_length=4)


def test_unknown_priority_refresh_is_refused():
    with pytest.raises(ValueError, match=r"priority_refresh must be one of .*drawn.*all.*'never'"):
        make_buffer(priority_refresh="never")


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def fill_a_large_buffer_a_little() -> tuple[float, float, int]:
    """Its seconds, its MiB, and the steps that are in it."""
    # Its observations alone would be 2 x 244 MiB.
    space = spaces.Box(-1, 1, (64,), dtype=np.float32)

    def fill_a_little(size: int) -> SequenceReplayBuffer:
        buffer = make_buffer(size, observation_space=space, sequence_length=5, n_members=5)
        zeros = np.zeros((1, 64), dtype=np.float32)
        for _ in range(10):
            buffer.add(zeros, zeros, np.zeros((1, 2)), np.zeros(1), np.array([False]), [{}])
        buffer.sample(4)
        return buffer

    # What libraries take when they are used for the first time is not the buffer's.
    fill_a_little(100)
    before, began = resident_mib(), time.perf_counter()
    buffer = fill_a_little(1_000_000)
    return time.perf_counter() - began, resident_mib() - before, buffer.size()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux how much memory is taken")
def test_large_buffer_takes_memory_only_as_it_fills():
    # In a process of its own: memory that other tests have used and freed is handed out again, and zeros are written to it.
    code = "from tests.test_buffers import fill_a_large_buffer_a_little as fill; print(*fill())"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, mib, size = map(float, done.stdout.split())
    assert seconds < 2.0
    assert mib < 50.0
    assert size == 10


# Age


@pytest.mark.parametrize("recency", [0.5, 2.0])
def test_old_returns_count_less(recency):
    rng = np.random.default_rng(0)
    samples = []
    for exponent in (0.0, recency):
        buffer, naive = make_buffer(sequence_length=2, return_recency=exponent), NaiveBuffer(20, 1, 2)
        for ending in [None, None, "terminated", None, "terminated"]:
            step_both(buffer, naive, [ending], rng)
        samples.append(buffer.windows(buffer.all_windows()[None]))
    plain, aged = samples
    for row, place in enumerate(range(5)):
        # The k-th of 5 steps, counted from 1
        expected = plain.return_weights[0, row] * ((place + 1) / 5) ** recency
        th.testing.assert_close(aged.return_weights[0, row], expected)
    assert aged.return_weights[0, -1].item() == 1.0


def test_age_goes_on_in_a_full_ring():
    buffer, naive, rng = make_buffer(4, sequence_length=1, return_recency=1.0), NaiveBuffer(4, 1, 1), np.random.default_rng(0)
    for _ in range(10):
        step_both(buffer, naive, ["terminated"], rng)
    # Steps 7 to 10 of 10, wherever they lie.
    weights = buffer.windows(buffer.all_windows()[None]).return_weights[0, :, 0]
    assert sorted(weights.tolist()) == pytest.approx([0.7, 0.8, 0.9, 1.0])
    assert weights[(buffer.pos - 1) % 4].item() == 1.0


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_impossible_recency_is_refused(bad):
    with pytest.raises(ValueError, match="return_recency must be a finite number that is not negative"):
        make_buffer(return_recency=bad)


def test_returns_do_not_age_where_one_asks_for_what_was_observed_alone():
    buffer, naive, rng = make_buffer(sequence_length=2, return_recency=2.0), NaiveBuffer(20, 1, 2), np.random.default_rng(0)
    for ending in [None, None, None, "truncated", None, "terminated"]:
        step_both(buffer, naive, [ending], rng)
    places = buffer.all_windows()[None]
    observed = buffer.windows(places, aged=False).return_weights[0, :, 0]
    # Of the first episode two, one and no reward follow its three windows; the second ended by itself.
    assert observed.tolist() == pytest.approx([1.0 - GAMMA**2, 1.0 - GAMMA, 0.0, 1.0, 1.0])
    assert buffer.windows(places).return_weights[0, 0, 0] < 0.2 * observed[0]
