"""The experiment about the size of the ensemble: what differs between runs, and what the picture and the table show."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.test_experiments import EXAMPLES, HYPERPARAMS, PROTOCOL, SMALL, VERSIONS, write_synthetic

sys.path.append(str(EXAMPLES))

import ensemble_size
import experiments
from experiments import Experiment

RUN = ["run", "--steps", "120", "--evaluations", "3", "--eval-episodes", "2", "--final-episodes", "3", "--jobs", "1"]


def plan(members=(1, 2), seeds=(0,), **changes):
    return ensemble_size.plan_runs("CartPole-v1", members, seeds, PROTOCOL, HYPERPARAMS, changes)


def test_runs_differ_only_in_size_and_seed():
    runs = plan(ensemble_size.MEMBERS, (3, 4))
    assert [run.name for run in runs[:4]] == [f"CartPole-v1-m{m}-seed3" for m in (1, 2, 5, 10)]
    assert [run.settings["seed"] for run in runs] == [3] * 4 + [4] * 4
    rest = [{k: v for k, v in run.settings.items() if k not in ensemble_size.VARIED} for run in runs]
    assert all(settings == rest[0] for settings in rest)
    assert rest[0]["hyperparams"]["n_candidates"] == 50
    assert "ensemble_size" not in rest[0]["hyperparams"]


@pytest.mark.parametrize("size", [1, 2])
def test_agent_has_that_size(size, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(ensemble_size, "run_one", lambda settings, write_row: made.append(settings) or {})
    (run,) = plan([size])
    ensemble_size.one_run(run.settings, print)
    assert made[0]["hyperparams"]["ensemble_size"] == size
    assert made[0]["hyperparams"]["gamma"] == 0.98


def test_run_and_plot_on_a_tiny_budget(tmp_path, capsys):
    """The literal commands; a second `run` finds all finished."""
    changes = [f"{name}={value}" for name, value in SMALL.items()]
    words = [*RUN, "--seeds", "1", "--members", "1", "2", "--out", str(tmp_path / "r"), "--set", *changes]
    assert ensemble_size.main(words) == 0
    assert ensemble_size.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 runs are finished, 0 to make, 1 at a time"
    results = experiments.read_results(Experiment(tmp_path / "r", ensemble_size.COLUMNS, ensemble_size.one_run))
    for result in results:
        assert result.column("steps", phase="curve").tolist() == [40, 40, 80, 80, 120, 120]
        assert len(result.column("return", phase="final")) == 3
    image, table = tmp_path / "p" / "m.png", tmp_path / "pages" / "m.md"
    words = ["plot", "--out", tmp_path / "r", "--image", image, "--table", table]
    assert ensemble_size.main([*map(str, words)]) == 0
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert "(../p/m.png)" in table.read_text()


FINALS = {1: [100.0, 120.0, 90.0], 2: [200.0, 230.0, 260.0], 10: [500.0, 500.0, 500.0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Synthetic runs whose evaluations are a quarter, a half and the whole of their final return."""
    for run in plan(list(FINALS), range(3)):
        final = FINALS[run.settings["ensemble_size"]][run.settings["seed"]]
        rows = [("curve", 40 * (i + 1), k, share * final + off, 0.1) for i, share in enumerate((0.25, 0.5, 1.0))
                for k, off in enumerate((-1.0, 1.0))]  # fmt: skip
        rows += [("final", 120, k, final + off, 0.2) for k, off in enumerate((-2.0, 2.0, 0.0))]
        write_synthetic(tmp_path / "r", ensemble_size.COLUMNS, run.name, run.settings, rows)
        sidecar = tmp_path / "r" / f"{run.name}.json"
        sidecar.write_text(sidecar.read_text()[:-1] + ', "seconds": 90}')
    return tmp_path / "r"


def found_in(folder):
    return ensemble_size.by_size(experiments.read_results(Experiment(folder, ensemble_size.COLUMNS, ensemble_size.one_run)))


def test_table_has_the_right_intervals(folder):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ensemble_size.table_of(found_in(folder)).splitlines()]
    assert [row[0] for row in rows[2:]] == ["1", "2", "10"]
    for row in rows[2:4]:
        finals = np.array(FINALS[int(row[0])])
        low, high = stats.ttest_1samp(finals, 0.0).confidence_interval()
        assert row[1] == f"{finals.mean():.1f} ({low:.1f} .. {high:.1f})"
        assert row[2] == ", ".join(f"{value:.1f}" for value in finals)
        share = 1.75 / 3
        assert row[3] == f"{share * finals.mean():.1f} ({share * low:.1f} .. {share * high:.1f})"
        assert row[4] == "1.5"
    assert rows[4][1] == "500.0 (500.0 .. 500.0)"


def test_picture_shows_every_seed_and_the_mean(folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ensemble_size.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    ensemble_size.draw(found_in(folder), tmp_path / "figure.png")
    curves, finals = drawn[0].axes
    thick = {line.get_label(): line for line in curves.lines if line.get_linewidth() > 2}
    assert list(thick) == ["m = 1 (3 seeds)", "m = 2 (3 seeds)", "m = 10 (3 seeds)"]
    np.testing.assert_allclose(thick["m = 2 (3 seeds)"].get_xdata(), [40, 80, 120])
    np.testing.assert_allclose(thick["m = 2 (3 seeds)"].get_ydata(), [57.5, 115, 230])
    thin = [list(line.get_ydata()) for line in curves.lines if line.get_linewidth() < 1]
    assert len(thin) == 9
    assert thin[0] == [25, 50, 100]
    dots = [points.get_offsets()[:, 1].tolist() for points in finals.collections if len(points.get_offsets()) == 3]
    assert dots == list(FINALS.values())
    assert [label.get_text() for label in finals.get_xticklabels()] == ["m = 1", "m = 2", "m = 10"]


def test_more_sizes_than_colours_are_all_drawn(folder, tmp_path, monkeypatch):
    found = found_in(folder)
    many = dict.fromkeys(range(1, len(ensemble_size.COLOURS) + 3), found[1])
    drawn = []
    monkeypatch.setattr(ensemble_size.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    ensemble_size.draw(many, tmp_path / "figure.png")
    assert len(drawn[0].axes[0].get_legend().get_texts()) == len(many)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--members", "1", "3"], "n_candidates = 50 must be a multiple of every size in --members"),
        (["run", "--members", "0"], "not so of [0]"),
        (["run", "--set", "ensemble_size=3"], "give --members instead of --set"),
        (["run", "--steps", "4"], "12 evaluations do not fit into 4 steps"),
        (["run", "--env", "CartPole-v9"], "no environment 'CartPole-v9'"),
        (["run", "--seeds", "0"], "--seeds must be at least 1"),
        (["plot"], "no finished runs"),
    ],
    ids=" ".join,
)
def test_bad_input(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        ensemble_size.main([*words, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing may have begun"


def test_plot_mixes_nothing(folder, tmp_path, capsys):
    (run,) = plan([5], [0], batch_size=7)
    write_synthetic(folder, ensemble_size.COLUMNS, run.name, run.settings, [("final", 120, 0, 1.0, 0.1)], VERSIONS)
    words = ["plot", "--out", folder, "--image", tmp_path / "i.png", "--table", tmp_path / "t.md"]
    with pytest.raises(SystemExit):
        ensemble_size.main([*map(str, words)])
    assert "batch_size 64 against 7" in capsys.readouterr().err
    assert not (tmp_path / "t.md").exists()
