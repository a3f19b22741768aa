"""
Sudoku from nothing but payoff nets.

    python examples/sudoku.py --size 6 --tables 200 --seed 1 --output grids.npy

trains nets that tell whether one row, column or box is a permutation, and fills blank tables by gradient descent on the cells
of each table (Eq. 1 of the paper), over all of its rows, columns and boxes, with a random net at each iteration. After a block
of iterations the largest cell is fixed, and the rest starts anew. Tables that the nets themselves refuse when they are full
begin again. No rule of Sudoku is used but through the nets; a plain checker judges the tables at the end. docs/sudoku.md tells
how well that works.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from payoff_nets import NOISE, are_permutations, draw_digits, log_odds, make_nets, train
from scipy import stats  # type: ignore[import-untyped]
from torch.nn import functional as F

from sb3_rgrl.ensemble import MlpEnsemble
from sb3_rgrl.files import atomic_write
from sb3_rgrl.planner import GradientFn, MwmSgdPlanner, by_autograd
from sb3_rgrl.starts import initial_actions

Array = np.ndarray[Any, Any]

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by the size of the table."""
BLANK = -3.5
"""Where the pre-activated cells begin: sigmoid(-3.5) = 0.03."""
FIXED = 40.0
"""A fixed cell is this far out. The slope of the sigmoid is nothing there, so descent leaves the cell as it is."""
AT_ONCE = 100
"""Iterations in one call of the planner, which keeps the tables of all of them."""


@dataclass(frozen=True)
class Effort:
    """
    How tables are filled in.

    :param n_iterations: Iterations of a block, after which the largest cell of a table is fixed.
    :param learning_rate: Step size beta on the pre-activated cells.
    :param start_std: Standard deviation of the noise that cells begin with.
    :param sure: Free cells larger than this are fixed together with the largest one; 1: none is.
    :param n_attempts: How often a table is begun at most.
    """

    n_iterations: int
    learning_rate: float = 1.0
    start_std: float = 0.1
    sure: float = 1.0
    n_attempts: int = 1


def units_of(size: int) -> Array:
    """
    :param size: Rows n of a table, one of ``BOXES``.
    :return: Cells of each row, column and box, counted row by row, shape (3n, n).
    """
    height, width = BOXES[size]
    cells = np.arange(size * size).reshape(size, size)
    boxes = cells.reshape(size // height, height, size // width, width).swapaxes(1, 2).reshape(size, size)
    return np.concatenate([cells, cells.T, boxes])


def is_sudoku(table: Array) -> bool:
    """
    The judge. It shares no code with those who fill tables in.

    :param table: Shape (n, n).
    :return: Whether every row, column and box holds each of 1 .. n once.
    """
    size = len(table)
    height, width = BOXES[size]
    digits = set(range(1, size + 1))
    for k in range(size):
        if {int(table[k, j]) for j in range(size)} != digits or {int(table[i, k]) for i in range(size)} != digits:
            return False
    for top in range(0, size, height):
        for left in range(0, size, width):
            if {int(table[top + i, left + j]) for i in range(height) for j in range(width)} != digits:
                return False
    return True


def table_error(ensemble: MlpEnsemble, thinning: np.random.Generator) -> GradientFn[th.Tensor]:
    """
    :param ensemble: The payoff nets.
    :param thinning: Source of the hidden units that thinned members miss.
    :return: Error of tables, a plan of n * n cells each: cross-entropy between what a net tells of all rows, columns and boxes
        and the desired reward, which is 1 throughout; with its gradient.
    """
    size = ensemble.action_dim
    units = th.from_numpy(units_of(size))

    def error_fn(preactivated: th.Tensor, chosen: th.Tensor | None) -> th.Tensor:
        n_groups, n_tables = preactivated.shape[:2]
        with th.no_grad():
            members = ensemble.members(chosen, thinning=thinning)
        cells = th.sigmoid(preactivated).index_select(2, units.flatten()).reshape(n_groups, -1, size, size)
        told = log_odds(ensemble, cells, members)
        return F.softplus(-told).reshape(n_groups, n_tables, -1).sum(dim=-1)

    return by_autograd(error_fn)


def blank_cells(fixed: Array, start_std: float, generator: np.random.Generator) -> Array:
    """
    :param fixed: Digit of each cell, -1 where there is none yet, shape (P, n * n).
    :param start_std: Standard deviation of the noise.
    :param generator: Source of the noise.
    :return: Pre-activated cells to begin a block with, float32, shape (P, 1, n * n, n).
    """
    size = math.isqrt(fixed.shape[1])
    blank = BLANK + initial_actions("normal", (len(fixed), 1, fixed.shape[1], size), start_std, 0.0, generator)
    whole = np.where(fixed[..., None] == np.arange(size), np.float32(FIXED), np.float32(-FIXED))[:, None]
    return np.where((fixed >= 0)[:, None, :, None], whole, blank)


def descend(cells: Array, ensemble: MlpEnsemble, effort: Effort, gradient_fn: Any, generator: np.random.Generator) -> Array:
    """
    :param cells: Pre-activated cells at the start of a block, shape (P, 1, n * n, n).
    :param ensemble: The payoff nets.
    :param effort: How long, and by which steps.
    :param gradient_fn: From :func:`table_error`.
    :param generator: Source of the draws of members.
    :return: Activated cells at its end, shape (P, n * n, n).
    """
    plans, left = th.from_numpy(cells), effort.n_iterations
    while left > 0:
        planner = MwmSgdPlanner(ensemble.n_members, min(left, AT_ONCE), effort.learning_rate, optimizer="sgd")
        plans, left = planner.descend(plans, gradient_fn, generator).preactivated, left - planner.n_iterations
    return th.sigmoid(plans[:, 0]).numpy()


def fix_largest(fixed: Array, cells: Array, sure: float) -> Array:
    """
    :param fixed: Digit of each cell, -1 where there is none yet, shape (P, n * n).
    :param cells: Activated cells at the end of a block, shape (P, n * n, n).
    :param sure: See :class:`Effort`.
    :return: The same with the largest free cell of each table that has one, and all that are larger than ``sure``.
    """
    size_of_best = np.where(fixed < 0, cells.max(axis=-1), -1.0)
    largest = size_of_best.argmax(axis=-1)[:, None] == np.arange(fixed.shape[1])
    return np.where((largest | (size_of_best > sure)) & (fixed < 0), cells.argmax(axis=-1), fixed)


def told_of_whole(ensemble: MlpEnsemble, digits: Array) -> Array:
    """
    :param ensemble: The payoff nets.
    :param digits: Whole units, digits from 0, shape (..., n).
    :return: Log-odds that each is a permutation: the mean over all members, none thinned, and all rewards but the first, which
        is 1 for every unit; shape (...).
    """
    size = ensemble.action_dim
    one_hot = th.from_numpy(np.eye(size, dtype=np.float32)[digits.reshape(1, -1, size)])
    with th.no_grad():
        told = log_odds(ensemble, one_hot.expand(ensemble.n_members, -1, -1, -1), ensemble.members())
    return np.asarray(told[..., 1:].mean(dim=(0, 2)).reshape(digits.shape[:-1]).numpy())


def bar_of(ensemble: MlpEnsemble, generator: np.random.Generator) -> float:
    """
    Nets that learned in the mist are careful: their log-odds of whole units are apart, but not on either side of 0.

    :param ensemble: The payoff nets.
    :param generator: Source of units to ask them about.
    :return: Halfway between the least that they say of permutations and the most that they say of anything else.
    """
    digits = draw_digits(ensemble.action_dim, (4_000,), generator)
    told, right = told_of_whole(ensemble, digits), are_permutations(digits)
    return float(told[right].min() + told[~right].max()) / 2.0


def accepted(ensemble: MlpEnsemble, tables: Array, bar: float) -> Array:
    """
    :param ensemble: The payoff nets.
    :param tables: Digits from 1, shape (P, n, n).
    :param bar: What has to be said of a permutation, from :func:`bar_of`.
    :return: Whether the nets take every row, column and box for a permutation, shape (P,).
    """
    digits = tables.reshape(len(tables), -1)[:, units_of(ensemble.action_dim)] - 1
    return np.asarray((told_of_whole(ensemble, digits) > bar).all(axis=-1))


def solve(
    ensemble: MlpEnsemble,
    n_tables: int,
    effort: Effort,
    seed: int,
    watch: Callable[[Array, Array, Array], None] | None = None,
) -> list[Array]:
    """
    Fill blank tables in, and again those that the nets refuse.

    :param ensemble: The payoff nets.
    :param n_tables: Number of tables.
    :param effort: How, and how often at most.
    :param seed: Seed of all draws; each attempt has a generator of its own.
    :param watch: See :func:`fill_in`; it sees the first attempt alone.
    :return: The tables after each attempt, each of shape (n_tables, n, n).
    """
    attempts = [fill_in(ensemble, n_tables, effort, np.random.default_rng([seed, 1]), watch)]
    bar = bar_of(ensemble, np.random.default_rng([seed, 0, 1]))
    for k in range(2, effort.n_attempts + 1):
        refused = ~accepted(ensemble, attempts[-1], bar)
        if not refused.any():
            break
        tables = attempts[-1].copy()
        tables[refused] = fill_in(ensemble, int(refused.sum()), effort, np.random.default_rng([seed, k]))
        attempts.append(tables)
    return attempts


def fill_in(
    ensemble: MlpEnsemble,
    n_tables: int,
    effort: Effort,
    generator: np.random.Generator,
    watch: Callable[[Array, Array, Array], None] | None = None,
) -> Array:
    """
    Fill blank tables in. All of them are one population of plans.

    :param ensemble: The payoff nets, of m members.
    :param n_tables: Number of tables.
    :param effort: How.
    :param generator: Source of all draws.
    :param watch: Called after each block with the numbers of the tables that it was about, their activated cells, shape
        (P, n * n, n), and the digits that were fixed before it, shape (P, n * n), -1 where there was none.
    :return: Digits from 1, int64, shape (n_tables, n, n).
    """
    size, m = ensemble.action_dim, ensemble.n_members
    gradient_fn = table_error(ensemble, generator)
    # A multiple of m, for then the planner deals the tables out to the members, which is one batched product.
    fixed = np.full((-(-n_tables // m) * m, size * size), -1)
    while True:
        finished = np.all(fixed >= 0, axis=1)
        n_going_on = -(-int((~finished[:n_tables]).sum()) // m) * m
        if n_going_on == 0:
            return fixed[:n_tables].reshape(-1, size, size) + 1
        rows = finished.argsort(kind="stable")[:n_going_on]
        before = fixed[rows]
        cells = descend(blank_cells(before, effort.start_std, generator), ensemble, effort, gradient_fn, generator)
        fixed[rows] = fix_largest(before, cells, effort.sure)
        if watch is not None:
            watch(rows, cells, before)


@dataclass(frozen=True)
class Settings:
    """
    What a size of tables needs.

    :param n_members: Members m.
    :param n_steps: Steps of training.
    :param n_iterations: Iterations of a block.
    :param dropout: Probability that a hidden unit is missing from a thinned member.
    :param n_attempts: How often a table that the nets refuse is begun at most.
    """

    n_members: int
    n_steps: int
    n_iterations: int
    dropout: float
    n_attempts: int


SETTINGS = {4: Settings(5, 800, 50, 0.0, 3), 6: Settings(5, 2_000, 50, 0.0, 3), 9: Settings(10, 4_000, 50, 0.0, 20)}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """
    :param arguments: Words of the command line; None: those of this process.
    :return: Arguments, with what the size needs where nothing else was said.
    """
    parser = argparse.ArgumentParser(description="Fill blank Sudoku tables in with nets that know permutations.")
    parser.add_argument("--size", type=int, choices=sorted(BOXES), default=6, help="rows of a table")
    parser.add_argument("--tables", type=_positive, default=200, help="how many blank tables")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="NumPy file to write: integers, shape (tables, size, size)")
    parser.add_argument("--members", type=_positive, help="members of the ensemble")
    parser.add_argument("--steps", type=_positive, help="steps of training")
    parser.add_argument("--iterations", type=_positive, help="iterations of a block, after which a cell is fixed")
    parser.add_argument("--learning-rate", type=float, default=Effort.learning_rate, help="step size on the cells")
    parser.add_argument("--sure", type=float, default=Effort.sure, help="cells larger than this are fixed as well; 1: none is")
    parser.add_argument("--attempts", type=_positive, help="how often a table that the nets refuse is begun at most")
    parser.add_argument("--noise", type=float, default=NOISE, help="noise on what the nets see while they learn")
    parser.add_argument("--dropout", type=float, help="probability that a hidden unit is missing")
    parser.add_argument("--nets", type=Path, help="file of trained nets: read if it is there, else written")
    parser.add_argument("--picture", type=Path, help="picture of the first table as it fills in")
    parser.add_argument("--threads", type=_positive, default=2, help="threads of torch")
    parsed = parser.parse_args(arguments)
    settings = SETTINGS[parsed.size]
    for name, value in (
        ("members", settings.n_members),
        ("steps", settings.n_steps),
        ("iterations", settings.n_iterations),
        ("dropout", settings.dropout),
        ("attempts", settings.n_attempts),
    ):
        if getattr(parsed, name) is None:
            setattr(parsed, name, value)
    return parsed


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def trained_nets(arguments: argparse.Namespace) -> MlpEnsemble:
    """
    :param arguments: Arguments of the command line.
    :return: The nets of ``--nets`` if that file is there, else new ones, which are written there.
    :raises ValueError: If the file holds nets of other settings.
    """
    wanted = {name: getattr(arguments, name) for name in ("size", "members", "steps", "noise", "dropout", "seed")}
    ensemble = make_nets(arguments.size, arguments.members, arguments.dropout, arguments.seed)
    if arguments.nets is not None and arguments.nets.exists():
        saved = th.load(arguments.nets, weights_only=True)
        if saved["settings"] != wanted:
            raise ValueError(f"{arguments.nets} holds nets of {saved['settings']}, wanted are {wanted}: name another file")
        ensemble.load_state_dict(saved["weights"])
        return ensemble
    clock = Clock()
    generator = np.random.default_rng([arguments.seed, 0])
    train(
        ensemble, arguments.steps, generator, arguments.noise, lambda n, loss: print(f"step {n}: loss {loss:.4f}", flush=True)
    )
    print(f"Trained {arguments.members} nets in {clock}", flush=True)
    if arguments.nets is not None:
        with atomic_write(arguments.nets) as file:
            th.save({"settings": wanted, "weights": ensemble.state_dict()}, file)
    return ensemble


class Clock:
    """What it took since the clock was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        return f"{time.process_time() - self._cpu:.0f} s of CPU, {time.perf_counter() - self._wall:.0f} s by the clock"


class Story:
    """
    How the first table fills in.

    :param size: Rows of a table.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: list[tuple[Array, Array]] = []

    def __call__(self, rows: Array, cells: Array, fixed: Array) -> None:
        """Remember a block, see :func:`fill_in`."""
        if rows[0] == 0:
            self.blocks.append((cells[0], fixed[0]))

    def draw(self, finished: Array, output: Path, n_pictures: int = 6) -> None:
        """
        :param finished: The table in the end, digits from 1, shape (n, n).
        :param output: Picture to write.
        :param n_pictures: How many stages to draw.
        """
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        last = np.eye(self.size)[finished.ravel() - 1], finished.ravel() - 1
        stages = [*self.blocks, last]
        shown = np.linspace(0, len(stages) - 1, n_pictures).round().astype(int)
        figure, axes = plt.subplots(1, n_pictures, figsize=(2.2 * n_pictures, 2.6), constrained_layout=True)
        for axis, k in zip(axes, shown, strict=True):
            _draw_table(axis, self.size, *stages[k])
            axis.set_title(f"{int((stages[k][1] >= 0).sum())} fixed", fontsize=10)
        with atomic_write(output) as file:
            figure.savefig(file, format="png", dpi=110)
        plt.close(figure)


def _draw_table(axis: Any, size: int, cells: Array, fixed: Array) -> None:
    """
    :param axis: Where to draw.
    :param size: Rows n of the table.
    :param cells: Activated cells, shape (n * n, n).
    :param fixed: Digits that are fixed, -1 where there is none, shape (n * n,).
    """
    height, width = BOXES[size]
    axis.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[], aspect="equal")
    for k in range(1, size):
        axis.axhline(k, color="black", linewidth=1.6 if k % height == 0 else 0.4)
        axis.axvline(k, color="black", linewidth=1.6 if k % width == 0 else 0.4)
    for cell in range(size * size):
        row, column = divmod(cell, size)
        place = {"ha": "center", "va": "center"}
        if fixed[cell] >= 0:
            axis.text(column + 0.5, row + 0.53, str(fixed[cell] + 1), fontsize=72 / size, weight="bold", **place)
            continue
        for digit in range(size):
            down, across = divmod(digit, width)
            x, y = column + (across + 0.5) / width, row + (down + 0.5) / height
            shade = float(np.clip(cells[cell, digit], 0.0, 1.0))
            axis.text(x, y, str(digit + 1), fontsize=30 / size, color="#0072b2", alpha=shade, **place)


def describe(n_solved: int, n_tables: int) -> str:
    """
    :param n_solved: Tables that the checker found right.
    :param n_tables: Tables in all.
    :return: Their share, with Wilson's 95 % interval.
    """
    interval = stats.binomtest(n_solved, n_tables).proportion_ci(method="wilson")
    share = f"{100 * n_solved / n_tables:.1f} % (95 % interval {100 * interval.low:.1f} .. {100 * interval.high:.1f})"
    return f"{n_solved} of {n_tables} tables solved: {share}"


def main(words: list[str] | None = None) -> None:
    """
    Train, fill blank tables in, and judge them.

    :param words: Words of the command line; None: those of this process.
    """
    arguments = parse_arguments(words)
    th.set_num_threads(arguments.threads)
    everything = Clock()
    ensemble = trained_nets(arguments)
    clock, story = Clock(), Story(arguments.size)
    effort = Effort(arguments.iterations, arguments.learning_rate, sure=arguments.sure, n_attempts=arguments.attempts)
    attempts = solve(ensemble, arguments.tables, effort, arguments.seed, story)
    tables = attempts[-1]
    if arguments.output is not None:
        with atomic_write(arguments.output) as file:
            np.save(file, tables)
    print(f"Filled in {len(tables)} tables in {clock}; all in all {everything}")
    for k, tables in enumerate(attempts, start=1):
        print(f"Attempt {k}: {describe(sum(map(is_sudoku, tables)), len(tables))}")
    if arguments.picture is not None:
        story.draw(attempts[0][0], arguments.picture)


if __name__ == "__main__":
    main()
