"""
``python -m sb3_rgrl.zoo push_to_hub``: share an agent that the RL Zoo has trained on the Hugging Face hub.

The zoo's ``package_to_hub`` saves and evaluates it, writes the model card and uploads all of it. Added here: a picture of a
plan and a GIF for the card, and ``--dry-run``, which leaves the folder that would be uploaded and reaches no network.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch as th
from huggingface_hub import HfApi
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from stable_baselines3.common.utils import set_random_seed
from wasabi.printer import Printer

from sb3_rgrl.plots import plan_trace
from sb3_rgrl.recording import save_gif
from sb3_rgrl.rgrl import RGRL
from sb3_rgrl.zoo.model_card import GIF, PLAN, complete_card
from sb3_rgrl.zoo.registration import ALGO
from sb3_rgrl.zoo.runs import find_run, make_env, saved_settings

MAX_ENVS = 10
"""So many are evaluated in at once: planning for several hardly takes longer than for one."""


class Hub:
    """
    Stands between the zoo and the hub's client: completes the folder before it is uploaded, or keeps it here.

    :param complete: What to do with the folder before it is uploaded.
    :param dry_run: Whether nothing may leave this machine.
    """

    def __init__(self, complete: Callable[[Path], None], dry_run: bool) -> None:
        self.complete = complete
        self.client = None if dry_run else HfApi()

    def create_repo(self, repo_id: str, **kwargs: Any) -> str:
        """
        :param repo_id: Name of the repository on the hub, with its owner's.
        :param kwargs: See ``huggingface_hub.HfApi``.
        :return: Its address.
        """
        if self.client is None:
            return f"https://huggingface.co/{repo_id}"
        return str(self.client.create_repo(repo_id=repo_id, **kwargs))

    def snapshot_download(self, repo_id: str, local_dir: Path, **kwargs: Any) -> None:
        """
        :param repo_id: See :meth:`create_repo`.
        :param local_dir: Folder that gets what is in the repository now.
        :param kwargs: See ``huggingface_hub.HfApi``.
        """
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        if self.client is not None:
            self.client.snapshot_download(repo_id=repo_id, local_dir=local_dir, **kwargs)

    def upload_folder(self, repo_id: str, folder_path: Path, **kwargs: Any) -> None:
        """
        :param repo_id: See :meth:`create_repo`.
        :param folder_path: Folder to upload.
        :param kwargs: See ``huggingface_hub.HfApi``.
        """
        self.complete(Path(folder_path))
        if self.client is not None:
            self.client.upload_folder(repo_id=repo_id, folder_path=folder_path, **kwargs)


def zoo_script() -> ModuleType:
    """
    :return: The module ``rl_zoo3.push_to_hub``.
    """
    # The package has a function of that name, too, which hides the module.
    helpers: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(helpers, "generate_metadata"):
        # The zoo imports this name; the library that it depends on has made it private, and an object of what was a dict.
        helpers.generate_metadata = lambda *args: helpers._generate_metadata(*args).to_dict()
    return importlib.import_module("rl_zoo3.push_to_hub")


@contextmanager
def _talking_to(module: ModuleType, hub: Hub) -> Iterator[None]:
    before = module.HfApi, module.msg
    # The zoo's messages say that all was pushed, which is not so in a dry run.
    module.HfApi, module.msg = lambda: hub, Printer(no_print=True)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.HfApi, module.msg = before  # type: ignore[attr-defined]


def push_to_hub(
    model: RGRL,
    run_path: Path,
    env_id: str,
    repo_id: str,
    output: Path,
    dry_run: bool = False,
    n_eval_episodes: int = 10,
    n_timesteps: int = 1000,
    render: bool = True,
    seed: int = 0,
    commit_message: str = "Initial commit",
) -> Path:
    """
    Evaluate an agent, write its model card with the picture of a plan and a GIF, and upload both and the agent.

    :param model: The agent.
    :param run_path: Folder of the zoo's run.
    :param env_id: Environment id.
    :param repo_id: Name of the repository on the hub, ``owner/name``.
    :param output: Folder in which the folder of the repository is made.
    :param dry_run: Make that folder and upload nothing; the network is not reached.
    :param n_eval_episodes: Episodes of the mean return.
    :param n_timesteps: The GIF shows one episode, at most so many steps of it.
    :param render: Whether there is a GIF.
    :param seed: Seed of the environments.
    :param commit_message: Message on the hub.
    :return: The folder of the repository on this machine.
    """
    zoo, env_name = zoo_script(), EnvironmentName(env_id)
    hyperparams, _, env_kwargs = saved_settings(run_path, env_id)

    def complete(folder: Path) -> None:
        env = make_env(run_path, env_id, 1, seed, "rgb_array" if render else None)
        plan_trace(model.policy, env.reset()).savefig(folder / PLAN, dpi=110)  # type: ignore[arg-type]
        if render:
            save_gif(model, env, folder / GIF, n_steps=n_timesteps)
        env.close()
        complete_card(folder, model)

    eval_env = make_env(run_path, env_id, min(MAX_ENVS, n_eval_episodes), seed)
    with _talking_to(zoo, Hub(complete, dry_run)):
        zoo.package_to_hub(
            model,
            ModelName(ALGO, env_name),
            ALGO,
            type(model).__name__,
            run_path,
            hyperparams,
            env_kwargs,
            env_name,
            eval_env,
            repo_id=repo_id,
            commit_message=commit_message,
            n_eval_episodes=n_eval_episodes,
            local_repo_path=output,
        )
    eval_env.close()
    return output / repo_id.split("/")[1]


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line; options are called as in ``rl_zoo3.push_to_hub``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_rgrl.zoo push_to_hub", description="Share an RGRL agent of the RL Zoo on the Hugging Face hub."
    )
    parser.add_argument("--algo", default=ALGO, choices=[ALGO], help="algorithm; those of the zoo have the zoo's own script")
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the zoo (default: %(default)s)")
    parser.add_argument("-orga", "--organization", required=True, help="owner of the repository on the hub")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: rgrl-ENV)")
    parser.add_argument("-m", "--commit-message", default="Initial commit", help="message (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="make the folder, upload nothing, reach no network")
    parser.add_argument("--output", type=Path, default=Path("hub"), help="where the folder is made (default: %(default)s)")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: the latest)")
    parser.add_argument("--load-best", action="store_true", help="the best agent of an evaluation instead of the last one")
    parser.add_argument("--trust", action="store_true", help="let the agent's file run code, see SECURITY.md")
    parser.add_argument("--n-eval-episodes", type=int, default=10, help="episodes of the mean (default: %(default)s)")
    parser.add_argument("-n", "--n-timesteps", type=int, default=1000, help="at most, in the GIF (default: %(default)s)")
    parser.add_argument("--no-render", action="store_true", help="make no GIF")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    parser.add_argument("--num-threads", type=int, default=1, help="threads of PyTorch (default: %(default)s)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: The command line; None: that of this process.
    :return: Exit status. What is wrong with the arguments ends the process with a message.
    """
    parser = make_parser()
    args = parser.parse_args(words)
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    repo_name = args.repo_name or ModelName(ALGO, EnvironmentName(args.env))
    try:
        _check(args)
        th.set_num_threads(args.num_threads)
        set_random_seed(args.seed)
        model_path, run_path = find_run(args.folder, args.exp_id, args.env, args.load_best)
        model = _load(model_path, args.seed, args.trust)
        folder = push_to_hub(
            model,
            run_path,
            args.env,
            ModelRepoId(args.organization, repo_name),
            args.output,
            args.dry_run,
            args.n_eval_episodes,
            args.n_timesteps,
            not args.no_render,
            args.seed,
            args.commit_message,
        )
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    done = (
        "Dry run, nothing was uploaded."
        if args.dry_run
        else f"Uploaded to https://huggingface.co/{args.organization}/{repo_name}"
    )
    print(f"{done} The folder: {folder}")
    return 0


def _check(args: argparse.Namespace) -> None:
    for name in ("n_eval_episodes", "n_timesteps", "num_threads"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")


def _load(path: Path, seed: int, trust: bool) -> RGRL:
    from rl_zoo3 import ALGOS

    # Whoever has put a subclass there wants it.
    return cast(RGRL, ALGOS[ALGO].load(path, seed=seed, trust=trust))
