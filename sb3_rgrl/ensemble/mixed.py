"""Members of different width or kind in one ensemble (future work in section 4 of the paper)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_rgrl.ensemble.base import Ensemble, Layer, WindowPrediction


class GroupOfMembers(NamedTuple):
    """Members of one group that are asked, and what they are asked."""

    rows: th.Tensor | slice
    """Which of the g asked members they are."""
    layers: list[Layer]


class MixedEnsemble(nn.Module):
    """
    Several ensembles as one. Members are counted through the groups in their order; those of a group stay stacked.

    :param groups: The ensembles, for the same states, actions, windows, milestones and rewards.
    :raises ValueError: If they do not fit together.
    """

    def __init__(self, groups: Sequence[Ensemble]) -> None:
        super().__init__()
        first = groups[0]
        for group in groups:
            for name in ("state_dim", "action_dim", "sequence_length", "n_milestones", "reward_shape"):
                if getattr(group, name) != getattr(first, name):
                    raise ValueError(
                        f"Groups of members must agree on {name}, got {getattr(first, name)} and {getattr(group, name)}"
                    )
        self._groups = nn.ModuleList(groups)
        self.state_dim, self.action_dim = first.state_dim, first.action_dim
        self.sequence_length, self.n_milestones = first.sequence_length, first.n_milestones
        self.reward_shape = first.reward_shape
        self.n_members = sum(group.n_members for group in groups)

    def groups(self) -> list[Ensemble]:
        """
        :return: The ensembles, in the order of their members.
        """
        return list(self._groups)  # type: ignore[arg-type]

    def members(self, chosen: th.Tensor | None = None, thinning: np.random.Generator | None = None) -> list[GroupOfMembers]:
        """
        Bring up members, see :meth:`Ensemble.members`.

        :param chosen: Which members, shape (g,); None: all of them in order, g = m.
        :param thinning: Source of the hidden units that are missing; None: whole members.
        :return: For each group its layers and whose they are.
        """
        asked, first = [], 0
        for group in self.groups():
            last = first + group.n_members
            if chosen is None:
                asked.append(GroupOfMembers(slice(first, last), group.members(None, thinning)))
            else:
                rows = th.nonzero((chosen >= first) & (chosen < last)).flatten()
                if len(rows) > 0:
                    asked.append(GroupOfMembers(rows, group.members(chosen[rows] - first, thinning)))
                else:
                    asked.append(GroupOfMembers(rows, []))
            first = last
        return asked

    def forward(self, state: th.Tensor, actions: th.Tensor, members: list[GroupOfMembers]) -> WindowPrediction:
        """See :meth:`Ensemble.forward`."""
        answers: list[WindowPrediction] = []
        rows = []
        for group, asked in zip(self.groups(), members, strict=True):
            if not asked.layers:
                continue
            answers.append(group(state[asked.rows], actions[asked.rows], asked.layers))
            rows.append(asked.rows)
        joined = WindowPrediction(*(th.cat(parts) for parts in zip(*answers, strict=True)))
        if isinstance(rows[0], slice):
            return joined
        order = th.argsort(th.cat([row for row in rows if isinstance(row, th.Tensor)]))
        return WindowPrediction(*(part[order] for part in joined))
