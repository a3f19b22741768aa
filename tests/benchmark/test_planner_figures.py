"""The benchmark of speed and memory: what it compares does the same work, and what it measures is written down."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
import yaml

from sb3_rgrl import RGRL
from sb3_rgrl.benchmark import agents, baselines, figures, growth, planner, processes, timing
from sb3_rgrl.benchmark.__main__ import main, with_one_thread
from sb3_rgrl.benchmark.figures import Figure
from sb3_rgrl.judges import Case, ClosedFormJudges, closed_form_of
from sb3_rgrl.losses import WindowErrors

BASELINES = {"S": baselines.BatchedMlpPlanner, "R": baselines.LoopedGruPlanner}


@pytest.fixture(autouse=True)
def one_thread():
    with timing.one_torch_thread():
        yield


def make_agent(setting: str, **changes) -> RGRL:
    # Half of the units are missing: the shipped rate would hardly ever leave one out.
    dropout = 0.5 if setting == "S" else 0.0
    return agents.make_agent(agents.SETTINGS[setting], **{"dropout": dropout, **changes})


# Equal work


@pytest.mark.parametrize("return_weight", [1.0, 0.0])
@pytest.mark.parametrize("setting", ["S", "R"])
def test_baseline_tells_the_planners_error_and_gradient(setting, return_weight):
    kwargs = {**agents.SETTINGS[setting]["policy_kwargs"], "return_weight": return_weight}
    policy = make_agent(setting, policy_kwargs=kwargs).policy
    rng = th.Generator().manual_seed(3)
    # The second state is far out, where imagined states are clamped.
    states = th.randn(2, 4, generator=rng) * th.tensor([[1.0], [20.0]])
    plans = th.randn(5, 8, 15, 2, generator=rng)
    draws = [np.random.default_rng(1) for _ in range(2)]
    case = Case(states, policy.goal(), policy.units(), draws[0])
    judges = ClosedFormJudges(closed_form_of(policy.ensemble, policy.action_space), policy.ensemble, policy.codec, case)
    error, gradient = judges.gradient(plans.numpy(), None)

    leaf = plans.clone().requires_grad_()
    plain = BASELINES[setting](policy, states).error(leaf, draws[1])
    (plain_gradient,) = th.autograd.grad(plain.sum(), leaf)
    for fast, slow in ((error, plain.detach().numpy()), (gradient, plain_gradient.numpy())):
        assert fast.dtype == slow.dtype == np.float32
        np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-5 * np.abs(slow).max())


@pytest.mark.parametrize("setting", ["S", "R"])
def test_iterations_of_both_sides_end_at_the_same_plans(setting):
    model = make_agent(setting)
    states, plans = planner.case_of(model)
    before = plans.clone()
    fast = planner.iterations_of_planner(model.policy, states, plans, 4)().preactivated
    slow = planner.iterations_of_baseline(BASELINES[setting](model.policy, states), plans, 4)()
    np.testing.assert_allclose(fast, slow.numpy(), rtol=1e-3, atol=1e-3)
    assert np.abs(fast - before.numpy()).max() > 0.1
    assert th.equal(plans, before), "the next measurement starts from them"


def products_in(call, monkeypatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the matrices that are multiplied."""
    shapes, original = [], th.bmm

    def bmm(a, b, **kwargs):
        shapes.append((tuple(a.shape), tuple(b.shape)))
        return original(a, b, **kwargs)

    monkeypatch.setattr(th, "bmm", bmm)
    call()
    return sorted(shapes)


def test_products_of_planning_are_those_of_an_iteration(monkeypatch):
    policy = make_agent("S").policy
    layers = [(14, 64), (64, 64), (64, 16)]
    forward = [((5, 4, n_in), (5, n_in, n_out)) for n_in, n_out in layers]
    back = [((5, 4, n_out), (5, n_out, n_in)) for n_in, n_out in layers]
    found = products_in(baselines.products_of_planning(policy, 4), monkeypatch)
    assert found == sorted(3 * (forward + back))


def test_products_of_learning_are_those_of_an_update(monkeypatch):
    model = agents.make_agent(planner.LEARNING)
    found = products_in(baselines.products_of_learning(model.policy, 128), monkeypatch)
    layers = [(14, 64), (64, 64), (64, 16)]
    forward = [((5, 128, n_in), (5, n_in, n_out)) for n_in, n_out in layers]
    to_inputs = [((5, 128, n_out), (5, n_out, n_in)) for n_in, n_out in layers]
    to_weights = [((5, n_in, 128), (5, 128, n_out)) for n_in, n_out in layers]
    # Data needs no gradient: only in later windows the state is the member's own.
    assert found == sorted(3 * (forward + to_weights + to_inputs[1:]) + 2 * to_inputs[:1])


def test_updates_learn_from_three_windows_in_a_row(monkeypatch):
    seen: list[WindowErrors] = []
    original = planner.EnsemblePolicy.window_errors

    def window_errors(self, windows, thin=True):
        errors = original(self, windows, thin)
        if len(windows.indices[0]) == 128 and thin:
            seen.append(errors)
            assert windows.rewards.shape == (5, 128, 15)
            assert windows.terminated.shape == (5, 128, 3)
        return errors

    monkeypatch.setattr(planner.EnsemblePolicy, "window_errors", window_errors)
    monkeypatch.setitem(planner.LEARNING, "dropout", 0.0)
    without, with_step = planner.updates_against_products(planner.QUICK, agents.make_agent(planner.LEARNING), "S")
    # The last two rounds: weights change after the update alone, whose optimizer makes its step.
    gradients, update, gradients_again, update_again = (errors.losses for errors in seen[-4:])
    assert th.equal(gradients, update)
    assert not th.equal(update, gradients_again)
    assert th.equal(gradients_again, update_again)
    assert without.met in ("yes", "no")
    assert with_step.target == "<= 4"


# Who is measured


def test_settings_are_those_that_the_targets_are_about():
    small, large = (make_agent(name) for name in ("S", "L"))
    for model, n_candidates in ((small, 20), (large, 320)):
        assert (model.ensemble_size, model.plan_horizon, model.sequence_length) == (5, 15, 5)
        assert model.n_candidates == n_candidates
        assert [tuple(weight.shape) for weight in model.policy.ensemble.weights] == [(5, 14, 64), (5, 64, 64), (5, 64, 16)]
    assert small.policy.scales.knows_returns
    assert small._n_updates > 0
    recurrent = make_agent("R")
    assert recurrent.policy.ensemble.kind == "gru"
    assert recurrent.policy.net_arch == [64]


def test_shipped_setting_is_what_the_zoo_hands_over(tmp_path, monkeypatch):
    entry = {"n_timesteps": 5e3, "policy": "MlpEnsemblePolicy", "gamma": 0.9, "normalize": True}
    path = tmp_path / "rgrl.yml"
    path.write_text(yaml.safe_dump({"CartPole-v1": {**entry, "policy_kwargs": "dict(activation_fn=nn.Tanh)"}}))
    monkeypatch.setattr(agents, "default_config_path", lambda: path)
    setting = agents.shipped_setting()
    assert setting == {"policy": "MlpEnsemblePolicy", "gamma": 0.9, "policy_kwargs": {"activation_fn": th.nn.Tanh}}


def test_decisions_start_from_the_last_plans():
    model = make_agent("S")
    handed = []
    model.predict = lambda obs, state, starts, deterministic: (handed.append((obs, state)), (len(handed),))
    decide = agents.Decider(model, 3)
    for _ in range(3):
        decide()
    assert [state for _, state in handed] == [None, (1,), (2,)]
    assert all(obs.shape == (3, 4) for obs, _ in handed)
    assert not np.array_equal(handed[0][0], handed[1][0])


# Time


def test_sides_take_turns_after_a_warm_up():
    calls: list[str] = []
    times = timing.in_turns([lambda: calls.append("a"), lambda: calls.append("b")], seconds=0.0, least=4, warm_up=2)
    assert calls == ["a", "b"] * 6
    assert times.shape == (4, 2)


def test_measuring_stops_in_time():
    assert len(timing.in_turns([lambda: None], seconds=60.0, most=7)) == 7


def test_ratio_is_that_of_neighbours():
    # The machine is three times slower in the second half: the ratio of neighbours does not see it.
    times = np.array([[2e-3, 1e-3], [2e-3, 1e-3], [6e-3, 3e-3], [6e-3, 3e-3], [6e-3, 2e-3]])
    figure = planner._ratio("name", "S", times, "{} against {}", 1e3, "ms", at_most=2.0)
    assert figure.value == pytest.approx(2.0)
    assert figure.met == "yes"
    assert figure.detail == "quartiles 2 to 2 of 5; 6 ms against 2 ms"


def test_threads_of_torch_are_given_back():
    before = th.get_num_threads()
    with timing.one_torch_thread():
        assert th.get_num_threads() == 1
    assert th.get_num_threads() == before


def test_process_begins_anew_with_one_thread():
    changed = with_one_thread({"PATH": "x", "OMP_NUM_THREADS": "4"})
    assert changed is not None
    assert changed == {"PATH": "x", **dict.fromkeys(timing.THREAD_VARIABLES, "1")}
    assert with_one_thread(changed) is None


def test_command_runs_with_one_thread_whatever_it_was_given():
    code = (
        "import os, runpy, sys; sys.argv = ['x', 'planner', '--help'];"
        "os.execve = lambda path, words, env: (print('ANEW', env['OPENBLAS_NUM_THREADS'], words[1:]), sys.exit(3));"
        "runpy.run_module('sb3_rgrl.benchmark', run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("ANEW 1 ['-c', ")


# Memory


def test_memory_is_that_of_the_process_and_not_of_its_parent():
    held = np.ones(600 * 2**17)  # 600 MiB, which ru_maxrss of a child would begin with
    told = processes.memory_of_planning(4)
    assert held[0] == 1.0
    if told is None:
        assert not Path("/proc/self/status").exists()
        return
    idle, peak = told
    assert 50e6 < idle <= peak < held.nbytes


# Growth


def test_buffer_is_filled_as_asked():
    model = growth.agent_with(900)
    buffer = model.replay_buffer
    assert buffer.size() == 900
    n_windows = buffer.n_windows
    assert n_windows > 800
    assert len(buffer.pop_new_windows()) == 0
    for member in range(2):
        probabilities = buffer.probabilities(member)
        assert np.count_nonzero(probabilities) >= n_windows - 240
        assert len(np.unique(probabilities)) > 600, "priorities differ, so the tree has to search"
    updates, steps = model._n_updates, model.num_timesteps
    model.learn(growth.EPISODE_STEPS, log_interval=None, reset_num_timesteps=False)
    assert model.num_timesteps == steps + growth.EPISODE_STEPS
    assert model._n_updates == updates + growth.EPISODE_STEPS
    assert buffer.size() == 900 + growth.EPISODE_STEPS


def test_growth_is_relative_to_the_smallest():
    times = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 8.0]])
    np.testing.assert_array_equal(growth.ratios_to_smallest(times), [[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])
    figure = planner.figure_of_growth((10, 100, 1000), times)
    assert figure.value == pytest.approx(3.5)
    assert figure.met == "no"
    assert "1,000" in figure.name


# Figures


@pytest.mark.parametrize(
    ("value", "target", "text", "met", "margin"),
    [
        (6.0, {"at_least": 5.0}, ">= 5", "yes", 1.2),
        (4.0, {"at_least": 5.0}, ">= 5", "no", 0.8),
        (2.0, {"at_most": 2.5}, "<= 2.5", "yes", 1.25),
        (5.0, {"at_most": 2.5}, "<= 2.5", "no", 0.5),
        (5.0, {}, "", "", None),
        (None, {"at_most": 2.5}, "<= 2.5", "", None),
    ],
)
def test_figures_know_whether_they_meet_their_target(value, target, text, met, margin):
    figure = Figure("name", "S", value, "x", **target)
    assert (figure.target, figure.met) == (text, met)
    assert figure.margin == (None if margin is None else pytest.approx(margin))


def test_gpu_is_named_or_missed(monkeypatch):
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    (figure,) = planner.decisions_on_gpu(planner.QUICK)
    assert figure.detail == "GPU: not measured (no CUDA device)"
    assert figure.value is None
    # The same code, on what is there.
    found = list(planner.decisions_on_gpu(planner.QUICK, device="cpu", n_envs=(1, 3)))
    assert [figure.name for figure in found] == ["decisions/s on GPU, n_envs 1", "decisions/s on GPU, n_envs 3"]
    assert all(figure.value > 1.0 and "cpu" in figure.detail for figure in found)


# The command


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "out put"
    command = [sys.executable, "-m", "sb3_rgrl.benchmark", "planner", "--quick", "--out", str(folder)]
    environment = {**os.environ, **dict.fromkeys(timing.THREAD_VARIABLES, "1")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no warnings"
    assert "GPU: not measured (no CUDA device)" in done.stdout or th.cuda.is_available()
    return folder


def test_command_writes_every_figure(quick_run):
    with (quick_run / "data" / "planner.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == figures.COLUMNS == ("name", "setting", "value", "unit", "target", "met", "detail")
    targets = [(row["setting"], row["unit"], row["target"]) for row in rows if row["target"]]
    assert targets == [
        ("S", "x", ">= 5"),
        ("L", "x", "<= 2.5"),
        ("R", "x", ">= 5"),
        ("shipped", "ms", "<= 1.5"),
        ("shipped", "ms", "<= 1.5"),
        ("shipped", "x", "<= 10"),
        ("S", "x", ">= 25"),
        ("shipped", "x", ">= 25"),
        ("S, 128 x 3 x 5", "x", "<= 4"),
        ("S, 128 x 3 x 5", "x", "<= 4"),
        ("S", "MB", "<= 100"),
        ("package", "ms", "<= 150"),
        ("defaults", "x", "<= 1.2"),
    ]
    for row in rows:
        if row["target"] and row["value"]:
            sign, limit = row["target"].split()
            value = float(row["value"])
            assert value > 0
            # What is written is rounded.
            if abs(value - float(limit)) > 0.01 * float(limit):
                assert row["met"] == ("yes" if (value > float(limit)) == (sign == ">=") else "no")
    assert any("GPU" in row["name"] for row in rows)


def test_command_writes_growth_conditions_and_pictures(quick_run):
    with (quick_run / "data" / "growth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == growth.COLUMNS
    assert [int(row["transitions"]) for row in rows] == [1_000, 10_000]
    assert all(0.1 < float(row["milliseconds_per_step"]) < 1000.0 for row in rows)
    assert float(rows[0]["ratio_to_smallest"]) == 1.0
    about = json.loads((quick_run / "data" / "planner.json").read_text())
    assert about["command"] == f"python -m sb3_rgrl.benchmark planner --quick --out '{quick_run}'"
    assert about["quick"] is True
    assert about["torch_threads"] == 1
    assert about["cpu"]
    assert {"torch", "numpy", "sb3-rgrl"} <= set(about["versions"])
    for name in ("planner.png", "growth.png"):
        assert (quick_run / "images" / name).read_bytes().startswith(b"\x89PNG")


def test_folder_that_cannot_be_made_is_told_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"Cannot make the folder .* Choose another --out"):
        main(["planner", "--quick", "--out", str(tmp_path / "file")])


@pytest.mark.parametrize("arguments", [[], ["planer"], ["planner", "--sizes", "3"]])
def test_wrong_commands_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m sb3_rgrl.benchmark" in capsys.readouterr().err
