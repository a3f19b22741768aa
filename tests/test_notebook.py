"""
The notebook runs from top to bottom, and stores nothing of its last run.

Here it learns for 250 steps; `make notebook` runs it as it is, and so does `make test-slow`.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbmake", reason="needs the extra `tests`")

REPO = Path(__file__).resolve().parents[1]
NOTEBOOK = REPO / "examples" / "quickstart.ipynb"


def read(path: Path = NOTEBOOK) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def executed(folder: Path, shorten: bool) -> dict[str, list[dict]]:
    """
    :return: Outputs of each cell, by its id.
    """
    notebook = read()
    for cell in code_cells(notebook) if shorten else []:
        cell["source"] = re.sub(r"\.learn\([\d_]+", ".learn(250", source(cell))
    copy = folder / NOTEBOOK.name
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-p", "no:cacheprovider", "--rootdir", folder, copy]
    # The kernel's working directory is that of the copy.
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "PYTHONPATH": path}
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(file.name for file in folder.iterdir()) == [NOTEBOOK.name], "the notebook leaves files behind"
    return {cell["id"]: cell["outputs"] for cell in code_cells(read(copy))}


def shown(outputs: list[dict]) -> list[str]:
    """
    :return: Kinds of what a cell shows: a stream's name, or the type of a picture.
    """
    return [output.get("name") or next(kind for kind in output["data"] if kind != "text/plain") for output in outputs]


def check(outputs: dict[str, list[dict]]) -> float:
    """
    :return: The mean return that was printed.
    """
    kinds = {cell: shown(of_cell) for cell, of_cell in outputs.items()}
    expected = {"install": [], "train": [], "evaluate": ["stdout"], "watch": ["image/gif"], "plan": ["stdout"]}
    assert kinds == {**expected, "picture": ["image/png"]}
    printed = "".join(outputs["evaluate"][0]["text"])
    match = re.fullmatch(r"Mean return ([\d.]+) ± [\d.]+\n", printed)
    assert match, printed
    return float(match[1])


def test_stores_no_outputs():
    notebook = read()
    cells = code_cells(notebook)
    assert len(cells) == 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    # Those of the editor that was used last would differ from one to the next.
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize(
    ("installed", "in_clone", "expected"),
    [(True, True, None), (False, True, "{clone}[examples]"), (False, False, "sb3-rgrl[examples]")],
)
def test_installs_only_what_is_missing(installed, in_clone, expected, tmp_path, monkeypatch):
    commands = []
    folder = tmp_path / "examples"
    folder.mkdir()
    if in_clone:
        (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed or name != "sb3_rgrl" else None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    first = code_cells(read())[0]
    assert first["id"] == "install"
    exec(compile(source(first), "install", "exec"), {})
    asked = [command[-1] for command in commands]
    assert asked == ([] if expected is None else [expected.format(clone=tmp_path)])
    assert all(command[:4] == [sys.executable, "-m", "pip", "install"] for command in commands)


def test_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("pygame", reason="needs the extra `examples`")
    assert check(executed(tmp_path, shorten=True)) >= 8


@pytest.mark.slow
def test_runs_as_it_is_and_learns(tmp_path):
    assert check(executed(tmp_path, shorten=False)) >= 400
