"""Small runs of the benchmark suite, made in this process: what its tests begin with."""

import dataclasses
import json
import os

from sb3_rgrl.benchmark import grid, one_run
from sb3_rgrl.benchmark.grid import Grid
from sb3_rgrl.benchmark.progress import Progress

ENV_ID = "CartPole-v1"
SMALL = Grid([ENV_ID], ["random"], range(2), 40, n_evaluations=4, n_eval_episodes=3, n_final_episodes=5, command="test")
SMALL_WORDS = ["--steps", "40", "--evaluations", "4", "--eval-episodes", "3", "--final-episodes", "5"]


class Inline:
    """An executor without processes: a run is made when it is submitted."""

    def __init__(self):
        self.made = []

    def submit(self, folder, mix_versions):
        info = one_run.execute(folder, os.getppid(), mix_versions)
        self.made.append(info.name)
        return self

    def poll(self):
        return "its process ended with exit status 0"

    def cancel(self):
        pass

    def close(self):
        pass


def make(folder, wanted=SMALL, executor=None, mix=False):
    """Make what is missing; return names of what was made, what failed, and what was said."""
    executor, lines = executor or Inline(), []
    todo = grid.plan(folder, wanted, mix)
    progress = Progress(todo.finished, len(todo.finished) + len(todo.todo), 2, lines.append)
    failed = grid.work_off(folder, todo, executor, 2, progress, mix)
    return executor.made, failed, lines


def changed(**changes):
    return dataclasses.replace(SMALL, **changes)


def info_of(variant="random", env_id=ENV_ID, **changes):
    """What the command asks for in a small run of seed 0."""
    (info,) = grid.runs_of(changed(env_ids=[env_id], variants=[variant], seeds=[0], **changes))
    return info


def edit(folder, **changes):
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
