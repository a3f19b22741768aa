"""Sharing an agent on the hub: what the folder and the card hold, what is uploaded, and that a dry run stays here."""

import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch as th
from huggingface_hub import ModelCard
from PIL import Image
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_rgrl import RGRL
from sb3_rgrl.zoo import __main__ as zoo_main
from sb3_rgrl.zoo import push_to_hub, register
from sb3_rgrl.zoo.model_card import GIF, PLAN
from sb3_rgrl.zoo.runs import find_run, make_env, saved_settings
from tests.test_zoo import TINY, zoo

pytest.importorskip("pygame", reason="needs the extra `examples`")

COMMON = ["--env", "CartPole-v1", "--organization", "somebody", "--n-eval-episodes", "2", "--n-timesteps", "6"]
REPO_ID = "somebody/rgrl-CartPole-v1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``logs/``: run 1 as it is, run 2 with VecNormalize and a step limit of its own."""
    cwd = tmp_path_factory.mktemp("hub")
    common = ["train", "--algo", "rgrl", "--env", "CartPole-v1", "-n", 150, "--seed", 0, "--num-threads", 1]
    options = ["--eval-freq", 100, "--eval-episodes", 1]
    zoo(cwd, *common, *options, "-params", *TINY)
    zoo(cwd, *common, *options, "--env-kwargs", "max_episode_steps:7", "-params", *TINY, "normalize:True")
    return cwd


@pytest.fixture
def alone(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copies of the runs as working directory, and no way out to a network."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"The network was asked for: {args}")

    shutil.copytree(trained / "logs", tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    threads = th.get_num_threads()
    yield tmp_path
    th.set_num_threads(threads)


class Client:
    """Notes what the hub's client is asked, and what the folder holds when it is uploaded."""

    asked: list = []  # noqa: RUF012 (of the class: the client is made elsewhere)

    def create_repo(self, repo_id: str, **kwargs: object) -> str:
        self.asked.append(("create", repo_id))
        return f"https://huggingface.co/{repo_id}"

    def snapshot_download(self, repo_id: str, local_dir: Path, **kwargs: object) -> None:
        self.asked.append(("download", repo_id))
        (Path(local_dir) / ".gitattributes").write_text("*.zip filter=lfs\n")

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()}
        card = (Path(folder_path) / "README.md").read_text()
        self.asked.append(("upload", repo_id, commit_message, files, "## How it decides" in card))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(push_to_hub, "HfApi", Client)
    monkeypatch.setattr(Client, "asked", [])
    return Client


def push(*options: str) -> None:
    assert push_to_hub.main([*COMMON, *options]) == 0


def pictures(card: ModelCard) -> list[str]:
    return re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text)


def test_dry_run_leaves_the_folder_and_reaches_no_network(alone: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(push_to_hub, "HfApi", None)
    monkeypatch.setattr(sys, "argv", ["sb3_rgrl.zoo", "push_to_hub", *COMMON, "--exp-id", "1", "--dry-run"])
    assert zoo_main.main() == 0
    folder = Path("hub") / "rgrl-CartPole-v1"
    told = capsys.readouterr().out
    assert told.endswith(f"Dry run, nothing was uploaded. The folder: {folder}\n")
    assert "pushed" not in told
    for name in (PLAN, GIF, "README.md", "results.json", "args.yml", "config.yml", "rgrl-CartPole-v1.zip"):
        assert (folder / name).is_file(), name
    with Image.open(folder / PLAN) as plan, Image.open(folder / GIF) as gif:
        assert (plan.format, gif.format, gif.size) == ("PNG", "GIF", (600, 400))
        # Every other frame of at most 6 steps; frames that are the same become one that is shown for as long.
        shown = []
        for k in range(gif.n_frames):
            gif.seek(k)
            shown.append(gif.info["duration"])
        assert len(shown) > 1
        assert sum(shown) == 3 * min(shown)

    ours, theirs = (RGRL.load(path) for path in (folder / "rgrl-CartPole-v1.zip", "logs/rgrl/CartPole-v1_1/CartPole-v1.zip"))
    np.testing.assert_array_equal(ours.policy.parameters_to_vector(), theirs.policy.parameters_to_vector())


def test_card_tells_what_was_measured(alone: Path) -> None:
    push("--exp-id", "1", "--dry-run", "--seed", "3")
    folder = Path("hub") / "rgrl-CartPole-v1"
    model = RGRL.load("logs/rgrl/CartPole-v1_1/CartPole-v1.zip", seed=3)
    env = make_env(Path("logs/rgrl/CartPole-v1_1"), "CartPole-v1", 2, seed=3)
    mean, std = evaluate_policy(model, env, n_eval_episodes=2)
    results = json.loads((folder / "results.json").read_text())
    assert (results["mean_reward"], results["std_reward"]) == (mean, std)

    card = ModelCard.load(folder / "README.md")
    assert card.data.tags[-1] == "rgrl"
    assert "stable-baselines3" in card.data.tags
    (measured,) = card.data.eval_results
    assert (measured.dataset_name, measured.metric_value) == ("CartPole-v1", f"{mean:.2f} +/- {std:.2f}")
    steps = "after 150 steps of training"
    assert f"Mean return **{mean:.1f} ± {std:.1f}** (standard deviation) over 2 episodes of deterministic" in card.text
    assert steps in card.text
    assert "An ensemble of 2 nets" in card.text
    assert "4 noisy plans of 4 actions" in card.text
    assert pictures(card) == [GIF, PLAN]

    titles = re.findall(r"^## (.*)$", card.text, re.MULTILINE)
    assert titles[:3] == ["Evaluation", "How it decides", "Usage (with SB3 RL Zoo)"]
    commands = re.findall(r"^python -m (\S+) (\w+)", card.text, re.MULTILINE)
    scripts = {*zoo_main.COMMANDS, *zoo_main.MODULES, *zoo_main.OWN}
    assert commands
    assert all(module == "sb3_rgrl.zoo" and script in scripts for module, script in commands)


def test_folder_is_complete_before_it_is_uploaded(alone: Path, client: type[Client], capsys) -> None:
    push("--exp-id", "1", "--repo-name", "mine", "-m", "Better now", "--output", "elsewhere")
    created, downloaded, uploaded = client.asked
    assert (created, downloaded) == (("create", "somebody/mine"), ("download", "somebody/mine"))
    assert uploaded[:3] == ("upload", "somebody/mine", "Better now")
    assert uploaded[3] >= {PLAN, GIF, "README.md", "rgrl-CartPole-v1.zip"}
    assert uploaded[4]
    # What the repository asks git to do with large files stays.
    assert "*.zip filter=lfs" in Path("elsewhere/mine/.gitattributes").read_text()
    assert "Uploaded to https://huggingface.co/somebody/mine" in capsys.readouterr().out


def test_without_rendering_there_is_no_gif(alone: Path) -> None:
    push("--exp-id", "1", "--dry-run", "--no-render")
    folder = Path("hub") / "rgrl-CartPole-v1"
    assert not (folder / GIF).exists()
    assert pictures(ModelCard.load(folder / "README.md")) == [PLAN]


def test_environment_is_that_of_the_run(alone: Path) -> None:
    """Statistics of VecNormalize go along, and its environment keeps its arguments."""
    push("--dry-run", "--load-best")
    folder = Path("hub") / "rgrl-CartPole-v1"
    assert (folder / "vec_normalize.pkl").is_file()
    assert saved_settings(Path("logs/rgrl/CartPole-v1_2"), "CartPole-v1")[2] == {"max_episode_steps": 7}
    assert "max_episode_steps: 7" in (folder / "env_kwargs.yml").read_text()
    assert json.loads((folder / "results.json").read_text())["mean_reward"] <= 7


def test_what_is_shared_can_be_fetched_and_enjoyed(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push("--exp-id", "2", "--dry-run")
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")
    fetched = []

    def download(repo_id: str, filename: str, **kwargs: object) -> str:
        fetched.append(repo_id)
        return str(alone / "hub" / "rgrl-CartPole-v1" / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    options = ["--algo", "rgrl", "--env", "CartPole-v1"]
    zoo(alone, *options, "-orga", "somebody", "-f", "fetched", module="load_from_hub")
    assert set(fetched) == {REPO_ID}
    path, _ = find_run("fetched", 0, "CartPole-v1")
    assert os.path.samefile(path, "fetched/rgrl/CartPole-v1_1/CartPole-v1.zip")
    printed = zoo(alone, "enjoy", *options, "-f", "fetched", "--no-render", "-n", 30)
    # It was cut off after 7 steps in training, and so it is here.
    assert "Episode Length 7" in printed


def test_zoo_is_as_it_was_afterwards(alone: Path, client: type[Client], monkeypatch: pytest.MonkeyPatch) -> None:
    script = push_to_hub.zoo_script()
    before = script.HfApi, script.msg

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(push_to_hub, "complete_card", fail)
    with pytest.raises(OSError, match="disk full"):
        push("--exp-id", "1")
    assert (script.HfApi, script.msg) == before
    assert [what for what, *_ in client.asked] == ["create", "download"], "half a folder must not be uploaded"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folder", "nowhere"], "rl_zoo3 train --algo rgrl --env CartPole-v1 -f nowhere"),
        (["--exp-id", "7"], "There is no such agent yet"),
        (["--algo", "ppo"], "invalid choice: 'ppo'"),
        (["--n-eval-episodes", "0"], "--n-eval-episodes must be at least 1, got 0"),
    ],
)
def test_bad_input(alone: Path, client: type[Client], capsys, options: list[str], message: str) -> None:
    register()
    with pytest.raises(SystemExit) as ended:
        push(*options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert client.asked == []
    assert not Path("hub").exists()
