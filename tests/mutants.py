"""
Put faults into some modules, one at a time, and see whether the tests notice: mutation testing of a random sample.

    python -m tests.mutants --modules targets ewc --per-module 100 --seed 0

mutmut (extra ``mutants``) makes the mutants and runs the tests that reach the function which was changed; which modules and
which tests is told in pyproject.toml. Works in a folder ``mutants`` and goes on from there. Prints a line for each mutant that
no test noticed (``mutmut show NAME`` prints the change), and at the end counts by module with the interval of Wilson.
"""

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("planner", "starts", "choosing", "prioritized", "ewc", "buffers", "sequentializing", "saving_buffers", "targets")
# What mutmut notes of a mutant: https://mutmut.readthedocs.io
OUTCOMES = {None: "not run", 0: "survived", 33: "no tests", 34: "skipped", 24: "timeout", 36: "timeout", -24: "timeout"}


def mutmut(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=ROOT, check=True)


def outcomes_in(module: str) -> dict[str, int | None]:
    path = ROOT / "mutants" / "sb3_rgrl" / f"{module}.py.meta"
    return json.loads(path.read_text())["exit_code_by_key"]


def main(modules: Sequence[str], per_module: int, seed: int) -> None:
    # The first mutant brings all of them about.
    mutmut("run", "--max-children", "1", "sb3_rgrl.targets.x_alive_before__mutmut_1")
    for module in modules:
        mutants = sorted(outcomes_in(module))
        chosen = sorted(random.Random(seed).sample(mutants, min(per_module, len(mutants))))
        mutmut("run", "--max-children", "1", *chosen)
        found = outcomes_in(module)
        counts = Counter(OUTCOMES.get(found[name], "killed") for name in chosen)
        for name in chosen:
            if OUTCOMES.get(found[name], "killed") != "killed":
                print(OUTCOMES[found[name]], name)
        n_killed = counts["killed"] + counts["timeout"]
        interval = binomtest(n_killed, len(chosen)).proportion_ci(method="wilson")
        share = f"{n_killed / len(chosen):.1%} ({interval.low:.1%} .. {interval.high:.1%})"
        print(f"{module}: {len(chosen)} of {len(mutants)} mutants, {dict(counts)}, killed {share}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=MODULES)
    parser.add_argument("--per-module", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    main(args.modules, args.per_module, args.seed)
