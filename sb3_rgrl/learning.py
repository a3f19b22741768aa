"""Learning: lines 19-25 of Algorithm 1 of the paper, and the units of what there is to learn."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.components import for_components
from sb3_rgrl.ewc import ElasticWeightConsolidation
from sb3_rgrl.logs import Update, log_updates
from sb3_rgrl.policies import EnsemblePolicy
from sb3_rgrl.targets import WindowSamples, alive_before, split_windows
from sb3_rgrl.time_scale import measured_action_repeat


class _ToldToStop(Exception):
    """A pass over the whole buffer was not finished, see :meth:`~sb3_rgrl.acting.ActingAlgorithm.stop_soon`."""


class LearningAlgorithm(BaseAlgorithm):
    """The part of :class:`~sb3_rgrl.rgrl.RGRL` that lets its members learn from the windows in its buffer."""

    # The per-window Fisher information is a mean over windows, each of which takes a gradient of its own: so many, drawn
    # from the whole buffer, estimate it without bias. "As one batch" takes all of them.
    FISHER_WINDOWS: ClassVar[int] = 512
    # Of how many windows the units of states are measured anew before each learning phase, where features are learned.
    UNIT_WINDOWS: ClassVar[int] = 256
    # By how many steps, the first ones, the time scale and the length of episodes are measured at most.
    UNIT_STEPS: ClassVar[int] = 10_000
    # Of how many updates windows are drawn at once, see :meth:`_draw`.
    UPDATES_AT_ONCE: ClassVar[int] = 10
    # So many standard deviations away from the mean, a reward hides the differences of all others: those of ordinary tasks
    # with a rare reward stay below.
    OUTLIER: ClassVar[float] = 1e4

    policy: EnsemblePolicy
    replay_buffer: SequenceReplayBuffer | None
    ewc: ElasticWeightConsolidation
    batch_size: int
    gamma: float
    ensemble_size: int
    sequence_length: int
    action_repeat: int | None
    ewc_lambda: float
    ewc_fisher: str
    _stop_soon: bool

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Every member learns from windows that it draws for itself (Algorithm 1, lines 19-25).

        :param gradient_steps: Number of updates.
        :param batch_size: Windows per member and update.
        :raises ValueError: If the loss or a weight is not finite.
        """
        buffer, policy = self.replay_buffer, self.policy
        assert buffer is not None
        self._settle_windows(buffer)
        self._take_in_new_windows(buffer)
        if buffer.n_windows == 0:
            self._warn_of_short_episodes()
            return
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)

        updates = []
        for windows in self._draw(buffer, gradient_steps, batch_size):
            updates.append(self._update(buffer, windows))
            if self._stop_soon:
                break
        self._check_weights()
        if self.ewc_lambda > 0 and not self._stop_soon:
            with suppress(_ToldToStop):
                self.ewc.consolidate(self._losses_on_everything(buffer))
        self._n_updates += len(updates)
        log_updates(self.logger, updates, self._n_updates)

    def _draw(self, buffer: SequenceReplayBuffer, n_updates: int, batch_size: int) -> Iterator[WindowSamples]:
        """
        :param buffer: The replay buffer.
        :param n_updates: Number of updates.
        :param batch_size: Windows per member and update.
        :return: Windows for each update: those of several at once where the errors of one have no say in what the next one
            draws, which is cheaper; but not those of images, for which there may be no room.
        """
        n_at_once = self.UPDATES_AT_ONCE if buffer.draws_uniformly and not self.policy.learns_features else 1
        for first in range(0, n_updates, n_at_once):
            if buffer.priority_refresh == "all" and not buffer.draws_uniformly:
                self._renew_priorities(buffer, buffer.all_windows())
            n_drawn = batch_size * min(n_at_once, n_updates - first)
            yield from split_windows(buffer.sample(n_drawn, env=self._vec_normalize_env), batch_size)

    def _update(self, buffer: SequenceReplayBuffer, windows: WindowSamples) -> Update:
        """
        :param buffer: The replay buffer.
        :param windows: What is learned from.
        :return: How it went.
        """
        policy = self.policy
        # First of all: their memory is warm, and what follows takes it again.
        policy.optimizer.zero_grad()
        errors = policy.window_errors(windows)
        member_losses = errors.losses.mean(dim=-1)
        self._check_loss(member_losses)
        # Members share no weight, so the sum trains each of them by its own loss.
        loss, penalty = member_losses.sum(), self.ewc.penalty()
        (loss + penalty).backward()  # type: ignore[no-untyped-call]
        policy.optimizer.step()
        if not buffer.draws_uniformly:
            buffer.update_priorities(windows.indices, errors.rewards, errors.returns)
        return Update(
            loss=loss.item() / self.ensemble_size,
            ewc_penalty=penalty.item() / self.ensemble_size,
            reward_error=errors.rewards.mean().item() / windows.rewards.shape[2],
            return_error=errors.returns.mean().item(),
            state_loss=errors.states.mean().item(),
        )

    # Units and priorities

    def _settle_windows(self, buffer: SequenceReplayBuffer) -> None:
        """Find out how long actions of plans last, before anything else is learned; then windows are of such actions."""
        policy, scales = self.policy, self.policy.scales
        if scales.action_repeat == 0:
            if policy.learns_features or scales.is_ready:
                # Features that are still to be learned tell nothing of time; nor do units of other actions change any more.
                measured = 1
            else:
                with th.no_grad():
                    before, after = map(policy.states_of, buffer.steps(self.UNIT_STEPS, env=self._vec_normalize_env))
                measured = measured_action_repeat(before[0], after[0])
            scales.action_repeat.fill_(min(measured, max(1, buffer.buffer_size // (buffer.sequence_length * self.n_envs))))
        buffer.set_windows(policy.action_repeat, buffer.sequence_length)
        # Asked at the beginning alone: it takes a pass over the buffer.
        if not scales.is_ready and buffer.size() <= self.UNIT_STEPS:
            self._shorten_windows(buffer)

    def _shorten_windows(self, buffer: SequenceReplayBuffer) -> None:
        """
        Where episodes are cut off early, let windows be short. What follows a cut is not known, so the last steps before it
        start no window; if these are most, members know little but of episodes that ended in time, the good ones where
        an end is the goal. So seven in eight steps of the longest episode shall start one, or, if ``windows_per_sample``
        was asked for, one of them.
        """
        policy, length, n_steps = self.policy, self.sequence_length, buffer.longest_cut_episode()
        if n_steps < length:
            return
        if self.action_repeat is None:
            policy.scales.action_repeat.clamp_(max=n_steps // length)
        was_asked_for = self.policy_kwargs.get("windows_per_sample") is not None
        most = n_steps if was_asked_for else 1 + n_steps // 8
        n_actions = min(buffer.sequence_length, max(length, most // policy.action_repeat))
        if n_actions * policy.action_repeat <= n_steps:
            buffer.set_windows(policy.action_repeat, n_actions - n_actions % length)

    def _take_in_new_windows(self, buffer: SequenceReplayBuffer) -> None:
        """Let new windows and returns into the units of the members, and give them their first priorities."""
        new, finished = buffer.pop_new_windows(), buffer.pop_finished_windows()
        scales = self.policy.scales
        with th.no_grad():
            for chunk in _chunks(new, self._windows_at_once):
                windows = buffer.as_drawn(chunk[None], env=self._vec_normalize_env)
                states, changes, _ = self._changes_of_state(windows)
                self._warn_of_outliers(windows.rewards)
                ends = windows.terminated[0, :, : self.policy.ensemble.n_milestones]
                scales.learn_windows(states, changes, windows.rewards[0, :, : self.sequence_length], ends)
            if self.policy.learns_features and buffer.n_windows > 0:
                every = buffer.all_windows()
                some = every[buffer.rng.integers(len(every), size=self.UNIT_WINDOWS)]
                scales.renew_states(*self._changes_of_state(buffer.as_drawn(some[None], env=self._vec_normalize_env)))
            # What was reached, and in which units, does not fade: the weight of age belongs to learning alone. By it
            # the start of a long episode would be no record, and that is where the largest returns are.
            told = []
            for chunk in _chunks(finished, self._windows_at_once):
                windows = buffer.as_drawn(chunk[None], env=self._vec_normalize_env, aged=False)
                told.append(self._returns_of(windows))
                if scales.knows_returns:
                    self._learn_trust(windows)
            if told:
                returns, weights, alive, from_start = map(th.cat, zip(*told, strict=True))
                scales.learn_returns(returns, weights * alive)
                scales.learn_best_return(from_start, weights[:, -1])
        self._renew_priorities(buffer, np.union1d(new, finished), new)

    @property
    def _windows_at_once(self) -> int:
        # Of images no more than in an update, which fits into memory.
        return self.batch_size if any(True for _ in self.policy.features_extractor.parameters()) else 4096

    def _changes_of_state(self, windows: WindowSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: Of n windows the states at their start, shape (n, d), their changes to each of the K milestones of the first
            window of a sample, which stands for all (the others begin where other samples do), shape (n, K, d), and which
            of them count, shape (n, K).
        """
        n_milestones = self.policy.ensemble.n_milestones
        states = self.policy.states_of(windows.observations)[0]
        changes = self.policy.next_states_of(windows)[0, :, :n_milestones] - states[:, None]
        return states, changes, alive_before(windows.terminated[0, :, :n_milestones])

    def _learn_trust(self, windows: WindowSamples) -> None:
        """
        :param windows: Windows whose returns members have not learned yet, of which the first window of each sample counts.
        """
        k = self.policy.ensemble.n_milestones - 1
        # Nothing is to be foretold of what follows an end.
        goes_on = 1.0 - windows.terminated[0, :, k]
        expected, observed = self.policy.returns_after(windows), windows.returns_to_go[0, :, k]
        self.policy.scales.trust.learn(expected, observed, goes_on * windows.return_weights[0, :, k])

    def _returns_of(self, windows: WindowSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """
        :return: Of n windows the returns-to-go at their N milestones, shape (n, N, ``*reward_shape``), how much of each was
            observed, and which of them count, both of shape (n, N); and the discounted return from their start on, shape
            (n, ``*reward_shape``).
        """
        rewards, returns = windows.rewards[0], windows.returns_to_go[0]
        length = rewards.shape[1]
        discounts = self.gamma ** th.arange(length, dtype=th.float32, device=returns.device)
        from_start = (rewards * for_components(discounts, rewards.shape[2:])).sum(dim=1) + self.gamma**length * returns[:, -1]
        return returns, windows.return_weights[0], alive_before(windows.terminated[0]), from_start

    def _renew_priorities(self, buffer: SequenceReplayBuffer, windows: np.ndarray, new: np.ndarray | None = None) -> None:
        """
        :param buffer: The replay buffer.
        :param windows: Windows whose priorities are renewed.
        :param new: Those of them that nobody has learned from yet; None: none.
        """
        for chunk in _chunks(windows, self._windows_at_once):
            if self._stop_soon and new is None:
                # All of these have priorities, if older ones. New ones have none yet.
                return
            indices = np.broadcast_to(chunk, (self.ensemble_size, len(chunk)))
            with th.no_grad():
                errors = self.policy.window_errors(buffer.windows(indices, env=self._vec_normalize_env), thin=False)
            buffer.update_priorities(indices, errors.rewards, errors.returns)
            if new is not None:
                self.policy.scales.foresight.learn(errors.states[:, np.isin(chunk, new)].mean(dim=0))

    def _losses_on_everything(self, buffer: SequenceReplayBuffer) -> Iterator[th.Tensor]:
        """
        :return: The members' losses on the windows that F is made of, in shares that fit into memory, each of shape (m, b).
        :raises _ToldToStop: Between two of them: F of a part of the buffer would be another one, so the last one stays.
        """
        windows = buffer.all_windows()
        if self.ewc_fisher == "window" and len(windows) > self.FISHER_WINDOWS:
            windows = buffer.rng.choice(windows, self.FISHER_WINDOWS, replace=False)
        for chunk in _chunks(windows, min(self.ewc.chunk_size, self._windows_at_once)):
            if self._stop_soon:
                raise _ToldToStop
            indices = np.broadcast_to(chunk, (self.ensemble_size, len(chunk)))
            samples = buffer.as_drawn(indices, env=self._vec_normalize_env)
            yield self.policy.window_errors(samples, thin=False).losses

    # What goes wrong

    def _check_loss(self, member_losses: th.Tensor) -> None:
        if not th.isfinite(member_losses).all():
            bad = th.nonzero(~th.isfinite(member_losses)).flatten().tolist()
            raise ValueError(
                f"The loss of member(s) {bad} is not finite at update {self._n_updates}: {member_losses.tolist()}. "
                "The weights were not changed. Try a smaller learning_rate, or rewards and observations of smaller size."
            )

    def _check_weights(self) -> None:
        for name, parameter in self.policy.named_parameters():
            if not th.isfinite(parameter).all():
                raise ValueError(
                    f"The weights {name} are not finite any more after update {self._n_updates}. "
                    "Try a smaller learning_rate and continue from an earlier checkpoint."
                )

    def _warn_of_outliers(self, rewards: th.Tensor) -> None:
        units = self.policy.scales.reward
        # After the end of an episode windows have 0, which is no reward.
        distances = units(rewards).abs() * ((rewards != 0) & units.varies)
        if units.count >= 100 and distances.max() > self.OUTLIER:
            reward = rewards.flatten()[distances.argmax()]
            warnings.warn(
                f"A reward of {reward:g} is {distances.max():.2g} standard deviations away from the mean of those before it. "
                "In the units that it makes the others can hardly be told apart any more, so little may be learned from them. "
                "Clip or transform rewards if it means no more than they do.",
                stacklevel=2,
            )

    def _warn_of_short_episodes(self) -> None:
        if self._episode_num >= 10:
            warnings.warn(
                f"Nothing is learned: each episode so far was cut off after fewer than the "
                f"{self.sequence_length * self.policy.action_repeat} steps of a window, so there is none. Actions stay "
                "random. Choose a smaller sequence_length, or let episodes end by termination where they really end.",
                stacklevel=2,
            )


def _chunks(windows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(windows), size):
        yield windows[start : start + size]
