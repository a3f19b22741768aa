"""A sequence buffer as a deque of steps and loops over it, and what fills one beside the real one."""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import strategies as st

from sb3_rgrl.buffers import SequenceReplayBuffer

GAMMA = 0.9
# Which environment, which episode, which time: no two observations are equal, so an observation names its step.
OBS_SPACE = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)

Name = tuple[int, int, int]


@dataclass
class Episode:
    """All rewards of an episode, and how it ended (None: it runs)."""

    env: int
    number: int
    rewards: list[float] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    ending: str | None = None


class NaiveBuffer:
    """What the sequence buffer should hold: a deque of (episode, time), everything else is looked up when asked."""

    def __init__(self, buffer_size: int, n_envs: int, sequence_length: int, milestone_every: int | None = None) -> None:
        self.steps: deque[tuple[Episode, int]] = deque(maxlen=buffer_size)
        self.sequence_length, self.n_episodes = sequence_length, 0
        self.milestone_every = milestone_every or sequence_length
        self.running = [self.new_episode(env) for env in range(n_envs)]
        self.gamma = GAMMA

    def new_episode(self, env: int) -> Episode:
        self.n_episodes += 1
        return Episode(env, self.n_episodes)

    def windows(self) -> dict[Name, dict[str, np.ndarray]]:
        """Every legal window, by the observation that it starts with."""
        found = {}
        for episode, start in self.steps:
            rewards, actions = [], []
            for j in range(self.sequence_length):
                if start + j < len(episode.rewards):
                    rewards.append(episode.rewards[start + j])
                    actions.append(episode.actions[start + j])
                elif episode.ending == "terminated":
                    rewards.append(0.0)
            if len(rewards) < self.sequence_length:
                continue
            milestones = []
            for n_done in range(1, self.sequence_length + 1):
                if n_done % self.milestone_every == 0:
                    # Number of steps of the episode by then: it stays at its end.
                    milestones.append(self.milestone(episode, min(start + n_done, len(episode.rewards))))
            found[episode.env, episode.number, start] = {"rewards": rewards, "actions": actions, "milestones": milestones}
        return found

    def milestone(self, episode: Episode, n_done: int) -> dict:
        """What is known of an episode after its first ``n_done`` steps."""
        following = episode.rewards[n_done:]
        observed = sum(self.gamma**j * reward for j, reward in enumerate(following))
        if episode.ending == "terminated":
            weight, returns = 1.0, observed
        elif episode.ending == "truncated":
            weight = 1.0 - self.gamma ** len(following)
            returns = observed / weight if following else 0.0
        else:
            weight, returns = 0.0, None
        return {
            "next_observation": (episode.env, episode.number, n_done),
            "terminated": float(episode.ending == "terminated" and n_done == len(episode.rewards)),
            "weight": weight,
            "return": returns,
        }

    def finished(self) -> set[Name]:
        ended = {(e.env, e.number) for e, _ in self.steps if e.ending is not None}
        return {name for name in self.windows() if name[:2] in ended}

    def cut(self) -> None:
        for env, episode in enumerate(self.running):
            # An episode of which no step came is none.
            if episode.rewards:
                episode.ending = "truncated"
                self.running[env] = self.new_episode(env)


def make_buffer(buffer_size: int = 20, n_envs: int = 1, sequence_length: int = 3, **kwargs) -> SequenceReplayBuffer:
    return SequenceReplayBuffer(
        buffer_size,
        kwargs.pop("observation_space", OBS_SPACE),
        kwargs.pop("action_space", ACTION_SPACE),
        "cpu",
        n_envs,
        action_dim=kwargs.pop("action_dim", 2),
        sequence_length=sequence_length,
        gamma=GAMMA,
        **{"seed": 0, "return_recency": 0.0, **kwargs},
    )


def step_both(buffer: SequenceReplayBuffer, naive: NaiveBuffer, endings: list[str | None], rng: np.random.Generator) -> None:
    """One step of every environment, stored in both; ``endings`` tells how the episodes end with it."""
    obs, next_obs, actions, rewards, infos = [], [], [], [], []
    for env, ending in enumerate(endings):
        episode = naive.running[env]
        k = len(episode.rewards)
        obs.append((env, episode.number, k))
        next_obs.append((env, episode.number, k + 1))
        actions.append(rng.uniform(-1, 1, 2).astype(np.float32))
        rewards.append(float(np.float32(rng.uniform(-5, 5))))
        # SB3's own environments put the key there for terminated episodes, too.
        infos.append({} if ending is None else {"TimeLimit.truncated": ending == "truncated"})
        episode.rewards.append(rewards[-1])
        episode.actions.append(actions[-1])
        naive.steps.append((episode, k))
        if ending is not None:
            episode.ending = ending
            naive.running[env] = naive.new_episode(env)
    done = np.array([ending is not None for ending in endings])
    buffer.add(np.float32(obs), np.float32(next_obs), np.array(actions), np.float32(rewards), done, infos)


def names_of(buffer: SequenceReplayBuffer, places: np.ndarray) -> list[Name]:
    observations = buffer.windows(places[None]).observations[0].numpy()
    return [tuple(int(x) for x in row) for row in observations]


def assert_same(buffer: SequenceReplayBuffer, naive: NaiveBuffer) -> None:
    """Every legal window is there with the right contents, and no other."""
    expected, places = naive.windows(), buffer.all_windows()
    assert buffer.size() == len(naive.steps) <= buffer.buffer_size
    assert buffer.n_windows == len(places) == len(expected)
    if len(places) == 0:
        return
    samples = buffer.windows(places[None])
    stored_actions = {tuple(e.actions[k].tolist()) for e, k in naive.steps}
    seen = set()
    for row, name in enumerate(names_of(buffer, places)):
        assert name in expected, f"{name} starts no window"
        assert name not in seen
        seen.add(name)
        window = expected[name]
        np.testing.assert_array_equal(samples.rewards[0, row].numpy(), np.float32(window["rewards"]))
        actions, n_real = samples.actions[0, row].numpy(), len(window["actions"])
        np.testing.assert_array_equal(actions[:n_real], window["actions"])
        # After the end: any action that was really taken.
        assert {tuple(action.tolist()) for action in actions[n_real:]} <= stored_actions
        milestones = window["milestones"]
        assert samples.terminated[0, row].tolist() == [milestone["terminated"] for milestone in milestones]
        told = zip(samples.next_observations[0, row].tolist(), milestones, strict=True)
        for next_observation, milestone in told:
            assert tuple(next_observation) == milestone["next_observation"]
        weights = [milestone["weight"] for milestone in milestones]
        assert samples.return_weights[0, row].tolist() == pytest.approx(weights, rel=1e-6)
        if milestones[0]["return"] is not None:
            returns = [milestone["return"] for milestone in milestones]
            assert samples.returns_to_go[0, row].tolist() == pytest.approx(returns, rel=1e-5, abs=1e-5)


ENDINGS = st.sampled_from([None, None, None, None, "terminated", "truncated"])


def milestone_spacings(sequence_length: int) -> list[int | None]:
    """Every divisor, and the default."""
    return [None, *(every for every in range(1, sequence_length + 1) if sequence_length % every == 0)]
