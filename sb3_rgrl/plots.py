"""
Pictures of what an agent has in mind. ``import sb3_rgrl`` does not import this module, nor matplotlib.

They are figures of their own, unknown to ``pyplot``: nothing is shown and nothing has to be closed.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sb3_rgrl.actions import groups_of
from sb3_rgrl.beliefs import Beliefs, Decisions
from sb3_rgrl.components import component_of
from sb3_rgrl.observations import as_arrays
from sb3_rgrl.policies import EnsemblePolicy, Plan

# The colours of Okabe and Ito, which are told apart with all common kinds of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
EXPECTED, RECEIVED, OTHERS = COLOURS[0], COLOURS[5], "#9aa5b1"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
LEAST_WEIGHT = 0.05
"""Plans that count less than this share of the best are drawn as those that do not count at all in the mean."""
MAX_PARTS = 6
"""Of an action of many parts, so many are drawn."""
N_BINS = 40
MAX_POINTS = 2_000
"""Of decisions over training, means of so many shares of the steps and so many single ones are drawn."""
STEP_NAMES = {"gradient": "iteration of gradient descent", "cem": "generation", "shooting": "draw"}


class _Part(NamedTuple):
    """One part of the actions of a plan, as it forms."""

    name: str
    values: np.ndarray
    """Shape (iterations + 1, T), or with a colour for each, (iterations + 1, T, 3)."""
    colours: str | ListedColormap
    limits: tuple[float, float]
    ticks: dict[float, str] | None


# A plan


def plan_trace(
    policy: EnsemblePolicy,
    observation: np.ndarray | dict[str, np.ndarray],
    plan: Plan | None = None,
    index: int = 0,
    action_names: Sequence[str] | None = None,
    component: int = 0,
) -> Figure:
    """
    Draw how a plan forms, from one iteration of the descent to the next: the return that the ensemble expects of it and of the
    others, in the units of the reward; the members' disagreement about that, its standard deviation over them; and its
    actions over the horizon, as the planner moves them (of choices: by their probability). Where the mean of plans is executed
    (``plan_temperature``), what is expected of each that counts, and the actions of the mean, with the weights of the end.

    :param policy: The agent's policy, ``model.policy``, as it was when it planned.
    :param observation: Where the decision was taken, one observation or n of them.
    :param plan: The decision, from ``policy.plan(observation)``; None: it is taken now, deterministic, from noise alone.
    :param index: Which of the n.
    :param action_names: Of a Discrete space the names of the choices, of others those of the parts of an action.
    :param component: Of reward vectors, the component whose return is drawn.
    :return: The figure.
    :raises ValueError: If the plan is not one for that many observations, or there is no such index or component.
    """
    if not isinstance(policy, EnsemblePolicy):
        raise TypeError(f"plan_trace draws plans of a policy, model.policy, got {type(policy).__name__}")
    observation = as_arrays(observation)
    plan = policy.plan(observation) if plan is None else plan
    expected = expected_returns(policy, observation, plan, index, component)
    unit = f"reward[{component}]" if policy.reward_shape else "reward"
    weights = plan.weights[:, index]
    executed = _way_of_executed(policy, plan.descent.path()[:, :, index].cpu(), weights)
    parts = list(_parts_of(policy, executed, action_names))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, max(3.6, 1.2 * len(parts))), constrained_layout=True)
        grid = figure.add_gridspec(1, 2)
        left, right = grid[0, 0], grid[0, 1]
        cells = left.subgridspec(2, 1, height_ratios=(4, 3))
        above, below = figure.add_subplot(cells[0, 0]), figure.add_subplot(cells[1, 0])
        _draw_progress(above, expected.mean(axis=1), weights, f"discounted return\n(units of {unit})", "What members expect")
        _draw_progress(below, expected.std(axis=1), weights, f"disagreement\n(units of {unit})", None)
        above.legend(loc="best")
        above.tick_params(labelbottom=False)
        below.set_xlabel(STEP_NAMES[policy.search])
        cells = right.subgridspec(len(parts), 1)
        rows = [figure.add_subplot(cells[k, 0]) for k in range(len(parts))]
        for row, part in zip(rows, parts, strict=True):
            _draw_part(figure, row, part)
        n_parts = len(_names_of(policy.action_space))
        rows[0].set_title("The plan as it forms" + (f" (first {MAX_PARTS} of {n_parts} parts)" if n_parts > MAX_PARTS else ""))
        rows[-1].set_xlabel("step of the plan")
        rows[len(rows) // 2].set_ylabel("generation" if policy.search == "cem" else "iteration")
    return figure


def expected_returns(
    policy: EnsemblePolicy, observation: np.ndarray | dict[str, np.ndarray], plan: Plan, index: int = 0, component: int = 0
) -> np.ndarray:
    """
    :param policy: See :func:`plan_trace`.
    :param observation: See :func:`plan_trace`.
    :param plan: See :func:`plan_trace`.
    :param index: See :func:`plan_trace`.
    :param component: See :func:`plan_trace`.
    :return: Discounted return that each member, whole, expects of each of the P plans before each iteration and after the
        last, see :meth:`~sb3_rgrl.policies.EnsemblePolicy.predict_return`, shape (iterations + 1, m, P).
    :raises ValueError: See :func:`plan_trace`.
    """
    states = policy.standardised_states(observation)
    if len(states) != len(plan.preactivated):
        raise ValueError(f"The plan is one for {len(plan.preactivated)} observation(s), but there are {len(states)}")
    if not 0 <= index < len(states):
        raise ValueError(f"index must be 0 to {len(states) - 1}, for there are {len(states)} observation(s), got {index}")
    path, goal, m = plan.descent.path()[:, :, index].to(states.device), policy.goal(), policy.ensemble_size
    returns = []
    with th.no_grad():
        for population in path:
            actions = policy.codec.activate(population).expand(m, -1, -1, -1)
            outcome = policy.imagine(states[index].expand(m, len(population), -1), actions, policy.ensemble.members())
            returns.append(component_of(goal.expected_return(outcome), policy.reward_shape, component))
    as_numpy: np.ndarray = th.stack(returns).cpu().numpy()
    return as_numpy


def _way_of_executed(policy: EnsemblePolicy, path: th.Tensor, weights: np.ndarray) -> th.Tensor:
    """
    :param path: Pre-activated actions of each plan at each iteration, shape (iterations + 1, P, T, action_dim).
    :param weights: How much each of the plans counts in what is executed, shape (P,).
    :return: Those of what is executed, shape (iterations + 1, T, action_dim).
    """
    if weights.max() == 1.0:
        return path[:, weights.argmax()]
    plans = path.transpose(0, 1).numpy()
    return th.from_numpy(policy.codec.mean(plans, np.repeat(weights[:, None], len(path), axis=1)))


def _draw_progress(axes: Axes, values: np.ndarray, weights: np.ndarray, label: str, title: str | None) -> None:
    """
    :param values: Of each plan at each iteration, shape (iterations + 1, P).
    :param weights: How much each of the plans counts in what is executed, shape (P,).
    """
    # Others are not seen in the mean.
    counting = np.flatnonzero(weights > LEAST_WEIGHT * weights.max())
    # A single point would make no line.
    marker = "o" if len(values) == 1 else None
    for plan in (plan for plan in range(values.shape[1]) if plan not in counting):
        axes.plot(values[:, plan], color=OTHERS, linewidth=0.7, marker=marker, label=f"_plan {plan}")
    axes.plot([], [], color=OTHERS, linewidth=0.7, marker=marker, label="the other plans")
    told = "the plan that is executed" if len(counting) == 1 else "those whose mean is executed"
    for plan in counting.tolist():
        width = 2.5 if len(counting) == 1 else 1.2
        axes.plot(values[:, plan], color=EXPECTED, linewidth=width, marker=marker, label=told)
        told = f"_counting {plan}"
    axes.set(ylabel=label, title=title or "")


def _draw_part(figure: Figure, axes: Axes, part: _Part) -> None:
    norm = Normalize(*part.limits)
    scale = ScalarMappable(norm, part.colours)
    # Where the image has colours already they stay as they are.
    axes.imshow(part.values, cmap=scale.cmap, norm=norm, aspect="auto", interpolation="nearest")
    bar = figure.colorbar(scale, ax=axes, label=part.name)
    if part.ticks is not None:
        bar.set_ticks(list(part.ticks), labels=list(part.ticks.values()))
        bar.ax.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _parts_of(policy: EnsemblePolicy, path: th.Tensor, action_names: Sequence[str] | None) -> Iterator[_Part]:
    """
    :param path: Pre-activated actions of a plan, shape (iterations + 1, T, action_dim).
    :param action_names: See :func:`plan_trace`.
    :return: The parts that are drawn.
    """
    space, codec = policy.action_space, policy.codec
    with th.no_grad():
        encoded = codec.activate(path).cpu().numpy()
    names = _names_of(space)
    n_names = int(space.n) if isinstance(space, spaces.Discrete) else len(names)
    if action_names is not None and len(action_names) != n_names:
        raise ValueError(f"action_names must be {n_names} names for the actions of {space}, got {len(action_names)}")
    if isinstance(space, spaces.Discrete):
        yield _choice("", encoded, action_names or [str(space.start + k) for k in range(space.n)])
        return
    names = list(action_names or names)[:MAX_PARTS]
    if isinstance(space, spaces.MultiDiscrete):
        for part, (name, group) in enumerate(zip(names, groups_of(space), strict=False)):
            choices = [str(int(space.start[part]) + k) for k in range(int(space.nvec[part]))]
            yield _choice(name, encoded[..., group], choices)
    elif isinstance(space, spaces.Box):
        values = codec.decode(encoded.reshape(-1, codec.dim)).reshape(encoded.shape)
        for part, name in enumerate(names):
            low, high = float(space.low.flat[part]), float(space.high.flat[part])
            colours = "PuOr" if low == -high else "cividis"
            yield _Part(name, values[..., part], colours, (low, high), None)
    else:
        for part, name in enumerate(names):
            yield _choice(name, np.stack([1 - encoded[..., part], encoded[..., part]], axis=-1), ["0", "1"])


def _names_of(space: spaces.Space[Any]) -> list[str]:
    if isinstance(space, spaces.Discrete):
        return ["action"]
    n_parts = len(space.nvec) if isinstance(space, spaces.MultiDiscrete) else int(np.prod(space.shape or ()))
    return ["action"] if n_parts == 1 else [f"action[{part}]" for part in range(n_parts)]


def _choice(name: str, probabilities: np.ndarray, choices: Sequence[str]) -> _Part:
    """
    :param probabilities: Shape (iterations + 1, T, n).
    :param choices: The names of the n choices.
    :return: Of two choices the probability of the second; else the colour of the likeliest, paler where it is less likely.
    """
    n = len(choices)
    if n == 2:
        ticks = {0.0: choices[0], 0.5: "undecided", 1.0: choices[1]}
        return _Part(name, probabilities[..., 1], "PuOr", (0.0, 1.0), ticks)
    palette = ListedColormap(COLOURS[:n]) if n <= len(COLOURS) else ListedColormap(_gradation(n))
    likeliest = probabilities.argmax(axis=-1)
    # From white, where all are as likely, to the full colour.
    certainty = (probabilities.max(axis=-1) - 1 / n) / (1 - 1 / n) if n > 1 else np.ones(likeliest.shape)
    full = np.array([to_rgb(palette(k)) for k in range(n)])[likeliest]
    faded = 1.0 - certainty[..., None] * (1.0 - full)
    every = max(1, n // len(COLOURS))
    return _Part(name, faded, palette, (-0.5, n - 0.5), {float(k): choices[k] for k in range(0, n, every)})


def _gradation(n: int) -> np.ndarray:
    colours: np.ndarray = colormaps["cividis"](np.linspace(0.0, 1.0, n))
    return colours


# Beliefs


def belief(record: Beliefs | Decisions) -> Figure:
    """
    Draw what the ensemble expected of its decisions against what came of them, over training and decision by decision.

    Means of expected returns, with the mean of their standard deviation over the members as a band, and of received returns,
    each of the same decisions; a return counts as much as was observed of it, see :class:`~sb3_rgrl.beliefs.Beliefs`, and not
    at all where that is less than half of what was observed of another. Do not expect the two to agree: exploration and the
    expectile that members learn (``return_expectile``) pull them apart.

    :param record: What was remembered during training, such as ``callback.beliefs`` of
        :class:`~sb3_rgrl.pictures.PlanPicturesCallback`.
    :return: The figure.
    :raises ValueError: If there is no decision in it.
    """
    decisions = record.decisions() if isinstance(record, Beliefs) else record
    if len(decisions.step) == 0:
        raise ValueError("There is nothing to draw: no return of a decision is known yet. The first actions are random.")
    # What was just begun tells little: the first rewards of an episode that still runs, as if they went on for ever.
    trusted = decisions.weight >= 0.5 * decisions.weight.max()
    decisions = Decisions(*(column[trusted] for column in decisions))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.6), constrained_layout=True)
        left, right = figure.subplots(1, 2)
        _draw_over_training(left, decisions)
        _draw_against(figure, right, decisions)
    return figure


def _draw_over_training(axes: Axes, decisions: Decisions) -> None:
    steps, expected, spread, received = _binned(decisions)
    marker = "o" if len(steps) == 1 else None
    axes.fill_between(steps, expected - spread, expected + spread, color=EXPECTED, alpha=0.2, linewidth=0)
    axes.plot(steps, expected, color=EXPECTED, marker=marker, label="expected (band: std. over members)")
    axes.plot(steps, received, color=RECEIVED, linestyle="--", marker=marker, label="received")
    axes.set(xlabel="environment steps", ylabel="discounted return (units of reward)", title="Mean over decisions")
    axes.legend(loc="best")


def _draw_against(figure: Figure, axes: Axes, decisions: Decisions) -> None:
    some = np.unique(np.linspace(0, len(decisions.step) - 1, MAX_POINTS).round().astype(int))
    steps, expected, _, received, weights = (column[some] for column in decisions)
    both = np.concatenate([expected, received])
    ends = [both.min(), both.max()]
    axes.plot(ends, ends, color="#777777", linewidth=1.0, label="as expected")
    dots = axes.scatter(expected, received, s=12 * weights, c=steps, cmap="cividis", alpha=0.6, linewidths=0)
    colours = figure.colorbar(dots, ax=axes, label="environment steps").solids
    if colours is not None:
        colours.set_alpha(1)
    axes.set(xlabel="expected (units of reward)", ylabel="received (units of reward)", title="Single decisions")
    axes.legend(loc="best")


def _binned(decisions: Decisions) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    :return: Of the decisions in each share of the steps, by weight: their mean step, expected return, spread, and received
        return, each of shape (bins,).
    """
    step, *values, weight = decisions
    first, last = step.min(), step.max()
    bins = np.minimum((N_BINS * (step - first) / max(last - first, 1)).astype(int), N_BINS - 1)
    totals = np.bincount(bins, weight)
    used = totals > 0
    means = [np.bincount(bins, weight * column)[used] / totals[used] for column in (step, *values)]
    return means[0], means[1], means[2], means[3]
