"""
Payoff nets: an ensemble that learns whether a few digits are a permutation, and nothing else.

A *unit* is what a row, a column or a box of a Sudoku table is: n cells with one of n digits each. To the ensemble it is a
sequence of n actions with n numbers each, a one-hot digit; the rewards of a permutation are all 1, those of anything else are
1, 0, .. 0. Members tell the log-odds of each reward.

Descent begins at blank cells and goes through half-made ones. There, nets that know only whole digits say anything. So
training shows units through a mist: in half of them some cells are blank, and noise is added to all numbers; the reward is
that of the digits behind. The best that a net can do is to tell how likely they are a permutation, given what is seen of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_rgrl.ensemble import MlpEnsemble

Array = np.ndarray[Any, Any]

NET_ARCH = (100, 100, 100)
NOISE = 0.3
"""Standard deviation of the noise on each number of a unit; a digit is 1, the others 0."""
BATCH_SIZE = 256
LEARNING_RATE = 2e-3


def draw_digits(n: int, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """
    Half of the units are permutations. Of the others, three in ten are random digits, and the rest permutations of which 1 to
    n - 1 cells were drawn anew: close to one, which is what the nets have to tell apart.

    :param n: Number of digits.
    :param shape: How many units.
    :param generator: Source of the draws.
    :return: Digits from 0, int64, shape (*shape, n).
    """
    permutations = generator.permuted(np.broadcast_to(np.arange(n), (*shape, n)), axis=-1)
    anything = generator.integers(n, size=(*shape, n))
    kind = generator.random((*shape, 1))
    n_redrawn = np.where(kind < 0.15, n, generator.integers(1, n, size=(*shape, 1)))
    redrawn = generator.random((*shape, n)).argsort(axis=-1) < n_redrawn
    return np.where(redrawn & (kind < 0.5), anything, permutations)


def are_permutations(digits: Array) -> Array:
    """
    :param digits: Digits from 0, shape (..., n).
    :return: Whether each unit has every digit once, shape (...).
    """
    return np.asarray((np.sort(digits, axis=-1) == np.arange(digits.shape[-1])).all(axis=-1))


def seen_through_mist(digits: Array, noise: float, generator: np.random.Generator) -> Array:
    """
    Half of the units have no blank cells. In the others a share of the cells is blank, any share being as likely.

    :param digits: Digits from 0, shape (..., n).
    :param noise: Standard deviation of the noise.
    :param generator: Source of the draws.
    :return: What the nets see, float32, shape (..., n, n), a row for each cell.
    """
    n, shape = digits.shape[-1], digits.shape[:-1]
    share = np.maximum(generator.uniform(-1.0, 1.0, size=(*shape, 1)), 0.0)
    there = generator.random((*shape, n)) >= share
    seen = np.eye(n, dtype=np.float32)[digits] * there[..., None].astype(np.float32)
    seen += noise * generator.standard_normal(seen.shape, dtype=np.float32)
    return seen


def rewards_of(digits: Array) -> Array:
    """
    :param digits: Digits from 0, shape (..., n).
    :return: Rewards 1, 1, .. 1 of permutations and 1, 0, .. 0 of anything else, float32, shape (..., n).
    """
    rewards = np.repeat(are_permutations(digits)[..., None], digits.shape[-1], axis=-1).astype(np.float32)
    rewards[..., 0] = 1.0
    return rewards


def log_odds(ensemble: MlpEnsemble, units: th.Tensor, members: Any) -> th.Tensor:
    """
    :param ensemble: The payoff nets.
    :param units: What they see, shape (g, b, n, n).
    :param members: The g members that are asked.
    :return: Log-odds of each reward, shape (g, b, n).
    """
    told: th.Tensor = ensemble(units.new_zeros(*units.shape[:2], 0), units, members).rewards
    return told


def make_nets(n: int, n_members: int, dropout: float, seed: int) -> MlpEnsemble:
    """
    :param n: Number of digits.
    :param n_members: Size m of the ensemble.
    :param dropout: Probability that a hidden unit is missing from a thinned member.
    :param seed: Seed of the first weights.
    :return: Payoff nets that know nothing: of one window, without a state.
    """
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        return MlpEnsemble(0, n, n, n_members, NET_ARCH, nn.SiLU, dropout)


def train(
    ensemble: MlpEnsemble,
    n_steps: int,
    generator: np.random.Generator,
    noise: float = NOISE,
    report: Callable[[int, float], None] | None = None,
) -> float:
    """
    Every member learns from units of its own.

    :param ensemble: The nets, changed in place.
    :param n_steps: Number of gradient steps.
    :param generator: Source of the units and of the hidden units that thinned members miss.
    :param noise: Standard deviation of the noise.
    :param report: Called ten times on the way with the number of steps made and the loss since the last time.
    :return: Cross-entropy per reward over the last tenth of the steps.
    """
    optimizer = th.optim.Adam(ensemble.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = th.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=n_steps, pct_start=0.1)
    shape, losses = (ensemble.n_members, BATCH_SIZE), []
    for step in range(1, n_steps + 1):
        digits = draw_digits(ensemble.action_dim, shape, generator)
        seen = th.from_numpy(seen_through_mist(digits, noise, generator))
        told = log_odds(ensemble, seen, ensemble.members(thinning=generator))
        loss = F.binary_cross_entropy_with_logits(told, th.from_numpy(rewards_of(digits)))
        optimizer.zero_grad()
        # Members share no weights: each gets the gradient of its own mean loss.
        (ensemble.n_members * loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if report is not None and step % max(n_steps // 10, 1) == 0:
            report(step, float(np.mean(losses[-max(n_steps // 10, 1) :])))
    return float(np.mean(losses[-max(n_steps // 10, 1) :]))
