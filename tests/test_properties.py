"""
What must hold for whatever one puts in: drawing, windows, the ring, absorbing padding, saving, actions. Few examples are
tried here, many by tests/soak/test_many_examples.py.
"""

import io
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sb3_rgrl import RGRL
from sb3_rgrl.actions import make_codec
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.prioritized import PrioritizedSampler
from tests.test_bad_input import WalkEnv

# The sum tree


class Fixed:
    """Stands for a random generator: tells the same numbers again and again."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(self.numbers, shape).copy()


# With whole numbers as errors and exponent 1 every sum is exact, in whatever order it is built.
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "update", "remove"]), st.integers(0, 2**32 - 1), st.integers(1, 12)),
    min_size=1,
    max_size=8,
)


# 256 children have a root of their own, 4,096 and 65,536 windows need one level and two below it.
@given(
    capacity=st.one_of(st.integers(1, 40), st.integers(250, 300), st.just(5000)), n_members=st.integers(1, 3), changes=CHANGES
)
def test_sum_tree_draws_as_a_cumulative_sum_does(capacity, n_members, changes):
    # Fractions of 2^20 times sums below 2^30 are exact as well.
    fractions = np.append(np.random.default_rng(capacity).integers(0, 2**20, 40), [0, 2**20 - 1]) / 2**20
    sampler = PrioritizedSampler(capacity, n_members, 1.0, 0.0, Fixed(fractions))
    naive = np.zeros((n_members, capacity))
    for kind, seed, n in changes:
        rng = np.random.default_rng(seed)
        if kind == "update":
            windows = np.array([rng.permutation(capacity)[:n] for _ in range(n_members)])
        else:
            windows = rng.permutation(capacity)[:n]
        errors = rng.integers(0, 1000, (n_members, windows.shape[-1])).astype(np.float64)
        if kind == "remove":
            sampler.remove(windows)
            naive[:, windows] = 0.0
        else:
            getattr(sampler, kind)(windows, errors)
            for member in range(n_members):
                naive[member, windows[member] if kind == "update" else windows] = errors[member]
        for member in range(n_members):
            expected = naive[member] / max(naive[member].sum(), 1.0)
            np.testing.assert_array_equal(sampler.probabilities(member), expected)
    if naive.sum(axis=1).min() == 0.0:
        with pytest.raises(ValueError, match="no window to draw"):
            sampler.sample(len(fractions))
        return
    sums = np.cumsum(naive, axis=1)
    drawn = sampler.sample(len(fractions))
    for member in range(n_members):
        expected = np.searchsorted(sums[member], fractions * sums[member, -1], side="right")
        np.testing.assert_array_equal(drawn[member], expected)


# The ring and its windows


def filled(
    buffer_size: int, sequence_length: int, n_envs: int, endings: list[list[int]], every: int
) -> tuple[SequenceReplayBuffer, list[tuple[int, int, int]]]:
    """
    A buffer after some steps, and the name of each step (environment, episode, time) in the order in which they came.

    :param endings: For each step how the episode of each environment ends with it: 1 terminated, 2 cut off, else it runs.
    """
    space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
    buffer = SequenceReplayBuffer(
        buffer_size,
        space,
        spaces.Discrete(2),
        "cpu",
        n_envs,
        action_dim=2,
        sequence_length=sequence_length,
        milestone_every=every,
        seed=0,
    )
    names, episodes, times = [], [0] * n_envs, [0] * n_envs
    for told in endings:
        obs = np.array([[env, episodes[env], times[env]] for env in range(n_envs)], dtype=np.float32)
        done = np.array([kind in (1, 2) for kind in told])
        infos = [{"TimeLimit.truncated": kind == 2} for kind in told]
        actions = np.eye(2, dtype=np.float32)[np.arange(n_envs) % 2]
        buffer.add(obs, obs + np.float32([0, 0, 1]), actions, 1.0 + obs[:, 2], done, infos)
        names += [tuple(row) for row in obs.astype(int).tolist()]
        for env in range(n_envs):
            episodes[env], times[env] = (episodes[env] + 1, 0) if done[env] else (episodes[env], times[env] + 1)
        assert buffer.size() == min(len(names), buffer_size)
    return buffer, names


@st.composite
def histories(draw: Any, room: int | None = None) -> tuple[int, int, list[list[int]], int]:
    """Length of windows, number of environments, endings, and after how many steps there is a milestone."""
    sequence_length, n_envs = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    every = draw(st.sampled_from([k for k in range(1, sequence_length + 1) if sequence_length % k == 0]))
    one_step = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), min_size=n_envs, max_size=n_envs)
    return sequence_length, n_envs, draw(st.lists(one_step, min_size=1, max_size=40)), every


def lengths_of(names: list[tuple[int, int, int]]) -> dict[tuple[int, int], int]:
    lengths: dict[tuple[int, int], int] = {}
    for env, episode, k in names:
        lengths[env, episode] = max(lengths.get((env, episode), 0), k + 1)
    return lengths


def kinds_of(endings: list[list[int]]) -> dict[tuple[int, int], int]:
    kinds, episodes = {}, [0] * len(endings[0])
    for told in endings:
        for env, kind in enumerate(told):
            kinds[env, episodes[env]] = kind
            episodes[env] += kind in (1, 2)
    return kinds


@given(history=histories())
def test_windows_stay_in_their_episode_and_no_transition_is_lost(history):
    sequence_length, n_envs, endings, every = history
    buffer, names = filled(1000, sequence_length, n_envs, endings, every)
    lengths, kinds = lengths_of(names), kinds_of(endings)
    starts = buffer.all_windows()
    steps, past_end = buffer._follow(starts)
    found = set()
    for row, over in zip(steps, past_end, strict=True):
        env, episode, k = names[row[0]]
        length, kind = lengths[env, episode], kinds[env, episode]
        inside = [names[step] for step, past in zip(row, over, strict=True) if not past]
        assert inside == [(env, episode, k + j) for j in range(len(inside))], "crosses an episode, or leaves a step out"
        assert len(inside) == min(sequence_length, length - k)
        assert len(inside) == sequence_length or kind == 1, "runs past an end of which nothing is known"
        found.update(inside)
    expected = {
        (env, episode, k)
        for (env, episode), length in lengths.items()
        if kinds[env, episode] == 1 or length >= sequence_length
        for k in range(length)
    }
    assert found == expected
    n_windows = sum(n if kinds[key] == 1 else max(0, n - sequence_length + 1) for key, n in lengths.items())
    assert len(starts) == buffer.n_windows == n_windows
    event(f"windows run past an end: {bool(past_end.any())}")


@given(history=histories(), extra=st.integers(0, 12))
def test_ring_holds_the_last_steps_and_no_more(history, extra):
    sequence_length, n_envs, endings, every = history
    capacity = sequence_length * n_envs + extra
    buffer, names = filled(capacity, sequence_length, n_envs, endings, every)
    kept = names[-capacity:]
    order = np.arange(len(names) - len(kept), len(names)) % capacity
    assert [tuple(row) for row in buffer.observations[order].astype(int).tolist()] == kept
    starts = buffer.all_windows()
    steps, past_end = buffer._follow(starts)
    place_to_name = dict(zip(order.tolist(), kept, strict=True))
    for row, over in zip(steps, past_end, strict=True):
        inside = [place_to_name[step] for step, past in zip(row.tolist(), over, strict=True) if not past]
        env, episode, k = inside[0]
        assert inside == [(env, episode, k + j) for j in range(len(inside))]
    if len(starts) > 0:
        drawn = buffer.sample(20).indices
        assert np.isin(drawn, starts).all()
    event(f"overflows: {len(names) > capacity}")


@given(history=histories())
def test_after_termination_nothing_comes_any_more(history):
    sequence_length, n_envs, endings, every = history
    buffer, names = filled(1000, sequence_length, n_envs, endings, every)
    lengths, kinds = lengths_of(names), kinds_of(endings)
    starts = buffer.all_windows()
    if len(starts) == 0:
        return
    windows = buffer.windows(starts[None])
    for row, start in enumerate(starts):
        env, episode, k = names[start]
        length, terminates = lengths[env, episode], kinds[env, episode] == 1
        # The reward of step k is k + 1.
        rewards = [k + j + 1.0 if k + j < length else 0.0 for j in range(sequence_length)]
        assert windows.rewards[0, row].tolist() == rewards
        for n, done in enumerate(range(every, sequence_length + 1, every)):
            over = terminates and k + done >= length
            assert windows.terminated[0, row, n].item() == float(over)
            expected = [env, episode, min(k + done, length)]
            assert windows.next_observations[0, row, n].tolist() == expected
            if over:
                assert windows.returns_to_go[0, row, n].item() == 0.0
                assert windows.return_weights[0, row, n].item() > 0.0
        # Members get an action there, too, one that somebody took.
        assert (windows.actions[0, row].sum(dim=-1) == 1.0).all()


# Saving

FREE = {
    "learning_rate": st.floats(0.0, 1e-2),
    "buffer_size": st.integers(60, 10_000),
    "learning_starts": st.integers(0, 50),
    "batch_size": st.integers(1, 64),
    "train_freq": st.one_of(st.integers(1, 50), st.tuples(st.integers(1, 10), st.sampled_from(["step", "episode"]))),
    "gradient_steps": st.integers(-1, 20),
    "gamma": st.floats(0.01, 1.0),
    "ensemble_size": st.integers(1, 4),
    "n_plan_iterations": st.integers(0, 3),
    "n_candidates": st.integers(1, 9),
    "exploration_candidates": st.integers(1, 12),
    "action_learning_rate": st.floats(0.0, 2.0),
    "action_init_std": st.floats(0.0, 3.0),
    "action_noise_correlation": st.floats(0.0, 0.99),
    "per_exponent": st.floats(0.0, 2.0),
    "per_epsilon": st.floats(0.0, 1.0),
    "ewc_lambda": st.floats(0.0, 10.0),
    "ewc_fisher": st.sampled_from(["batch", "window"]),
    "dropout": st.floats(0.0, 0.9),
    "stats_window_size": st.integers(1, 200),
    "verbose": st.just(0),
    "seed": st.integers(0, 2**31 - 1),
}
POLICY_KWARGS = st.fixed_dictionaries(
    {"net_arch": st.lists(st.integers(1, 9), min_size=1, max_size=2)},
    optional={
        "aim": st.sampled_from(["return", "step"]),
        "return_weight": st.floats(0.0, 2.0),
        "action_optimizer": st.sampled_from(["adam", "sgd"]),
        "action_initializer": st.sampled_from(["normal", "uniform", "xavier", "zero"]),
        "member_choice": st.sampled_from(["random", "cyclic", "mean"]),
        "warm_start": st.booleans(),
        "exploration_members": st.integers(1, 5),
        "fast_gradients": st.booleans(),
        "windows_per_sample": st.integers(1, 3),
    },
)
BUFFER_KWARGS = st.fixed_dictionaries(
    {},
    optional={
        "return_recency": st.floats(0.0, 5.0),
        "return_in_priority": st.booleans(),
        "priority_refresh": st.sampled_from(["drawn", "all"]),
    },
)


@st.composite
def constructors(draw: Any) -> dict[str, Any]:
    chosen = draw(st.fixed_dictionaries({}, optional=FREE))
    chosen["sequence_length"] = draw(st.integers(1, 4))
    chosen["plan_horizon"] = chosen["sequence_length"] * draw(st.integers(1, 3))
    size = chosen.get("ensemble_size", 5)
    reward = st.floats(-10.0, 10.0)
    chosen["desired_reward"] = draw(st.one_of(st.none(), reward, st.lists(reward, min_size=size, max_size=size)))
    kind = draw(st.sampled_from(["MlpEnsemblePolicy", "GruEnsemblePolicy", "RnnEnsemblePolicy"]))
    return {"policy": kind, **chosen, "policy_kwargs": draw(POLICY_KWARGS), "replay_buffer_kwargs": draw(BUFFER_KWARGS)}


@settings(max_examples=max(5, settings().max_examples // 10))
@given(arguments=constructors(), discrete=st.booleans())
def test_any_legal_agent_comes_back_from_its_file(arguments, discrete):
    env = WalkEnv(action_space=spaces.Discrete(3, start=1) if discrete else None)
    model = RGRL(env=env, device="cpu", **arguments)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = RGRL.load(file, device="cpu")
    for name in arguments:
        if name not in ("policy", "policy_kwargs", "stats_window_size"):
            assert getattr(loaded, name) == getattr(model, name), name
    assert type(loaded.policy) is type(model.policy)
    mine, theirs = model.policy.state_dict(), loaded.policy.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert th.equal(value, theirs[name]), name
    observation = np.array([[0.0, 0.5], [3.0, -2.0]], dtype=np.float32)
    np.testing.assert_array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )


# Actions


@st.composite
def boxes(draw: Any) -> spaces.Box:
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    shape = draw(st.sampled_from([(1,), (3,), (2, 2)]))
    # Bounds of comparable size: encoded actions are single precision, some 1e-7 of the width.
    low = np.array(draw(st.lists(st.integers(-50, 50), min_size=4, max_size=4)))[: int(np.prod(shape))].reshape(shape)
    width = np.array(draw(st.lists(st.integers(0, 100), min_size=4, max_size=4)))[: int(np.prod(shape))].reshape(shape)
    return spaces.Box(low.astype(dtype), (low + width).astype(dtype), shape, dtype=dtype)


SPACES = st.one_of(
    boxes(), st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 20), st.integers(-9, 9))
)


@given(space=SPACES, seed=st.integers(0, 2**31 - 1))
def test_codecs_invert(space, seed):
    codec = make_codec(space)
    space.seed(seed)
    actions = np.array([space.sample() for _ in range(5)])
    encoded = codec.encode(actions)
    assert encoded.shape == (5, codec.dim)
    decoded = codec.decode(encoded)
    assert decoded.dtype == space.dtype
    assert decoded.shape == actions.shape
    assert all(space.contains(action) for action in decoded)
    if np.issubdtype(space.dtype, np.integer):
        np.testing.assert_array_equal(decoded, actions)
    else:
        np.testing.assert_allclose(decoded, actions, rtol=0, atol=2e-7 * 150)
    # And the other way round: what was planned is what is stored.
    planned = codec.execute(np.random.default_rng(seed).standard_normal((5, codec.dim)).astype(np.float32))
    again = codec.encode(codec.decode(planned))
    if isinstance(space, spaces.Discrete):
        np.testing.assert_array_equal(again, planned)
    elif not np.issubdtype(space.dtype, np.integer):
        free = (space.high > space.low).reshape(-1)
        np.testing.assert_allclose(again[:, free], planned[:, free], rtol=0, atol=2e-5)
