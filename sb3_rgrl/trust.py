"""How far predicted returns-to-go and states can be believed."""

import math
from collections.abc import Sequence

import torch as th
from torch import nn


class ReturnTrust(nn.Module):
    """
    Share of the variance of observed returns-to-go that members foretell: the squared correlation of what they expected of
    windows and what followed, measured on each episode when it has ended, before they learn from it.

    What comes after a plan was observed under all that the agent ever did, seldom, and with all noise of an episode, while
    the rewards within the plan are foreseen well. Where returns cannot be foretold, plans that follow them follow noise:
    FoodWorld was hardly learned, where the rewards of the plan alone suffice. But on CartPole-v1, where little but the return
    tells plans apart, agents stay at 200 if a tenth of it counts (docs/tried.md, "Returns that cannot be foretold"). So the
    return-to-go counts in plans by what it was worth so far.

    Correlation knows neither bias nor scale: while an agent gets better, its returns are better than was expected, and that
    is no reason for distrust.

    :param reward_shape: Shape of a reward. The returns of each component of a vector are trusted by what was foretold of them.
    """

    # So many windows later, what was measured counts by 1/e.
    MEMORY = 2000.0
    # Trust is complete at first, and gives way like a mean to which it contributes so many windows.
    PRIOR = 100.0
    # Where the rewards of all plans are the same, the least trust in returns tells them apart.
    LEAST = 0.05

    value: th.Tensor
    sums: th.Tensor

    def __init__(self, reward_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.register_buffer("value", th.ones(math.prod(reward_shape)))
        # Of weights, x, y, x^2, x y and y^2: x expected, y observed.
        self.register_buffer("sums", th.zeros(6, *reward_shape, dtype=th.float64))

    def learn(self, expected: th.Tensor, observed: th.Tensor, weights: th.Tensor) -> None:
        """
        :param expected: Returns-to-go that were expected of n windows, in any unit, shape (n, ``*reward_shape``).
        :param observed: What followed them, same shape.
        :param weights: How much of each was observed, shape (n,).
        """
        w = weights.double()
        if w.sum() <= 0:
            return
        columns = (values.double().reshape(len(w), -1).unbind(dim=-1) for values in (expected, observed))
        sums = self.sums.reshape(6, -1)
        for component, (x, y) in enumerate(zip(*columns, strict=True)):
            new = th.stack([w.sum(), (w * x).sum(), (w * y).sum(), (w * x * x).sum(), (w * x * y).sum(), (w * y * y).sum()])
            total = sums[:, component].mul_(math.exp(-float(new[0]) / self.MEMORY)).add_(new)
            share = (total[0] * _explained(total) + self.PRIOR) / (total[0] + self.PRIOR)
            self.value[component] = float(share.clamp(self.LEAST, 1.0))


def _explained(sums: th.Tensor) -> float:
    """
    :param sums: Of one component, see :class:`ReturnTrust`, shape (6,).
    :return: Squared correlation, 0 where it is negative or where nothing varies.
    """
    total, x, y, xx, xy, yy = sums.tolist()
    covariance = xy / total - x / total * y / total
    variances = (xx / total - (x / total) ** 2) * (yy / total - (y / total) ** 2)
    return covariance**2 / variances if covariance > 0.0 and variances > 0.0 else 0.0


class Foresight(nn.Module):
    """
    Whether states come as members expect them, measured on each window before they learn from it.

    To follow a plan for several steps without looking is for tasks whose states can be foreseen. Where chance decides what
    comes next, the second action of a plan knows less than it could.
    """

    # A state is foreseen where the squared error of its change is less than that share of the change's variance. Where chance
    # draws each state anew, a half is left even if its distribution is known.
    FORESEEN = 0.25
    # Members have learned little before so many windows.
    PATIENCE = 1000.0
    # So many windows later, what was measured counts by 1/e.
    MEMORY = 500.0

    count: th.Tensor
    share: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        # Of windows whose states were foreseen
        self.register_buffer("share", th.ones((), dtype=th.float64))

    @property
    def suffices(self) -> bool:
        """Whether more than half of the states were foreseen of late; true until enough was seen."""
        return bool(self.count < self.PATIENCE) or bool(self.share > 0.5)

    def learn(self, errors: th.Tensor) -> None:
        """
        :param errors: Squared errors of the changes of state of n windows, in units of their variance, shape (n,).
        """
        if len(errors) == 0:
            return
        kept = math.exp(-len(errors) / self.MEMORY)
        foreseen = (errors < self.FORESEEN).double().mean()
        self.share.mul_(kept).add_((1.0 - kept) * foreseen)
        self.count += len(errors)
