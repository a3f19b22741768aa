"""What people see while runs are made: how many are done, how long the rest will take, and the current returns."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean

import pandas as pd

from sb3_rgrl.benchmark.results import COLUMNS, OUTPUT_FILE, DamagedResultError, RunInfo, read_evaluations

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """
    Counts runs.

    :param finished: Runs that were finished before; they tell how long others will take.
    :param n_runs: Number of all runs, finished ones included.
    :param jobs: How many are made at the same time.
    :param say: What to do with a line.
    :param show_line: What to do with a line that the next replaces; None: it is said now and then.
    """

    def __init__(
        self,
        finished: Sequence[RunInfo],
        n_runs: int,
        jobs: int,
        say: Callable[[str], None] = print,
        show_line: Callable[[str], None] | None = None,
    ) -> None:
        self.n_done, self.n_failed, self.n_runs, self.jobs = len(finished), 0, n_runs, jobs
        self.say, self.show_line = say, show_line
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.began: dict[str, float] = {}
        self.shown = time.monotonic()
        for info in finished:
            self._learn(info)

    def _learn(self, info: RunInfo) -> None:
        if info.finished and info.started:
            took = (datetime.fromisoformat(info.finished) - datetime.fromisoformat(info.started)).total_seconds()
            self.seconds.setdefault((info.env_id, info.variant), []).append(took)

    def note(self, info: RunInfo, folder: Path) -> None:
        """
        :param info: A run that has ended.
        :param folder: Its folder.
        """
        if info.status == "finished":
            self.n_done += 1
            self._learn(info)
            outcome = f"finished, return {last_return(rows_of(folder))}"
        else:
            self.n_failed += 1
            outcome = f"FAILED: {info.reason} (all of it: {folder / OUTPUT_FILE})"
        self.say(f"[{self._counts()}] {info.name} {outcome}")

    def show(self, waiting: Sequence[RunInfo], running: Sequence[tuple[RunInfo, Path]]) -> None:
        """
        :param waiting: Runs that were not started.
        :param running: Runs that were, with their folders.
        """
        moment = time.monotonic()
        for info, _ in running:
            self.began.setdefault(info.name, moment)
        pause = SECONDS_BETWEEN_LINES if self.show_line is None else 1.0
        if moment - self.shown < pause:
            return
        self.shown = moment
        rows = {info.name: rows_of(folder) for info, folder in running}
        shares = {info.name: share_done(rows[info.name], info) for info, _ in running}
        left = self.seconds_left(waiting, [info for info, _ in running], shares)
        now_running = " | ".join(
            f"{info.name} {100 * shares[info.name]:.0f} % {last_return(rows[info.name])}" for info, _ in running[:8]
        )
        more = f" | and {len(running) - 8} more" if len(running) > 8 else ""
        text = "time left not known yet" if left is None else f"about {as_duration(left)} left"
        (self.show_line or self.say)(f"[{self._counts()}, {text}] {now_running}{more}")

    def _counts(self) -> str:
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        return f"{self.n_done}/{self.n_runs} done{failed}"

    def seconds_left(self, waiting: Sequence[RunInfo], running: Sequence[RunInfo], shares: dict[str, float]) -> float | None:
        """
        :param waiting: Runs that were not started.
        :param running: Runs that were.
        :param shares: How much of each of these is done, 0 to 1.
        :return: Seconds that all take; None: no run has told anything yet.
        """
        known = {key: fmean(values) for key, values in self.seconds.items()}
        moment = time.monotonic()
        for info in running:
            key, share = (info.env_id, info.variant), shares[info.name]
            if key not in known and share > 0:
                known[key] = (moment - self.began[info.name]) / share
        if not known:
            return None
        guess = fmean(known.values())
        whole = [known.get((info.env_id, info.variant), guess) for info in waiting]
        rest = [known.get((info.env_id, info.variant), guess) * (1 - shares[info.name]) for info in running]
        return max([sum(whole + rest) / self.jobs, *rest])


def rows_of(folder: Path) -> pd.DataFrame:
    """
    :param folder: Folder of a run.
    :return: Its rows so far; none where they cannot be read.
    """
    try:
        return read_evaluations(folder)
    except DamagedResultError:
        return pd.DataFrame(columns=list(COLUMNS))


def share_done(rows: pd.DataFrame, info: RunInfo) -> float:
    """
    :param rows: Rows of a run.
    :param info: The run.
    :return: Share of its budget that was spent at its last evaluation.
    """
    return min(1.0, float(rows["step"].max()) / info.n_timesteps) if len(rows) else 0.0


def last_return(rows: pd.DataFrame) -> str:
    """
    :param rows: Rows of a run.
    :return: Mean return of its last evaluation, for people.
    """
    if not len(rows):
        return "-"
    last = rows[(rows["step"] == rows["step"].iloc[-1]) & (rows["final"] == rows["final"].iloc[-1])]
    return f"{last['return'].mean():.4g}"


def as_duration(seconds: float) -> str:
    """
    :param seconds: A duration in seconds.
    :return: The same for people.
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
