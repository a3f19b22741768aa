"""How long an action of a plan lasts: the task's own time scale."""

import math

import torch as th

# States should change by about so many of their standard deviations while an action lasts: far more, and there is no time to
# react; far less, and plans of a given number of actions end before anything has come of them.
CHANGE_PER_ACTION = 0.32
# Longer actions are not tried: what was measured in a few hundred random steps is not that exact.
LONGEST = 4


def measured_action_repeat(states: th.Tensor, next_states: th.Tensor) -> int:
    """
    How many steps actions last, measured by how fast states change: a step of CartPole-v1 changes each element of the
    state by 0.22 of its standard deviation, one of Acrobot-v1 by 0.5, one of MountainCar-v0 by 0.08, whose car needs a
    hundred steps to its goal. As a plan has a given number of actions, this is also how far it sees (docs/tried.md, "The time
    scale of a task"). What is usual counts: the root mean square or, if that is less, what it would be for normal numbers of
    the same mean absolute value, for elements that change at most steps. One crash in two hundred steps is no reason for
    haste ("A crash is no time scale").

    :param states: States before each of n steps, shape (n, d).
    :param next_states: States after them, shape (n, d).
    :return: Steps per action, 1 to ``LONGEST``. The median over the elements that change decides: goals that stay where they
        are and contacts that come and go do not.
    """
    if len(states) < 2:
        return 1
    std = states.double().std(dim=0, correction=0)
    changes = next_states.double() - states.double()
    rms, usual = changes.square().mean(dim=0).sqrt(), math.sqrt(0.5 * math.pi) * changes.abs().mean(dim=0)
    # Of what mostly stands still, as each element of a one-hot vector does, the jumps are what is usual.
    change = th.where((changes != 0).double().mean(dim=0) > 0.5, th.minimum(rms, usual), rms)
    moves = (std > 0) & (change > 0)
    if not moves.any():
        return 1
    typical = float((change / std)[moves].median())
    return max(1, min(LONGEST, int(CHANGE_PER_ACTION / typical)))
