"""Reports and exports of the benchmark, on made-up results."""

import csv
import gzip
import json
import math
import re
import sqlite3
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rliable import library, metrics

from sb3_rgrl.benchmark import export, pictures, report, tables
from sb3_rgrl.benchmark.__main__ import main
from sb3_rgrl.benchmark.curves import Curve, curves_of, ordered_variants, overlaid
from sb3_rgrl.benchmark.looks import in_thousands, looks
from sb3_rgrl.benchmark.results import RunInfo, load_results, load_runs, run_folder, write_evaluations, write_run
from sb3_rgrl.benchmark.statistics import Bootstrap, Estimate
from sb3_rgrl.benchmark.summaries import Comparison

QUICK = Bootstrap(n_resamples=50)


def add_run(results, env_id, variant, seed, returns, *, budget=1000, final=None, seconds=10.0, status="finished", **fields):
    """
    :param returns: Mean return of each evaluation, evenly spaced over the budget; two episodes, 1 below and 1 above.
    :param final: Mean return of the final policy; None: that of the last evaluation.
    """
    given = {"versions": {"torch": "2.0"}, "machine": {"cpu": "one"}, "command": "make it", **fields}
    info = RunInfo(
        env_id, variant, variant.partition("-")[0], seed, budget, 4, 2, 4, {"gamma": 0.9}, "zoo", **given, status=status
    )
    rows = []
    for k, value in enumerate(returns, start=1):
        step = budget * k // len(returns)
        shared = (200, 2.0 * seconds * k, seconds * k, 0.5 * k, 100.0 + k)
        rows += [(step, episode, value + episode * 2 - 1, *shared, 0) for episode in range(2)]
    if returns and status == "finished":
        last = returns[-1] if final is None else final
        rows += [(*rows[-1][:1], episode, last + (episode % 2) * 2 - 1, *rows[-1][3:-1], 1) for episode in range(4)]
    info.n_rows = len(rows)
    folder = run_folder(results, env_id, variant, seed)
    write_run(folder, info)
    if rows:
        write_evaluations(folder, rows)


def compare(results, **kwargs) -> Comparison:
    return Comparison(curves_of(load_results(results)), load_runs(results), QUICK, **kwargs)


def summary_of(comparison, env_id, variant):
    (found,) = [each for each in comparison.summaries if (each.env_id, each.variant) == (env_id, variant)]
    return found


def make_results(folder):
    """Two tasks; PPO has ten times the steps, DQN fails and is skipped, random is there on one of them."""
    for seed in range(6):
        add_run(folder, "CartPole-v1", "rgrl", seed, [100, 480 + seed, 490, 495], final=490 + seed)
        add_run(folder, "Pendulum-v1", "rgrl", seed, [-1000, -800, -300, -210], seconds=20.0)
    for seed in range(4):
        add_run(folder, "CartPole-v1", "ppo", seed, [50, 200, 480, 470], budget=10_000, seconds=1.0)
        add_run(folder, "Pendulum-v1", "ppo", seed, [-1100, -700, -150 - 20 * seed, -160], budget=10_000, seconds=1.0)
    add_run(folder, "CartPole-v1", "dqn", 0, [30, 40, 50, 60])
    add_run(folder, "CartPole-v1", "dqn", 1, [30, 40], status="failed", reason="RuntimeError: <too> hot | wet\nsee output.txt")
    add_run(folder, "CartPole-v1", "dqn", 2, [], status="failed", reason="KeyError: 'a'")
    add_run(folder, "Pendulum-v1", "dqn", 0, [], status="skipped", reason="dqn cannot take Box actions")
    add_run(folder, "CartPole-v1", "random", 0, [20, 22, 21, 19])
    return folder


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path / "results")


# Runs as curves


def curve(steps, returns, **kwargs) -> Curve:
    steps = np.array(steps, dtype=float)
    given = {"env_id": "E-v0", "variant": "v", "seed": 0, "status": "finished", "final_returns": np.zeros(0)}
    times = {"wall_seconds": steps / 10, "cpu_seconds": steps / 5, "decision_ms": 1.0, "peak_memory_mib": 1.0}
    return Curve(steps=steps, returns=np.array(returns, dtype=float), **{**given, **times, **kwargs})


def test_curves_hold_the_means_of_all_evaluations(tmp_path):
    add_run(tmp_path, "CartPole-v1", "rgrl", 3, [10, 30, 20, 50], final=44, seconds=7.0)
    (found,) = curves_of(load_results(tmp_path))
    assert (found.env_id, found.variant, found.seed, found.status) == ("CartPole-v1", "rgrl", 3, "finished")
    np.testing.assert_array_equal(found.steps, [250, 500, 750, 1000])
    # The evaluation of the final policy does not replace the one on the way at the same step.
    np.testing.assert_array_equal(found.returns, [10, 30, 20, 50])
    np.testing.assert_array_equal(found.wall_seconds, [7, 14, 21, 28])
    np.testing.assert_array_equal(found.cpu_seconds, [14, 28, 42, 56])
    assert found.final_return == 44
    assert sorted(found.final_returns) == [43, 43, 45, 45]
    assert (found.decision_ms, found.peak_memory_mib) == (2.0, 104.0)


def test_final_evaluation_at_a_step_of_its_own_is_part_of_the_curve(tmp_path):
    add_run(tmp_path, "CartPole-v1", "ppo", 0, [10, 30], final=470)
    frame = load_results(tmp_path)
    frame.loc[frame["final"] == 1, "step"] += 24
    (found,) = curves_of(frame)
    np.testing.assert_array_equal(found.steps, [500, 1000, 1024])
    np.testing.assert_array_equal(found.returns, [10, 30, 470])


def test_reach_is_the_first_evaluation_at_the_threshold_even_if_it_is_lost_again():
    found = curve([10, 20, 30, 40], [0, 5, 9, 2])
    assert found.reach(5) == (True, 20, 2.0, 4.0)
    assert found.reach(5.1) == (True, 30, 3.0, 6.0)
    assert found.reach(10) == (False, 40, 4.0, 8.0)


def test_area_is_the_mean_height_over_the_span():
    found = curve([0, 10, 20], [0, 10, 30])
    assert found.area(0, 20) == pytest.approx((5 * 10 + 20 * 10) / 20)
    # Cut between evaluations: from (5, 5) over (10, 10) to (15, 20)
    assert found.area(5, 15) == pytest.approx((7.5 * 5 + 15 * 5) / 10)
    for since, until in ((0, 21), (-1, 20), (10, 10), (math.nan, 20)):
        assert math.isnan(found.area(since, until))


def test_runs_laid_over_each_other_end_where_they_end():
    laid = overlaid([curve([10, 20, 30], [0, 2, 4]), curve([10, 30], [10, 30]), curve([10, 20], [5, 5], status="failed")])
    np.testing.assert_array_equal(laid.steps, [10, 20, 30])
    np.testing.assert_array_equal(laid.returns, [[0, 10, 5], [2, 20, 5], [4, 30, np.nan]])
    np.testing.assert_allclose(laid.wall_seconds, [1, 2, 3])
    low, high = pictures.limits_of_mean(laid.returns, Bootstrap(2000))
    # Two runs are left at the last step: their resamples have means of 4, 17 and 30.
    assert (low[2], high[2]) == (4, 30)
    assert low[0] < 5 < high[0]


def test_variants_are_in_one_order_everywhere():
    names = {"random", "ppo", "rgrl-cem", "linear-search", "a2c", "rgrl"}
    assert ordered_variants(names) == ["rgrl", "rgrl-cem", "a2c", "ppo", "linear-search", "random"]
    many = looks([f"variant-{k}" for k in range(20)])
    assert len(set(many.values())) == 20


# What they amount to


def test_summary_of_a_task(results):
    comparison = compare(results)
    found = summary_of(comparison, "CartPole-v1", "rgrl")
    np.testing.assert_array_equal(found.finals, [490, 491, 492, 493, 494, 495])
    assert found.final.value == pytest.approx(492.5)
    assert found.normalised.value == pytest.approx((492.5 - 22.2) / (500 - 22.2))
    assert (found.n_reached, found.n_holding, found.n_runs) == (6, 6, 6)
    assert found.steps == (500, 500, 500)
    assert found.wall_seconds.value == 20
    assert found.cpu_seconds.value == 40


def test_final_policy_may_have_lost_what_was_reached(results):
    found = summary_of(compare(results), "CartPole-v1", "ppo")
    assert (found.n_reached, found.n_holding) == (4, 0)
    # Four seeds: no interval
    assert found.steps.value == 7500
    assert math.isnan(found.steps.low)


def test_no_run_reached(results):
    found = summary_of(compare(results), "Pendulum-v1", "rgrl")
    assert (found.n_reached, found.n_holding) == (0, 0)
    assert found.steps.value == math.inf
    assert tables.median(found.steps).text == "never [1,000, never]"
    assert found.steps.low == 1000


def test_failed_runs_count_as_not_reached_and_have_no_final_return(results):
    found = summary_of(compare(results), "CartPole-v1", "dqn")
    assert found.n_runs == 3
    assert found.finals.tolist() == [60]
    # One that ended, one that crashed on the way, one that crashed before it was evaluated
    assert [reach.steps for reach in found.reaches] == [1000, 1000, 0]
    assert found.n_reached == 0


def test_what_counts_in_a_summary(tmp_path):
    add_run(tmp_path, "CartPole-v1", "rgrl", 0, [100, 300], final=475)
    add_run(tmp_path, "CartPole-v1", "rgrl", 1, [400, 500], final=474.9)
    # It has as many steps as the others, but crashed in the evaluation at the end.
    add_run(tmp_path, "CartPole-v1", "rgrl", 2, [0, 0], status="failed")
    add_run(tmp_path, "CartPole-v1", "rgrl", 3, [], status="skipped")
    found = summary_of(compare(tmp_path), "CartPole-v1", "rgrl")
    assert found.area.value == pytest.approx((200 + 450) / 2)
    assert (found.n_reached, found.n_holding, found.n_runs) == (1, 1, 3)


def test_seconds_of_a_slow_run_that_reached_do_not_hide_fast_runs_that_never_did(tmp_path):
    add_run(tmp_path, "CartPole-v1", "rgrl", 0, [0, 0, 0, 500], seconds=100.0)
    for seed in (1, 2):
        add_run(tmp_path, "CartPole-v1", "rgrl", seed, [0, 0, 0, 0], seconds=1.0)
    found = summary_of(compare(tmp_path), "CartPole-v1", "rgrl")
    assert found.steps.value == found.wall_seconds.value == found.cpu_seconds.value == math.inf


def test_area_spans_what_all_variants_have(results):
    comparison = compare(results)
    # PPO begins at 2,500, after RGRL's end at 1,000: it is left aside.
    assert comparison.area_span("CartPole-v1") == (250, 1000)
    assert math.isnan(summary_of(comparison, "CartPole-v1", "ppo").area.value)
    assert summary_of(comparison, "CartPole-v1", "random").area.value == pytest.approx((21 + 21.5 + 20) / 3)


def test_groups_compare_variants_on_the_tasks_that_they_share(results):
    comparison = compare(results)
    both, cartpole = comparison.groups
    assert set(both.env_ids) == {"CartPole-v1", "Pendulum-v1"}
    assert list(both.scores) == ["rgrl", "ppo"]
    assert (list(cartpole.env_ids), list(cartpole.scores)) == (["CartPole-v1"], ["rgrl", "dqn", "ppo", "random"])
    assert comparison.improvements(cartpole)["rgrl", "ppo"].value == 1.0
    assert comparison.improvements(both)["rgrl", "ppo"].value == 0.5


def test_random_actions_of_a_task_without_a_reference_are_those_that_were_run(tmp_path):
    add_run(tmp_path, "Mine-v0", "random", 0, [5, 5], final=7)
    add_run(tmp_path, "Mine-v0", "rgrl", 0, [5, 10], final=12)
    comparison = compare(tmp_path)
    assert comparison.reference("Mine-v0").random == 7
    assert comparison.groups == []
    assert summary_of(comparison, "Mine-v0", "rgrl").reaches == []


# The report


class Page(HTMLParser):
    """Tables of a page, and what it would load."""

    def __init__(self, text: str):
        super().__init__()
        self.loaded, self.open, self.tables = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    results = make_results(folder / "results")
    assert main(["report", "--results", str(results), "--output", str(folder / "report"), "--resamples", "50"]) == 0
    return folder / "report"


def tables_of(results, *arguments) -> list[list[list[str]]]:
    output = results.parent / "tables"
    command = ["report", "--no-pictures", "--results", str(results), "--output", str(output), "--resamples", "50"]
    assert main([*command, *arguments]) == 0
    return Page((output / "report.html").read_text()).tables


def test_page_loads_nothing_and_holds_every_table(made):
    text = (made / "report.html").read_text()
    assert re.search("https?://|//[a-z]+[.]|@import|fetch[(]", text) is None
    page = Page(text)
    assert len(page.loaded) == 1 + 6
    assert all(value.startswith("data:") for value in page.loaded)
    final, speed, *_, seeds, missing = page.tables
    assert [row[:3] for row in final[1:4]] == [
        ["CartPole-v1", "rgrl", "6/6"],
        ["CartPole-v1", "dqn", "1/3"],
        ["CartPole-v1", "ppo", "4/4"],
    ]
    assert speed[1][3:6] == ["6/6", "6/6", "500 [500, 500]"]
    assert len(seeds) == 1 + 6 + 2 + 4 + 1 + 6 + 4
    assert ["CartPole-v1", "dqn", "1", "failed", "RuntimeError: <too> hot | wet see output.txt"] in missing
    assert ["Pendulum-v1", "dqn", "0", "skipped", "dqn cannot take Box actions"] in missing
    assert "<too>" not in text
    for expected in ("torch=2.0", "cpu=one", "make it", "gamma=0.9", "2 of 25 runs failed"):
        assert expected in text


def test_markdown_has_the_same_tables(made):
    text = (made / "report.md").read_text()
    assert "| CartPole-v1 | rgrl | 6/6 | 1,000 | 492 [" in text
    assert "RuntimeError: <too> hot \\| wet see output.txt |" in text
    assert "| CartPole-v1 | rgrl | 0, 1, 2, 3, 4, 5 | 490, 491, 492, 493, 494, 495 | 500, 500, 500, 500, 500, 500 |" in text
    for line in re.findall(r"\n(\|.*)", text):
        assert len(re.findall(r"(?<!\\)\|", line)) > 3
    for name in re.findall(r"\]\((.*?)\)", text):
        assert (made / name).is_file()


def test_pictures_are_png_and_svg(made):
    names = {"curves-steps", "curves-seconds", "steps-to-threshold", "steps-against-seconds", "profiles", "scores"}
    found = sorted((made / "pictures").iterdir())
    assert {path.stem for path in found} == names
    assert all(path.read_bytes().startswith({".png": b"\x89PNG", ".svg": b"<?xml"}[path.suffix]) for path in found)
    assert len(found) == 12


def test_rows_of_all_runs_are_in_one_file(made, results):
    rows = pd.read_csv(made / "evaluations.csv.gz")
    pd.testing.assert_frame_equal(rows, load_results(results), check_dtype=False)
    with (made / "seeds.csv").open() as file:
        seeds = list(csv.DictReader(file))
    assert [float(row["final return"]) for row in seeds[:6]] == [490, 491, 492, 493, 494, 495]
    assert seeds[6]["reached at step"] == "nan"


def test_one_seed_of_one_algorithm(tmp_path):
    add_run(tmp_path / "r", "CartPole-v1", "rgrl", 0, [100, 480])
    assert main(["report", "--results", str(tmp_path / "r"), "--output", str(tmp_path / "o")]) == 0
    final, speed, seeds = Page((tmp_path / "o/report.html").read_text()).tables
    assert final[1] == ["CartPole-v1", "rgrl", "1/1", "1,000", "480", "480", "480", "0.958", "290"]
    assert speed[1][5:8] == ["1,000", "20", "40"]
    assert len(seeds) == 2
    # The same results make the same files.
    assert main(["report", "--results", str(tmp_path / "r"), "--output", str(tmp_path / "again")]) == 0
    files = [path for path in (tmp_path / "o").rglob("*") if path.is_file()]
    assert len(files) == 4 + 12
    for path in files:
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "o")).read_bytes(), path.name


def test_unknown_task_without_any_reference(tmp_path):
    add_run(tmp_path / "r", "Mine-v0", "rgrl", 0, [1, 2])
    assert main(["report", "--results", str(tmp_path / "r"), "--output", str(tmp_path / "o")]) == 0
    assert {path.stem for path in (tmp_path / "o/pictures").iterdir()} == {"curves-steps", "curves-seconds"}
    final, speed, _ = tables_of(tmp_path / "r")
    assert final[1][7] == tables.NOTHING
    assert speed[1][2:6] == [tables.NOTHING] * 4
    final, speed, _ = tables_of(tmp_path / "r", "--reference", "Mine-v0", "0", "4", "2")
    assert final[1][7] == "0.5"
    assert speed[1][2:6] == ["2", "1/1", "1/1", "1,000"]


def test_missing_finals_are_told_from_bad_ones(tmp_path):
    add_run(tmp_path / "r", "CartPole-v1", "rgrl", 0, [100, 480], status="running")
    final, speed, seeds, missing = tables_of(tmp_path / "r")
    assert final[1][2:6] == ["0/1", "1,000", tables.NOTHING, tables.NOTHING]
    assert speed[1][3:5] == ["1/1", "0/0"]
    assert seeds[1][3:6] == ["running", "1,000", tables.NOTHING]
    assert missing[1][-1] == "not finished yet, or interrupted"


def test_selection(results):
    final = tables_of(results, "--env", "Pendulum-v1", "--variant", "ppo")[0]
    assert [row[:2] for row in final[1:]] == [["Pendulum-v1", "ppo"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Cartpole-v1"], "--env Cartpole-v1: no such runs in .*; there are CartPole-v1, Pendulum-v1"),
        (["--variant", "sac"], "--variant sac: no such runs in .*; there are dqn, ppo, random, rgrl"),
        (["--env", "Pendulum-v1", "--variant", "dqn"], "Pendulum-v1/dqn/seed-0: skipped dqn cannot take Box actions"),
        (["--results", "nowhere"], "nowhere is no folder"),
        (["--reference", "Mine-v0", "a", "1", "2"], "--reference Mine-v0 a 1 2"),
    ],
)
@pytest.mark.parametrize("command", [["report"], ["export", "--format", "rliable"]])
def test_what_cannot_be_done_is_said(command, arguments, message, results, tmp_path, capsys):
    output = tmp_path / "o"
    assert main([*command, "--results", str(results), "--output", str(output), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_versions_are_mixed_only_when_asked_for(results, tmp_path, capsys):
    add_run(results, "CartPole-v1", "ppo", 7, [1, 2, 3, 4], budget=10_000, versions={"torch": "2.1"})
    assert main(["report", "--results", str(results), "--output", str(tmp_path / "o")]) == 2
    assert "torch 2.0 (" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    # The others are not mixed.
    tables_of(results, "--variant", "rgrl")
    tables_of(results, "--mix-versions")
    text = (tmp_path / "tables/report.html").read_text()
    assert "Results of different versions stand side by side: torch 2.0, 2.1." in text


def test_damaged_runs_are_named(results, tmp_path, capsys):
    path = run_folder(results, "CartPole-v1", "rgrl", 2) / "evaluations.csv.gz"
    path.write_bytes(path.read_bytes()[:60])
    assert tables_of(results)[0][1][:3] == ["CartPole-v1", "rgrl", "5/5"]
    assert capsys.readouterr().err.count(f"Left out: {path}") == 1
    assert (tmp_path / "tables/report.html").read_text().count(f"Left out: {path} cannot be read") == 1


def test_cautions(tmp_path):
    add_run(tmp_path, "CartPole-v1", "rgrl", 0, [1, 2])
    add_run(tmp_path, "CartPole-v1", "rgrl", 1, [1, 2], budget=2000, machine={"cpu": "two"})
    notes = " ".join(report.cautions(compare(tmp_path)))
    assert "different machines" in notes
    assert "rgrl on CartPole-v1 has runs of different budgets" in notes
    assert "as few as 2 finished seeds" in notes
    assert tables.final_returns(compare(tmp_path)).rows[0][3].text == "1,000 to 2,000"


# Cells and pictures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Estimate(3.0), "3"),
        (Estimate(12345.6, 1000.0, 20000.0), "12,346 [1,000, 20,000]"),
        (Estimate(5.0, 4.0, math.inf), "5 [4, never]"),
        (Estimate(math.inf, 7.0, math.inf), "never [7, never]"),
        (Estimate(math.nan), tables.NOTHING),
    ],
)
def test_text_of_a_median(value, text):
    assert tables.median(value).text == text


def test_front_of_the_points_that_no_other_beats():
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.0, 2.5), (3.0, 3.0), (1.0, 4.0)]
    assert pictures.pareto_front(points) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert pictures.pareto_front([]) == []


@pytest.mark.parametrize(("scale", "expected"), [("auto", "log"), ("linear", "linear"), ("log", "log")])
def test_steps_are_logarithmic_where_budgets_differ(results, scale, expected):
    picture = pictures.draw_curves(compare(results), "steps", scale)
    assert [axes.get_xscale() for axes in picture.axes] == [expected] * 2


def test_curves_of_every_seed_are_drawn(results):
    comparison = compare(results)
    axes = pictures.draw_curves(comparison, "steps", "auto").axes[0]
    thin = [line for line in axes.lines if line.get_linewidth() < 1 and len(line.get_xdata()) > 1 and line.get_alpha()]
    assert len(thin) == 6 + 2 + 4 + 1
    means = [line for line in axes.lines if line.get_linewidth() > 1]
    np.testing.assert_allclose(means[0].get_ydata(), [100, 482.5, 490, 495])


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (20, "20"), (1500, "1.5k"), (2e6, "2M"), (-200, "-200")])
def test_ticks_in_thousands(value, text):
    assert in_thousands(value) == text


# Exports


def test_rliable_reads_its_export(results, tmp_path):
    assert main(["export", "--format", "rliable", "--results", str(results), "--output", str(tmp_path / "o")]) == 0
    scores = dict(np.load(tmp_path / "o/scores.npz"))
    assert {name: array.shape for name, array in scores.items()} == {"rgrl": (6, 2), "ppo": (4, 2)}
    points, _ = library.get_interval_estimates(scores, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=20)
    comparison = compare(results)
    for name in scores:
        assert points[name][0] == pytest.approx(comparison.aggregate(comparison.groups[0], name).value)
    index = json.loads((tmp_path / "o/index.json").read_text())
    place = index["tasks"].index("CartPole-v1")
    assert index["seeds"]["rgrl"][place] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.load(tmp_path / "o/returns.npz")["rgrl"][:, place], [490, 491, 492, 493, 494, 495])
    curves = np.load(tmp_path / "o/curves.npz")["rgrl"]
    assert curves.shape == (6, 2, 4)
    assert index["steps"]["rgrl"][place] == [250, 500, 750, 1000]
    np.testing.assert_allclose(curves[0, place], (np.array([100, 480, 490, 495]) - 22.2) / (500 - 22.2))


def test_rliable_needs_a_rectangle(results, tmp_path):
    add_run(results, "CartPole-v1", "rgrl", 10, [1, 2, 3, 4])
    left_out = export.write_rliable(tmp_path / "o", compare(results))
    assert "seeds of rgrl after the first 6 (CartPole-v1 has 7)" in left_out
    assert "dqn, without finished runs on Pendulum-v1" in left_out
    assert np.load(tmp_path / "o/scores.npz")["rgrl"].shape == (6, 2)


def test_export_without_a_scale_says_what_to_give(tmp_path, capsys):
    add_run(tmp_path / "r", "Mine-v0", "rgrl", 0, [1, 2])
    assert main(["export", "--format", "rliable", "--results", str(tmp_path / "r"), "--output", str(tmp_path / "o")]) == 2
    assert "--reference ENV RANDOM BEST THRESHOLD" in capsys.readouterr().err


def test_openrlbenchmark_layout(results, tmp_path, capsys):
    output = tmp_path / "o"
    for _ in range(2):
        assert main(["export", "--format", "openrlbenchmark", "--results", str(results), "--output", str(output)]) == 0
    assert "Left out: CartPole-v1/dqn/seed-1, failed" in capsys.readouterr().out
    folder = output / "sb3-rgrl" / "benchmark"
    connection = sqlite3.connect(folder / "offline.sqlite")
    # How its command looks for runs
    query = (
        "SELECT id, state, path FROM offlinerun WHERE project = 'benchmark' AND entity = 'sb3-rgrl' "
        "AND json_extract(config, '$.env_id') = 'CartPole-v1' AND json_extract(config, '$.exp_name') = 'rgrl'"
    )
    found = connection.execute(query).fetchall()
    assert connection.execute("SELECT count(*) FROM offlinerun").fetchone() == (12 + 8 + 1 + 1,)
    connection.close()
    assert len(found) == 6
    run_id, state, path = found[0]
    assert (state, json.loads(path)) == ("finished", ["sb3-rgrl", "benchmark", run_id])
    run = json.loads((folder / run_id / "run.json").read_text())
    assert {"id", "name", "state", "url", "project", "entity", "config", "tags", "path", "user"} <= set(run)
    assert run["config"]["seed"] == 0
    frame = pd.read_csv(folder / run_id / "run_df.csv")
    assert frame["global_step"].is_monotonic_increasing
    # Its table is the mean of the last rows, here those of the final policy.
    assert frame["charts/episodic_return"].iloc[-4:].mean() == 490
    assert frame["_runtime"].iloc[-1] == 40


def test_raw_file_is_compressed_and_has_no_time_in_it(made):
    content = (made / "evaluations.csv.gz").read_bytes()
    assert content[4:8] == bytes(4)
    assert gzip.decompress(content).startswith(b"env_id,variant,seed,status,step,")
