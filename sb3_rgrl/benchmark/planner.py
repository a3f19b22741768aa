"""
How fast RGRL plans and learns, each figure beside its target.

What is compared is compared in one process on one thread, in turns A B A B ..., after a warm-up: a ratio is the median of
the ratios of neighbours, and comes with their quartiles. Settings: see :data:`~sb3_rgrl.benchmark.agents.SETTINGS`;
*shipped* is ``hyperparams/rgrl.yml`` for CartPole-v1 with the constructor's defaults.

One plan iteration is what :class:`~sb3_rgrl.planner.MwmSgdPlanner` repeats: deal plans out to members, thin the members,
error and gradient (:class:`~sb3_rgrl.judges.ClosedFormJudges`), one step of Adam. Many are timed as one; what a decision does
once (bringing up the weights, initial noise, scoring) is left out, here and in the baseline, which does the same with
autograd and torch's Adam. A decision is ``predict`` with all of that.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3 import DQN

from sb3_rgrl.benchmark import growth, processes
from sb3_rgrl.benchmark.agents import ENV_ID, SETTINGS, Decider, make_agent, seen_by, shipped_setting, with_policy_kwargs
from sb3_rgrl.benchmark.baselines import (
    AutogradPlanner,
    BatchedMlpPlanner,
    LoopedGruPlanner,
    products_of_learning,
    products_of_planning,
)
from sb3_rgrl.benchmark.figures import COLUMNS as FIGURE_COLUMNS
from sb3_rgrl.benchmark.figures import Figure, conditions, draw_targets, header, line_of, write_csv, write_json
from sb3_rgrl.benchmark.timing import Spread, in_turns, one_torch_thread, repeated, short
from sb3_rgrl.judges import Case, ClosedFormJudges, closed_form_of
from sb3_rgrl.planner import MwmSgdPlanner
from sb3_rgrl.policies import EnsemblePolicy
from sb3_rgrl.rgrl import RGRL

N_ENVS_OF_MEMORY = 256
N_ENVS_ON_GPU = (1, 64, 1024, 4096)
LEARNING: dict[str, Any] = {
    **SETTINGS["S"],
    "batch_size": 128,
    "policy_kwargs": {"net_arch": [64, 64], "windows_per_sample": 3},
}
"""5 members of two hidden layers of 64; 128 windows of 3 x 5 steps for each."""


@dataclass(frozen=True)
class Effort:
    """
    How much is measured.

    :param seconds: Time for each figure.
    :param iterations: Plan iterations that are timed as one.
    :param imports: Processes that import the package.
    :param sizes: Transitions in the buffer.
    :param blocks: Blocks of steps for each of these, at least.
    :param compiled: Whether plans are measured with ``compile_planning``, too, and updates with ``compile_losses``, which
        takes half a minute to begin with.
    """

    seconds: float
    iterations: int
    imports: int
    sizes: tuple[int, ...]
    blocks: int
    compiled: bool


FULL = Effort(seconds=10.0, iterations=20, imports=15, sizes=(1_000, 10_000, 100_000, 1_000_000), blocks=30, compiled=True)
QUICK = Effort(seconds=0.2, iterations=3, imports=1, sizes=(1_000, 10_000), blocks=3, compiled=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: Of this command.
    """
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for data/ and images/ (default: docs)")
    parser.add_argument("--quick", action="store_true", help="a trial with few repetitions and a small buffer")


def run(arguments: argparse.Namespace) -> int:
    """
    Measure everything, print a table, write ``data/planner.csv``, ``planner.json`` and ``growth.csv``, and
    ``images/planner.png`` and ``growth.png``.

    :param arguments: See :func:`add_arguments`.
    :return: Exit status 0, whatever was measured.
    :raises SystemExit: If there is no place for the files.
    """
    effort: Effort = QUICK if arguments.quick else FULL
    data, images = arguments.out / "data", arguments.out / "images"
    # Now, for the measurements take minutes.
    for folder in (data, images):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"Cannot make the folder {folder} for the results: {error}. Choose another --out.") from error
    with one_torch_thread():
        about = conditions(arguments.command_line)
        if any(value != "1" for value in about["thread_variables"].values()):
            print("Warning: NumPy may use several threads. Set these to 1: " + ", ".join(about["thread_variables"]))
        print(f"{about['cpu']}, one thread, {about['date']}\n{header()}", flush=True)
        figures = []
        for figure in measure(effort):
            print(line_of(figure), flush=True)
            figures.append(figure)
        times = growth.seconds_per_step(effort.sizes, effort.seconds, effort.blocks)
        figures.append(figure_of_growth(effort.sizes, times))
        print(line_of(figures[-1]), flush=True)
    write_csv(data / "planner.csv", FIGURE_COLUMNS, [figure.row() for figure in figures])
    write_json(data / "planner.json", {**about, "quick": arguments.quick})
    draw_targets(images / "planner.png", figures, f"{about['cpu']}, one thread, torch {about['versions']['torch']}")
    growth.write(data / "growth.csv", images / "growth.png", effort.sizes, times)
    print(f"Written: planner.csv, planner.json and growth.csv in {data}, planner.png and growth.png in {images}")
    return 0


def measure(effort: Effort) -> Iterator[Figure]:
    """
    :param effort: How much.
    :return: All figures but that of growth, one by one.
    """
    small = make_agent(SETTINGS["S"])
    yield iterations_against_autograd(effort, "S", small, BatchedMlpPlanner, "autograd")
    yield iterations_against_products(effort, "L", SETTINGS["L"])
    yield iterations_against_autograd(effort, "R", make_agent(SETTINGS["R"]), LoopedGruPlanner, "looped nn.GRU")
    yield from decisions_against_dqn(effort, "shipped", shipped_setting())
    yield decisions_at_once(effort, "S", small)
    yield decisions_at_once(effort, "shipped", make_agent(shipped_setting()))
    if effort.compiled:
        yield from compiled_plans(effort)
    yield from updates_against_products(effort, make_agent(LEARNING), "S, 128 x 3 x 5")
    if effort.compiled:
        compiled = with_policy_kwargs(LEARNING, compile_losses=True)
        yield from updates_against_products(effort, make_agent(compiled), "the same, compiled")
    yield figure_of_memory()
    yield figure_of_import(effort)
    yield from decisions_on_gpu(effort)


def compiled_plans(effort: Effort) -> Iterator[Figure]:
    """
    :param effort: How much.
    :return: Figures of plans with ``compile_planning``, or that there is no numba.
    """
    if find_spec("numba") is None:
        yield Figure("plans, compiled", "shipped", None, "", detail="not measured (numba is not installed)")
        return
    small, large, shipped = (
        with_policy_kwargs(setting, compile_planning=True) for setting in (SETTINGS["S"], SETTINGS["L"], shipped_setting())
    )
    yield iterations_against_autograd(effort, "S, compiled", make_agent(small), BatchedMlpPlanner, "autograd")
    yield iterations_against_products(effort, "L, compiled", large)
    yield from decisions_against_dqn(effort, "shipped, compiled", shipped)
    yield decisions_at_once(effort, "S, compiled", make_agent(small))
    yield decisions_at_once(effort, "shipped, compiled", make_agent(shipped))


# Plan iterations


def iterations_of_planner(policy: EnsemblePolicy, states: th.Tensor, plans: th.Tensor, n: int) -> Callable[[], object]:
    """
    :param policy: A policy whose gradients are known in closed form.
    :param states: Standardised states, shape (n, d).
    :param plans: Pre-activated actions, shape (P, n, T, action_dim).
    :param n: Number of iterations.
    :return: What makes them.
    """
    form = closed_form_of(policy.ensemble, policy.action_space, policy.compile_planning)
    assert form is not None, "These members plan by autograd, there is nothing to compare"
    generator = np.random.default_rng(0)
    case = Case(states, policy.goal(), policy.units(), generator)
    judges = ClosedFormJudges(form, policy.ensemble, policy.codec, case)  # type: ignore[arg-type]
    planner = MwmSgdPlanner(
        policy.planner.n_members, n, policy.planner.learning_rate, policy.planner.optimizer, policy.planner.member_choice
    )
    first = judges.take(plans.numpy())
    return lambda: planner.descend(first, judges.gradient, generator)


def iterations_of_baseline(baseline: AutogradPlanner, plans: th.Tensor, n: int) -> Callable[[], object]:
    """
    :param baseline: The same in plain torch.
    :param plans: Pre-activated actions, shape (P, n, T, action_dim).
    :param n: Number of iterations.
    :return: What makes them.
    """
    generator = np.random.default_rng(0)
    return lambda: baseline.descend(plans, n, generator)


def case_of(model: RGRL) -> tuple[th.Tensor, th.Tensor]:
    """
    :param model: An agent that has seen something.
    :return: One standardised state, shape (1, d), and initial plans, shape (P, 1, T, action_dim).
    """
    shape = (model.n_candidates, 1, model.plan_horizon, model.policy.codec.dim)
    plans = th.randn(shape, generator=th.Generator().manual_seed(0))
    return model.policy.standardised_states(next(seen_by(model, 1))), plans


def iterations_against_autograd(
    effort: Effort, setting: str, model: RGRL, baseline_class: type[AutogradPlanner], what: str
) -> Figure:
    """
    :param effort: How much.
    :param setting: Name of the setting.
    :param model: Agent of that setting.
    :param baseline_class: Its baseline.
    :param what: What that is.
    :return: How many times faster the planner is.
    """
    states, plans = case_of(model)
    n = effort.iterations
    baseline = baseline_class(model.policy, states)
    sides = [iterations_of_planner(model.policy, states, plans, n), iterations_of_baseline(baseline, plans, n)]
    times = in_turns(sides, effort.seconds) / n
    return _ratio(f"{what} / plan iteration", setting, times[:, ::-1], "{} against {}", 1e6, "us", at_least=5.0)


def iterations_against_products(effort: Effort, name: str, setting: dict[str, Any]) -> Figure:
    """
    :param effort: How much.
    :param name: Name of the setting.
    :param setting: Arguments of :class:`RGRL`.
    :return: How many times as long as its matrix products one iteration takes.
    """
    model, n = make_agent(setting), effort.iterations
    states, plans = case_of(model)
    products = products_of_planning(model.policy, len(plans) // model.ensemble_size)

    sides = [iterations_of_planner(model.policy, states, plans, n), repeated(products, n)]
    times = in_turns(sides, effort.seconds) / n
    return _ratio("plan iteration / its products", name, times, "{} against {} by torch.bmm", 1e6, "us", at_most=2.5)


def _ratio(
    name: str, setting: str, times: NDArray[np.float64], what: str, per_second: float, unit: str, **target: float
) -> Figure:
    """
    :param times: Seconds of what is above and what is below the line, shape (rounds, 2).
    :param what: Text with a place for the median of each.
    :param per_second: Units in a second.
    :return: The figure of their ratio.
    """
    spread = Spread.of(times[:, 0] / times[:, 1])
    above, below = (short(median) for median in per_second * np.median(times, axis=0))
    detail = f"{_spread_of(spread, times)}; {what}".format(f"{above} {unit}", f"{below} {unit}")
    return Figure(name, setting, spread.median, "x", detail=detail, **target)


def _spread_of(spread: Spread, times: NDArray[np.float64]) -> str:
    return f"quartiles {spread.quartiles()} of {len(times)}"


# Decisions


def decisions_against_dqn(effort: Effort, name: str, setting: dict[str, Any]) -> list[Figure]:
    """
    :param effort: How much.
    :param name: Name of the setting.
    :param setting: Arguments of :class:`RGRL`.
    :return: Time of a decision that starts from the last one's plans, mean of those that execute one plan; how many times
        that of a DQN it is; and the time of the slowest of them, which makes the plan.
    """
    model, planner = make_agent(setting), make_agent(setting)
    n_executed = model.policy.followed_steps
    planner.policy.execute_steps = 1
    dqn = DQN("MlpPolicy", ENV_ID, policy_kwargs={"net_arch": [256, 256]}, buffer_size=1, device="cpu", seed=0)
    observations = seen_by(model, 1)

    def decide_greedily() -> None:
        dqn.predict(next(observations), deterministic=True)

    # Of what is much shorter, more are timed as one.
    cycles, plans = repeated(Decider(model, 1), n_executed), repeated(Decider(planner, 1), 3)
    times = in_turns([cycles, repeated(decide_greedily, 10), plans], effort.seconds) / (n_executed, 10, 3)
    alone, slowest = Spread.of(1e3 * times[:, 0]), Spread.of(1e3 * times[:, 2])
    plan = Figure("decision that plans anew", name, slowest.median, "ms", at_most=1.5, detail=_spread_of(slowest, times))
    return [
        plan,
        Figure("decision", name, alone.median, "ms", at_most=1.5, detail=_spread_of(alone, times)),
        _ratio("decision / DQN.predict", name, times[:, :2], "RGRL {}, DQN {}", 1e3, "ms", at_most=10.0),
    ]


def decisions_at_once(effort: Effort, setting: str, model: RGRL, n_envs: int = 64) -> Figure:
    """
    :param effort: How much.
    :param setting: Name of the setting.
    :param model: Agent of that setting.
    :param n_envs: Number of environments.
    :return: How many times the decisions of one environment are made in a second in that many.
    """
    # Whole cycles of planning and executing
    some, cycle = 3 * model.policy.followed_steps, model.policy.followed_steps
    deciders = [repeated(Decider(model, 1), some), repeated(Decider(model, n_envs), cycle)]
    per_second = np.array([some, n_envs * cycle]) / in_turns(deciders, effort.seconds)
    spread = Spread.of(per_second[:, 1] / per_second[:, 0])
    one, many = np.median(per_second, axis=0)
    detail = f"{_spread_of(spread, per_second)}; {short(many)}/s against {short(one)}/s"
    return Figure(f"decisions/s, n_envs {n_envs} / 1", setting, spread.median, "x", at_least=25.0, detail=detail)


def decisions_on_gpu(effort: Effort, device: str = "cuda", n_envs: tuple[int, ...] = N_ENVS_ON_GPU) -> Iterator[Figure]:
    """
    :param effort: How much.
    :param device: Where.
    :param n_envs: Numbers of environments.
    :return: Decisions per second on a GPU, or that there is none.
    """
    if device == "cuda" and not th.cuda.is_available():
        yield Figure("GPU", "shipped", None, "", detail="GPU: not measured (no CUDA device)")
        return
    name = th.cuda.get_device_name() if device == "cuda" else device
    model = make_agent(shipped_setting(), device=device)
    for n in n_envs:
        # What is predicted comes back to the CPU, so the time is up when the device has finished.
        cycle = model.policy.followed_steps
        times = in_turns([repeated(Decider(model, n), cycle)], effort.seconds)[:, 0] / cycle
        spread = Spread.of(n / times)
        detail = f"{_spread_of(spread, times)}; {name}"
        yield Figure(f"decisions/s on GPU, n_envs {n}", "shipped", spread.median, "1/s", detail=detail)


# Learning


def updates_against_products(effort: Effort, model: RGRL, setting: str) -> list[Figure]:
    """
    :param effort: How much.
    :param model: Agent that learns.
    :param setting: Name of the setting.
    :return: How many times as long as its matrix products an update takes, without and with the optimizer's step.
    """
    policy, optimizer = model.policy, model.policy.optimizer
    assert model.replay_buffer is not None
    windows = model.replay_buffer.sample(model.batch_size)
    policy.set_training_mode(True)

    def gradients() -> None:
        optimizer.zero_grad()
        loss = policy.window_errors(windows).losses.mean(dim=-1).sum()
        loss.backward()  # type: ignore[no-untyped-call]

    def update() -> None:
        gradients()
        optimizer.step()

    times = in_turns([gradients, update, products_of_learning(policy, model.batch_size)], effort.seconds)
    what = "{} against {} by torch.bmm"
    return [
        _ratio("loss and gradient / products", setting, times[:, [0, 2]], what, 1e3, "ms", at_most=4.0),
        _ratio("update / products", setting, times[:, 1:], what, 1e3, "ms", at_most=4.0),
    ]


# Memory, import, growth


def figure_of_memory() -> Figure:
    """
    :return: What planning needs above the idle process.
    """
    told = processes.memory_of_planning(N_ENVS_OF_MEMORY)
    name, setting = f"memory of planning, n_envs {N_ENVS_OF_MEMORY}", "S"
    if told is None:
        return Figure(name, setting, None, "MB", at_most=100.0, detail="not measured (no /proc/self/status)")
    idle, peak = (number / 1e6 for number in told)
    return Figure(name, setting, peak - idle, "MB", at_most=100.0, detail=f"peak {peak:.0f} MB, idle {idle:.0f} MB")


def figure_of_import(effort: Effort) -> Figure:
    """
    :param effort: How much.
    :return: What ``import sb3_rgrl`` takes beyond ``import stable_baselines3``.
    """
    times = 1e3 * np.array(processes.seconds_of_import(effort.imports))
    spread = Spread.of(times)
    detail = f"{_spread_of(spread, times)} processes"
    return Figure("import beyond SB3's", "package", spread.median, "ms", at_most=150.0, detail=detail)


def figure_of_growth(sizes: tuple[int, ...], times: NDArray[np.float64]) -> Figure:
    """
    :param sizes: Numbers of transitions, ascending.
    :param times: Seconds per step, shape (blocks, sizes).
    :return: How many times longer a step takes with the largest buffer than with the smallest.
    """
    name = f"step, {sizes[-1]:,} / {sizes[0]:,} stored"
    return _ratio(name, "defaults", times[:, [-1, 0]], "largest {}, smallest {}", 1e3, "ms", at_most=1.2)
