"""How all pictures look: colours and marks of the variants, panels, scales."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Scale = Literal["auto", "linear", "log"]

# The colours of Okabe and Ito, which are told apart with all common kinds of colour blindness; without yellow, which is pale
# on white, then two darker ones of Tol. Markers and line styles tell the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
LINES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Ids inside an SVG, which are random otherwise
    "svg.hashsalt": "sb3-rgrl",
}
BASELINES = {"linear-search": ("#777777", "--"), "random": ("#777777", ":")}
"""Colour and line of what every learner should beat."""
LOG_FROM = 6.0
"""``"auto"`` takes logarithms where the largest value is as many times the smallest."""
PANEL = (3.3, 2.6)
"""Inches of a panel."""


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, in all pictures alike."""

    colour: str
    marker: str
    line: str


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """
    :param variants: In the order of the legend.
    :return: How each is drawn.
    """
    n, found = len(COLOURS), {}
    for k, name in enumerate(variants):
        colour, line = BASELINES.get(name, (COLOURS[k % n], LINES[(k // n) % len(LINES)]))
        found[name] = Look(colour, MARKERS[k % len(MARKERS)], line)
    return found


def wrapped(start: str, words: Sequence[str], width: int = 38) -> str:
    """
    :param start: Begins the first line.
    :param words: Words, a comma between them.
    :param width: Of a line, in characters.
    :return: All of them in lines.
    """
    lines = [start]
    for k, word in enumerate(words):
        piece = word + (", " if k < len(words) - 1 else "")
        if len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def panels_of(titles: Sequence[str], height: float = PANEL[1]) -> tuple[Picture, Iterator[tuple[str, Axes]]]:
    """
    :param titles: Of the panels, one at least.
    :param height: Of one, in inches.
    :return: Picture, and for each title its panel.
    """
    n_columns = 2 if len(titles) in (2, 4) else min(len(titles), 3)
    n_rows = math.ceil(len(titles) / n_columns)
    width = max(n_columns, 1.6) * PANEL[0]
    picture = Picture(figsize=(width, n_rows * height + 0.5), layout="constrained")
    panels = picture.subplots(n_rows, n_columns, squeeze=False).flat
    for axes in list(panels)[len(titles) :]:
        axes.remove()

    def titled() -> Iterator[tuple[str, Axes]]:
        for title, axes in zip(titles, picture.axes, strict=True):
            axes.set_title(title, fontsize=10 if len(title) < 30 else 8)
            yield title, axes

    return picture, titled()


def set_scale(axes: Axes, which: Literal["x", "y"], scale: Scale, values: Sequence[float], least: float | None = None) -> bool:
    """
    :param axes: Panel.
    :param which: Which of its axes.
    :param scale: ``"auto"``: by ``values``.
    :param values: Shown there.
    :param least: The smallest value in sight; None: that of ``values``.
    :return: Whether the axis is logarithmic.
    """
    positive = [value for value in values if value > 0]
    is_log = bool(positive) and (scale == "log" or (scale == "auto" and max(positive) >= LOG_FROM * min(positive)))
    axis = axes.xaxis if which == "x" else axes.yaxis
    if is_log:
        axes.set(**{f"{which}scale": "log"})
        # Where few powers of ten are in sight, they alone may leave a single label.
        is_short = max(positive) < 30.0 * (min(positive) if least is None else least)
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: in_thousands(value)))
    return is_log


def in_thousands(value: float) -> str:
    """
    :param value: Steps or seconds.
    :return: In short, such as ``"0.5"``, ``"20k"`` or ``"1.5M"``.
    """
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def legend_below(picture: Picture, variants: Sequence[str], look: dict[str, Look]) -> None:
    """
    :param picture: Gets a legend below its panels.
    :param variants: In their order there.
    :param look: How each is drawn.
    """
    handles = [
        Line2D([], [], color=look[name].colour, ls=look[name].line, marker=look[name].marker, markersize=5, label=name)
        for name in variants
    ]
    columns = max(1, min(len(handles), int(picture.get_figwidth() / 1.35)))
    picture.legend(handles=handles, loc="outside lower center", ncols=columns)
