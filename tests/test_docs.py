"""
The pages tell the truth: their Python blocks run, their links lead somewhere, their defaults are those of the code.

Blocks of one page share their names, as a reader would type them one after the other. One with the comment "# About a
minute ..." learns for no more than 250 steps and is evaluated on one episode here; `make test-slow` runs it as it is.
"""

import inspect
import re
from ast import literal_eval
from pathlib import Path

import pytest
import torch as th

from sb3_rgrl import RGRL
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.policies import MlpEnsemblePolicy

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
# Without what Sphinx has made.
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts)
# Those that show how to use the package; the others tell what was measured.
TAUGHT = ("README.md", *(f"docs/{name}.md" for name in ("index", "how_it_decides", "guide", "zoo", "paper")))
LONG = "# About a minute"
FENCED = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: str) -> list[tuple[int, str]]:
    """
    :return: Line and text of each Python block.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [(text[: match.start(3)].count("\n"), match[3]) for match in FENCED.finditer(text) if match[2] == "python"]
    assert len(found) == len(re.findall(r"^ *```py", text, re.MULTILINE)), f"{page} has a block that is not read"
    return found


def shortened(block: str) -> str:
    short = re.sub(r"\.learn\([\d_]+", ".learn(250", block)
    return re.sub(r"n_eval_episodes=\d+", "n_eval_episodes=1", short)


def run(page: str, as_they_are: bool, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        for line, block in blocks_of(page):
            text = shortened(block) if LONG in block and not as_they_are else block
            # So many lines in front that a traceback has the line of the page.
            exec(compile("\n" * line + text, str(ROOT / page), "exec"), names)
    finally:
        th.set_num_threads(n_threads)


def is_long(page: str) -> bool:
    return any(LONG in block for _, block in blocks_of(page))


@pytest.mark.parametrize("page", TAUGHT)
def test_python_blocks_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert blocks_of(page), f"{page} has no Python block"
    run(page, False, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TAUGHT if is_long(page)])
def test_python_blocks_run_as_they_are(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(page, True, monkeypatch, tmp_path)


def test_blocks_that_learn_for_long_say_so() -> None:
    for page in TAUGHT:
        for line, block in blocks_of(page):
            n_steps = [int(number) for number in re.findall(r"\.learn\(([\d_]+)", block)]
            assert LONG in block or sum(n_steps) <= 1_000, f"{page}:{line} learns for {n_steps} steps and does not say so"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}.md" for page in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(FENCED, "", (ROOT / page).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|mailto:|#", target):
            assert (ROOT / page).parent.joinpath(target.split("#")[0]).exists(), f"{page} links to {target}"


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = []
    for page in ("index", "tried"):
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        for toc in re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL):
            listed += re.findall(r"^([\w/]+)$", toc, re.MULTILINE)
    assert sorted(listed) == sorted(set(PAGES) - {"index"})


def sections(page: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_index_of_what_was_tried_has_all_sections() -> None:
    """In their order; the title of a page may stand for what comes first on it."""
    text = (DOCS / "tried.md").read_text(encoding="utf-8")
    for page in (page for page in PAGES if page.startswith("tried/")):
        titles = sections(page)
        listed = re.findall(rf"^- \[([^\]]*)\]\({page}\.md#[\w-]+\): ", text, re.MULTILINE)
        assert listed in (titles, titles[1:])


def test_sections_of_what_was_tried_are_there_where_they_are_named() -> None:
    titles = {title for page in PAGES if page.startswith("tried/") for title in sections(page)}
    folders = ("sb3_rgrl", "examples", "tests", "hyperparams")
    files = [*ROOT.glob("*.md"), *(DOCS / f"{page}.md" for page in PAGES)]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yml")]
    named = []
    for path in files:
        text = re.sub(r"\s*\n[\s#]*", " ", path.read_text(encoding="utf-8"))
        for names in re.findall(r'tried(?:\.md)?(?:\]\(tried\.md)?\)?,? \(?("[^"]+"(?:(?: and|,) "[^"]+")*)', text):
            named += [(path.name, name) for name in re.findall(r'"([^"]+)"', names)]
    assert len(named) > 40
    assert [(name, title) for name, title in named if title not in titles] == []


def table_of_hyperparameters(page: str) -> dict[str, str]:
    """
    :return: What the page says is the default of each.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text[text.index("| parameter | default |") :]
    rows = re.findall(r"^\| (?:\u2013 )?`(\w+)` \|([^|]*)\|", table, re.MULTILINE)
    return {name: default.strip() for name, default in rows}


@pytest.mark.parametrize(("page", "at_least"), [("README.md", 12), ("docs/guide.md", 20)])
def test_defaults_are_those_of_the_code(page: str, at_least: int) -> None:
    told = table_of_hyperparameters(page)
    real: dict[str, object] = {}
    for room in (SequenceReplayBuffer, MlpEnsemblePolicy, RGRL):
        real |= {name: p.default for name, p in inspect.signature(room).parameters.items()}
    own = set(inspect.signature(RGRL).parameters) & set(told)
    assert len(own) >= at_least
    for name, default in told.items():
        assert name in real, f"{page} has {name}, the code has not"
        if default:  # empty: keyword arguments, whose parts follow
            assert literal_eval(default.replace(",", "") if default[0].isdigit() else default) == real[name], f"{page}: {name}"


def test_guide_has_every_hyperparameter() -> None:
    of_sb3 = {"policy", "env", "stats_window_size", "tensorboard_log", "verbose", "seed", "device", "_init_setup_model"}
    missing = set(inspect.signature(RGRL).parameters) - set(table_of_hyperparameters("docs/guide.md")) - of_sb3
    assert missing == {"replay_buffer_class"}
