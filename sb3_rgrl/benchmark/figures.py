"""What was measured, as a table to read, a file to compute with, and a picture."""

import csv
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogLocator, NullFormatter

from sb3_rgrl.benchmark.timing import THREAD_VARIABLES, short

COLUMNS = ("name", "setting", "value", "unit", "target", "met", "detail")
PACKAGES = ("sb3-rgrl", "torch", "numpy", "stable-baselines3", "gymnasium")


@dataclass(frozen=True)
class Figure:
    """
    One measured number.

    :param name: What was measured.
    :param setting: With which setting.
    :param value: The number; None: it was not measured.
    :param unit: Its unit; ``"x"`` for a ratio.
    :param at_least: Target from below; None: there is none.
    :param at_most: Target from above; None: there is none.
    :param detail: Quartiles, the numbers behind a ratio, or why there is no number.
    """

    name: str
    setting: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    detail: str = ""

    @property
    def target(self) -> str:
        """The target with its sign, empty if there is none."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def margin(self) -> float | None:
        """How many times better than the target; less than 1 where it is missed, None where nothing can be told."""
        if self.value is None or self.value <= 0:
            return None
        if self.at_least is not None:
            return self.value / self.at_least
        return None if self.at_most is None else self.at_most / self.value

    @property
    def met(self) -> str:
        """``"yes"``, ``"no"``, or nothing where there is no target or no number."""
        if self.value is None or self.target == "":
            return ""
        reached = self.value >= self.at_least if self.at_least is not None else self.value <= (self.at_most or 0.0)
        return "yes" if reached else "no"

    def row(self) -> tuple[str, ...]:
        """
        :return: Its cells, in the order of ``COLUMNS``.
        """
        value = "" if self.value is None else short(self.value)
        return self.name, self.setting, value, self.unit, self.target, self.met, self.detail


def line_of(figure: Figure) -> str:
    """
    :param figure: A figure.
    :return: Its line in the table.
    """
    return _aligned(figure.row())


def header() -> str:
    """
    :return: The first line of the table.
    """
    return _aligned(COLUMNS)


def _aligned(cells: Sequence[str]) -> str:
    name, setting, value, unit, target, met, detail = cells
    return f"{name:<34} {setting:<14} {value:>9} {unit:<11} {target:<8} {met:<4} {detail}".rstrip()


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """
    :param path: File to write; its folder is made.
    :param columns: Names of the columns.
    :param rows: Their values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """
    :param path: File to write; its folder is made.
    :param content: What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def conditions(command: str) -> dict[str, Any]:
    """
    :param command: How the measurement was called.
    :return: When, where and with what it was made.
    """
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": th.cuda.get_device_name() if th.cuda.is_available() else None,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "torch_threads": th.get_num_threads(),
        "thread_variables": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def cpu_model() -> str:
    """
    :return: Name of the processor.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def draw_targets(path: Path, figures: Sequence[Figure], subtitle: str) -> None:
    """
    Draw how far each figure is from its target.

    :param path: PNG file to write; its folder is made.
    :param figures: Figures; those without a target are left out.
    :param subtitle: Below the title.
    """
    drawn = [(figure, figure.margin) for figure in reversed(figures) if figure.margin is not None]
    picture = Picture(figsize=(9.0, 1.2 + 0.42 * len(drawn)), layout="constrained")
    axes = picture.subplots()
    for place, (figure, margin) in enumerate(drawn):
        axes.barh(place, margin - 1.0, left=1.0, color="tab:green" if figure.met == "yes" else "tab:red")
        label = f" {short(figure.value or 0.0)} {figure.unit} ({figure.target})"
        axes.text(max(margin, 1.0), place, label, va="center", fontsize=8)
    axes.set_yticks(range(len(drawn)), [f"{figure.name}, {figure.setting}" for figure, _ in drawn], fontsize=8)
    margins = [margin for _, margin in drawn] or [1.0]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(0.5, 0.8 * min(margins)), 6.0 * max(1.0, *margins))
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_xlabel("times better than the target")
    axes.set_title(f"Speed and memory of RGRL against their targets\n{subtitle}", fontsize=9)
    save_picture(path, picture)


def save_picture(path: Path, picture: Picture) -> None:
    """
    :param path: PNG file to write; its folder is made.
    :param picture: What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=120)
