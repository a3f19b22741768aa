"""
What ``rl_zoo3 train --algo rgrl`` has left behind: where a run lies, and its environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rl_zoo3.import_envs  # noqa: F401 (registers the environments that the zoo knows)
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_rgrl.zoo.registration import ALGO


def find_run(folder: str, exp_id: int, env_id: str, load_best: bool = False) -> tuple[Path, Path]:
    """
    :param folder: Log folder of the zoo.
    :param exp_id: Number of the run, 0 for the latest.
    :param env_id: Environment id.
    :param load_best: The agent that was best in an evaluation instead of the last one.
    :return: Path of the agent and folder of the run.
    :raises ValueError: If there is none, with the command that makes one.
    """
    try:
        _, model_path, run_path = get_model_path(exp_id, folder, ALGO, EnvironmentName(env_id), load_best)
    except (AssertionError, ValueError) as error:
        hint = f"rl_zoo3 train --algo {ALGO} --env {env_id} -f {folder}"
        raise ValueError(f"{error}\nThere is no such agent yet, train first: {hint}") from error
    return Path(model_path), Path(run_path)


def saved_settings(run_path: Path, env_id: str) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
    """
    :param run_path: Folder of the run. As everywhere in the zoo, its YAML files are read in a way that runs code in them.
    :param env_id: Environment id.
    :return: Hyperparameters, the folder with the statistics of ``VecNormalize``, and the keyword arguments that the
        environment was made with.
    """
    settings_path = run_path / EnvironmentName(env_id)
    hyperparams, stats_path = get_saved_hyperparams(str(settings_path), test_mode=True)
    env_kwargs: dict[str, Any] = dict(hyperparams.pop("env_kwargs", None) or {})
    args_path = settings_path / "args.yml"
    if args_path.is_file():
        saved = yaml.load(args_path.read_text(encoding="utf-8"), Loader=yaml.UnsafeLoader)
        env_kwargs.update(saved.get("env_kwargs") or {})
    return hyperparams, stats_path, env_kwargs


def make_env(run_path: Path, env_id: str, n_envs: int, seed: int, render_mode: str | None = None) -> VecEnv:
    """
    The environment as it was in training: wrappers, frame stack and the statistics of ``VecNormalize``.

    :param run_path: Folder of the run.
    :param env_id: Environment id.
    :param n_envs: Number of environments.
    :param seed: Seed of the first environment.
    :param render_mode: Gymnasium's, e.g. ``rgb_array``.
    :return: The vectorised environment.
    """
    hyperparams, stats_path, env_kwargs = saved_settings(run_path, env_id)
    if render_mode is not None:
        env_kwargs["render_mode"] = render_mode
    return create_test_env(
        env_id,
        n_envs=n_envs,
        stats_path=stats_path,
        seed=seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=env_kwargs,
        # All in one process: the time goes into planning, which is done for all environments together.
        vec_env_cls=DummyVecEnv,
    )
