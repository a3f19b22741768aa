"""Sudoku from payoff nets: what the nets learn, what descends, who judges, and what is written."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.append(str(EXAMPLES))

import payoff_nets  # noqa: E402
import sudoku  # noqa: E402
from payoff_nets import are_permutations, draw_digits, make_nets, rewards_of, seen_through_mist, train  # noqa: E402
from sudoku import (  # noqa: E402
    BOXES,
    FIXED,
    Effort,
    accepted,
    bar_of,
    blank_cells,
    descend,
    fill_in,
    fix_largest,
    is_sudoku,
    solve,
    table_error,
    units_of,
)

from sb3_rgrl.planner import MwmSgdPlanner  # noqa: E402

QUICK = Effort(n_iterations=50)


def pattern(size):
    """A table that is right: each row is the one above moved on by a box's width, and by one more at each new band."""
    height, width = BOXES[size]
    rows = [[(width * (i % height) + i // height + j) % size + 1 for j in range(size)] for i in range(size)]
    return np.array(rows)


@pytest.fixture(scope="module")
def nets():
    ensemble = make_nets(4, n_members=3, dropout=0.0, seed=0)
    train(ensemble, 700, np.random.default_rng(0))
    return ensemble


# The judge


def test_judge_finds_as_many_tables_as_there_are():
    rows = list(itertools.permutations(range(1, 5)))
    tables = (np.array([rows[0], *others]) for others in itertools.product(rows, repeat=3))
    # 288 tables in all, 4! ways to name the digits of the first row
    assert sum(map(is_sudoku, tables)) == 288 / 24


@pytest.mark.parametrize("size", BOXES)
def test_judge_refuses_each_single_change(size):
    right = pattern(size)
    assert is_sudoku(right)
    for cell in range(size * size):
        for digit in {0, *range(1, size + 2)} - {right.flat[cell]}:
            wrong = right.copy()
            wrong.flat[cell] = digit
            assert not is_sudoku(wrong)


@pytest.mark.parametrize("size", BOXES)
def test_judge_looks_at_rows_and_columns_and_boxes(size):
    height, _ = BOXES[size]
    right = pattern(size)
    only_boxes_wrong = right.copy()
    only_boxes_wrong[[0, height]] = right[[height, 0]]
    # Two cells change places within a box: in one row, columns are wrong alone, in one column, rows.
    only_columns_wrong, only_rows_wrong = right.copy(), right.copy()
    only_columns_wrong[0, [0, 1]] = right[0, [1, 0]]
    only_rows_wrong[[0, 1], 0] = right[[1, 0], 0]
    for wrong in (only_boxes_wrong, only_columns_wrong, only_rows_wrong):
        assert not is_sudoku(wrong)


@pytest.mark.parametrize("size", BOXES)
def test_units_are_what_the_judge_looks_at(size):
    units = units_of(size)
    assert units.shape == (3 * size, size)
    assert (np.bincount(units.ravel()) == 3).all()
    generator = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        table = pattern(size)
        for _ in range(generator.integers(3)):
            # Two cells change places within a row, two within a column, or two rows.
            i, j, k = generator.integers(size, size=3)
            there, back = [((k, [i, j]), (k, [j, i])), (([i, j], k), ([j, i], k)), ([i, j], [j, i])][generator.integers(3)]
            table[there] = table[back]
        verdicts.append(is_sudoku(table))
        assert are_permutations(table.ravel()[units] - 1).all() == verdicts[-1]
    assert {True, False} == set(verdicts)


# What the nets learn


def test_permutations_by_brute_force():
    digits = np.array(list(itertools.product(range(4), repeat=4)))
    expected = [len(set(unit)) == 4 for unit in digits.tolist()]
    assert are_permutations(digits).tolist() == expected
    assert sum(expected) == 24
    rewards = rewards_of(digits)
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [[1, 1, 1, 1] if permutation else [1, 0, 0, 0] for permutation in expected]


def test_half_of_the_units_are_permutations_and_the_others_come_close():
    digits = draw_digits(6, (4, 5_000), np.random.default_rng(0))
    assert digits.shape == (4, 5_000, 6)
    assert set(np.unique(digits)) == set(range(6))
    # Redrawing may hit the same digits again, hence a little more than half.
    assert 0.5 < are_permutations(digits).mean() < 0.56
    n_different = np.array([len(set(unit)) for unit in digits.reshape(-1, 6).tolist()])
    assert {2, 3, 4, 5, 6} <= set(n_different.tolist())
    assert (n_different == 5).mean() > 0.1


def test_mist_blanks_cells_but_never_moves_digits():
    digits = draw_digits(6, (2_000,), np.random.default_rng(0))
    seen = seen_through_mist(digits, 0.0, np.random.default_rng(1))
    assert seen.dtype == np.float32
    one_hot = np.eye(6)[digits]
    assert (seen[one_hot == 0] == 0).all()
    left = seen[one_hot == 1].reshape(-1, 6)
    assert set(np.unique(left)) == {0, 1}
    # Half have no blank cell; of the others, a share u of six cells, u uniform, makes each number 0 .. 6 as likely.
    numbers = np.bincount((left == 0).sum(axis=1).astype(int), minlength=7) / 2_000
    assert numbers == pytest.approx([0.5 + 1 / 14] + [1 / 14] * 6, abs=0.035)


def test_mist_has_the_noise_that_is_asked_for():
    digits = draw_digits(6, (2_000,), np.random.default_rng(0))
    clear, noisy = (seen_through_mist(digits, noise, np.random.default_rng(1)) for noise in (0.0, 0.3))
    assert (noisy - clear).std() == pytest.approx(0.3, rel=0.02)


def test_every_member_tells_permutations_from_the_rest(nets):
    digits = np.array(list(itertools.product(range(4), repeat=4)))
    units = th.from_numpy(np.eye(4, dtype=np.float32)[digits]).expand(3, -1, -1, -1)
    with th.no_grad():
        told = payoff_nets.log_odds(nets, units, nets.members()).numpy()
    right = are_permutations(digits)
    # The first reward is 1 for all.
    assert (told[..., 0] > 2).all()
    for member in told[..., 1:].mean(axis=-1):
        assert member[right].min() > member[~right].max()


def test_first_weights_come_from_the_seed_and_leave_torch_alone():
    th.manual_seed(5)
    expected = th.rand(3)
    th.manual_seed(5)
    first, again, other = (make_nets(4, 2, 0.0, seed) for seed in (1, 1, 2))
    assert th.equal(th.rand(3), expected)
    assert all(map(th.equal, first.parameters(), again.parameters()))
    assert not th.equal(first.weights[0], other.weights[0])


# What descends


def by_hand(ensemble, member, cells):
    """Error of one table in plain loops: cross-entropy of what a member tells of each row, column and box."""
    size = ensemble.action_dim
    height, width = BOXES[size]
    table = 1 / (1 + np.exp(-cells.reshape(size, size, size)))
    units = [table[i] for i in range(size)] + [table[:, j] for j in range(size)]
    for top in range(0, size, height):
        for left in range(0, size, width):
            units.append(table[top : top + height, left : left + width].reshape(size, size))
    error = 0.0
    for unit in units:
        x = unit.ravel()
        for k, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
            x = x @ weight[member].detach().numpy() + bias[member, 0].detach().numpy()
            x = x / (1 + np.exp(-x)) if k < len(ensemble.weights) - 1 else x
        error += sum(math.log(1 + math.exp(-odds)) for odds in x[:size])
    return error


def test_error_and_gradient_of_tables_by_hand():
    ensemble = make_nets(6, n_members=2, dropout=0.0, seed=0).double()
    cells = np.random.default_rng(0).standard_normal((2, 3, 36, 6))
    error, gradient = table_error(ensemble, np.random.default_rng(0))(th.from_numpy(cells), None)
    for member, table in itertools.product(range(2), range(3)):
        assert float(error[member, table]) == pytest.approx(by_hand(ensemble, member, cells[member, table]), rel=1e-10)
    for index in [(0, 0), (7, 3), (35, 5)]:
        step = np.zeros((36, 6))
        step[index] = 1e-5
        difference = by_hand(ensemble, 1, cells[1, 2] + step) - by_hand(ensemble, 1, cells[1, 2] - step)
        assert float(gradient[(1, 2, *index)]) == pytest.approx(difference / 2e-5, rel=1e-5)
    assert all(parameter.grad is None for parameter in ensemble.parameters())


def test_dropout_thins_the_nets_that_judge():
    ensemble = make_nets(4, n_members=1, dropout=0.5, seed=0)
    gradient_fn = table_error(ensemble, np.random.default_rng(0))
    cells = th.zeros(1, 1, 16, 4)
    first, second = (float(gradient_fn(cells, None)[0]) for _ in range(2))
    assert first != second


def test_blank_cells_begin_low_and_fixed_ones_far_out():
    fixed = np.array([[-1] * 15 + [2], [-1] * 16])
    cells = blank_cells(fixed, 0.1, np.random.default_rng(0))
    assert cells.shape == (2, 1, 16, 4)
    assert cells.dtype == np.float32
    assert cells[0, 0, 15].tolist() == [-FIXED, -FIXED, FIXED, -FIXED]
    free = np.delete(cells.reshape(2, 16, 4), 15, axis=1)
    assert free.mean() == pytest.approx(-3.5, abs=0.03)
    assert free.std() == pytest.approx(0.1, rel=0.2)


def test_descent_moves_free_cells_and_leaves_fixed_ones(nets):
    fixed = np.full((3, 16), -1)
    fixed[0, 3], fixed[1, 7] = 1, 2
    start = blank_cells(fixed, 0.1, np.random.default_rng(0))
    cells = descend(start, nets, QUICK, table_error(nets, np.random.default_rng(0)), np.random.default_rng(0))
    assert cells.shape == (3, 16, 4)
    assert cells[0, 3].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-9)
    assert cells[1, 7].tolist() == pytest.approx([0, 0, 1, 0], abs=1e-9)
    before = 1 / (1 + np.exp(-start[:, 0]))
    assert (np.abs(cells - before)[fixed < 0].max(axis=-1) > 0.01).all()
    # The digit that a row, a column or a box has already is not what its other cells want.
    rivals = [0, 1, 2, 7, 11, 15, 6]
    assert (cells[0, rivals, 1] < cells[0][rivals][:, [0, 2, 3]].max(axis=-1)).all()


def test_long_blocks_go_through_the_planner_in_parts(nets, monkeypatch):
    start = blank_cells(np.full((3, 16), -1), 0.1, np.random.default_rng(0))
    lengths = []

    class Watched(MwmSgdPlanner):
        def descend(self, *arguments):
            lengths.append(self.n_iterations)
            return super().descend(*arguments)

    monkeypatch.setattr(sudoku, "MwmSgdPlanner", Watched)
    ends = []
    for at_once in (50, 20):
        monkeypatch.setattr(sudoku, "AT_ONCE", at_once)
        ends.append(descend(start, nets, QUICK, table_error(nets, np.random.default_rng(0)), np.random.default_rng(0)))
    assert lengths == [50, 20, 20, 10]
    assert np.array_equal(*ends)


def test_only_the_largest_free_cell_is_fixed():
    cells = np.full((3, 16, 4), 0.1)
    cells[0, 5, 2], cells[0, 6, 1], cells[0, 7, 3] = 0.8, 0.95, 0.99
    cells[2, 0, 0] = 0.3
    fixed = np.full((3, 16), -1)
    fixed[0, 7] = 0
    fixed[2, 1:] = 2
    one = fix_largest(fixed, cells, sure=1.0)
    expected = fixed.copy()
    expected[0, 6], expected[1, 0], expected[2, 0] = 1, 0, 0
    assert one.tolist() == expected.tolist()
    expected[0, 5] = 2
    assert fix_largest(fixed, cells, sure=0.7).tolist() == expected.tolist()
    assert (fix_largest(one, cells, 1.0)[2] == one[2]).all()


# Filling in


def test_blank_tables_are_filled_in(nets):
    seen = []
    tables = fill_in(nets, 40, QUICK, np.random.default_rng(1), lambda rows, cells, fixed: seen.append(fixed.copy()))
    assert tables.shape == (40, 4, 4)
    assert sum(map(is_sudoku, tables)) >= 32
    assert len(np.unique(tables, axis=0)) > 20
    assert (seen[0] == -1).all()
    # One cell after the other, and what is fixed stays so; 42 is the next multiple of three members.
    assert [len(fixed) for fixed in seen] == [42] * 16
    for k, (earlier, later) in enumerate(itertools.pairwise(seen)):
        assert ((later >= 0).sum(axis=1) == k + 1).all()
        assert (later[earlier >= 0] == earlier[earlier >= 0]).all()
    assert (tables.reshape(40, 16)[seen[-1][:40] >= 0] == seen[-1][:40][seen[-1][:40] >= 0] + 1).all()


def test_sure_cells_are_fixed_together_and_finished_tables_rest(nets):
    active = []
    tables = fill_in(nets, 31, Effort(50, sure=0.6), np.random.default_rng(1), lambda rows, *_: active.append(rows.tolist()))
    assert ((tables >= 1) & (tables <= 4)).all()
    assert len(active) < 16
    assert all(len(rows) % 3 == 0 and len(set(rows)) == len(rows) for rows in active)
    assert len(active[-1]) < len(active[0]) == 33


def test_nets_accept_what_is_right_and_refuse_what_is_not(nets):
    right = pattern(4)
    wrong = np.repeat(right[None], 16, axis=0)
    for cell in range(16):
        wrong[cell].flat[cell] = right.flat[cell] % 4 + 1
    bar = bar_of(nets, np.random.default_rng(0))
    assert accepted(nets, right[None], bar).tolist() == [True]
    assert not accepted(nets, wrong, bar).any()


def test_refused_tables_begin_again_and_the_judge_is_never_asked(nets, monkeypatch):
    def caught(table):
        raise AssertionError("the solver must not know")

    monkeypatch.setattr(sudoku, "is_sudoku", caught)
    # So short blocks that many tables go wrong
    first, *later = solve(nets, 30, Effort(10, n_attempts=3), seed=0)
    assert 1 <= len(later) <= 2
    before, bar = first, bar_of(nets, np.random.default_rng([0, 0, 1]))
    for tables in later:
        kept = accepted(nets, before, bar)
        assert not kept.all()
        assert (tables[kept] == before[kept]).all()
        assert (tables[~kept] != before[~kept]).any()
        before = tables
    assert sum(map(is_sudoku, later[-1])) > sum(map(is_sudoku, first))
    assert len(solve(nets, 6, Effort(10, n_attempts=1), seed=0)) == 1


def test_nets_that_know_nothing_solve_nothing():
    tables = fill_in(make_nets(4, 3, 0.0, seed=0), 30, QUICK, np.random.default_rng(0))
    assert ((tables >= 1) & (tables <= 4)).all()
    assert sum(map(is_sudoku, tables)) <= 1


# The command

SMALL = ["--size", "4", "--members", "2", "--steps", "20", "--iterations", "3", "--attempts", "1"]
SMALL += ["--tables", "7", "--threads", "1"]


def test_command_writes_integers_and_repeats_itself(tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sudoku.main([*SMALL, "--seed", str(seed), "--output", str(tmp_path / f"{name}.npy")])
    tables, again, other = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert tables.shape == (7, 4, 4)
    assert np.issubdtype(tables.dtype, np.integer)
    assert ((tables >= 1) & (tables <= 4)).all()
    assert np.array_equal(tables, again)
    assert not np.array_equal(tables, other)
    n_solved = sum(map(is_sudoku, tables))
    assert f"Attempt 1: {n_solved} of 7 tables solved" in capsys.readouterr().out


def test_nets_are_kept_and_only_used_as_what_they_are(tmp_path, capsys):
    nets, first, second = tmp_path / "nets.pt", tmp_path / "a.npy", tmp_path / "b.npy"
    sudoku.main([*SMALL, "--nets", str(nets), "--output", str(first)])
    assert "Trained 2 nets" in capsys.readouterr().out
    kept = nets.read_bytes()
    sudoku.main([*SMALL, "--nets", str(nets), "--output", str(second)])
    assert "Trained" not in capsys.readouterr().out
    assert np.array_equal(np.load(first), np.load(second))
    with pytest.raises(ValueError, match="name another file"):
        sudoku.main([*SMALL, "--nets", str(nets), "--noise", "0.1"])
    assert nets.read_bytes() == kept


def test_picture_shows_the_first_table(tmp_path):
    picture = tmp_path / "folder" / "table.png"
    sudoku.main([*SMALL, "--picture", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--size", "5"], ["--tables", "0"], ["--members", "-1"]])
def test_command_refuses_what_makes_no_sense(words, capsys):
    with pytest.raises(SystemExit):
        sudoku.main(words)
    assert words[0] in capsys.readouterr().err


def test_share_with_wilsons_interval():
    k, n, z = 973, 1000, 1.959963984540054
    p = k / n
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = 100 * (centre - half), 100 * (centre + half)
    assert sudoku.describe(k, n) == f"973 of 1000 tables solved: 97.3 % (95 % interval {low:.1f} .. {high:.1f})"


@pytest.mark.slow
def test_six_by_six(tmp_path, capsys):
    output = tmp_path / "grids.npy"
    sudoku.main(["--size", "6", "--tables", "100", "--seed", "1", "--output", str(output)])
    tables = np.load(output)
    assert tables.shape == (100, 6, 6)
    # 97.3 % of many; fewer than 92 of 100 would be a mishap of one in 300 then.
    assert sum(map(is_sudoku, tables)) >= 92
