"""
Show what ``rl_zoo3 train --algo rgrl`` has learned: mean return, learning curve and a GIF of one episode.

    rl_zoo3 train --algo rgrl --env CartPole-v1
    python examples/show_agent.py --env CartPole-v1
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch as th
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_rgrl import RGRL
from sb3_rgrl.recording import save_gif
from sb3_rgrl.zoo.runs import find_run, make_env

# Episodes that a point of the smoothed curve averages over.
SMOOTHING = 3


def parse_args() -> argparse.Namespace:
    """
    :return: the arguments of the command line
    """
    parser = argparse.ArgumentParser(description="Evaluate and show an RGRL agent that the RL Zoo has trained.")
    parser.add_argument("--env", default="CartPole-v1", help="environment id")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the zoo")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (0: the latest)")
    parser.add_argument("--n-eval-episodes", type=int, default=20, help="episodes of the mean return")
    parser.add_argument("--n-envs", type=int, default=10, help="environments that are planned for at once")
    parser.add_argument("--seed", type=int, default=0, help="seed of the environments and of the planner")
    parser.add_argument("--num-threads", type=int, default=1, help="threads of PyTorch; small networks gain from no more")
    parser.add_argument("--every", type=int, default=2, help="keep every n-th frame of the episode in the GIF")
    parser.add_argument("--output-dir", type=Path, help="where the pictures go (default: the folder of the run)")
    return parser.parse_args()


def evaluate(model: RGRL, env: VecEnv, n_episodes: int) -> tuple[float, float]:
    """
    :param model: the agent
    :param env: environments to evaluate it on
    :param n_episodes: number of episodes
    :return: mean and standard deviation of the return
    """
    returns, _ = evaluate_policy(model, env, n_eval_episodes=n_episodes, return_episode_rewards=True)
    return float(np.mean(returns)), float(np.std(returns))


def training_curve(run_path: Path) -> pd.DataFrame:
    """
    :param run_path: folder of the run
    :return: one row per training episode: environment steps at its end, return, smoothed return
    """
    monitor = load_results(str(run_path))
    return pd.DataFrame(
        {
            "steps": monitor["l"].cumsum(),
            "return": monitor["r"],
            "smoothed": monitor["r"].rolling(SMOOTHING, min_periods=1).mean(),
        }
    )


def plot_curve(run_path: Path, title: str, path: Path) -> None:
    """
    :param run_path: folder of the run
    :param title: title of the figure
    :param path: where to write the PNG
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    curve = training_curve(run_path)
    axes.scatter(curve["steps"], curve["return"], s=10, color="tab:blue", alpha=0.4, label="training episode")
    axes.plot(curve["steps"], curve["smoothed"], color="tab:blue", label=f"mean of {SMOOTHING} episodes")
    evaluations_path = run_path / "evaluations.npz"
    if evaluations_path.is_file():
        with np.load(evaluations_path) as evaluations:
            mean, std = evaluations["results"].mean(axis=1), evaluations["results"].std(axis=1)
            axes.errorbar(evaluations["timesteps"], mean, std, fmt="o-", color="tab:orange", capsize=3, label="evaluation")
    axes.set(title=title, xlabel="environment steps", ylabel="return per episode", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Evaluate, plot and record the agent that the command line names."""
    args = parse_args()
    # Pictures are drawn in memory: pygame needs no screen, and shall not complain that there is none.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    th.set_num_threads(args.num_threads)
    try:
        model_path, run_path = find_run(args.folder, args.exp_id, args.env)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    output_dir: Path = args.output_dir or run_path
    output_dir.mkdir(parents=True, exist_ok=True)
    model = RGRL.load(model_path, seed=args.seed)

    env = make_env(run_path, args.env, min(args.n_envs, args.n_eval_episodes), args.seed)
    mean, std = evaluate(model, env, args.n_eval_episodes)
    env.close()
    print(f"{args.env}: mean return {mean:.1f} ± {std:.1f} over {args.n_eval_episodes} episodes")

    name = EnvironmentName(args.env)  # without slashes
    curve_path = output_dir / f"{name}-learning-curve.png"
    plot_curve(run_path, f"RGRL on {args.env}", curve_path)
    print(f"Learning curve: {curve_path}")

    gif_path = output_dir / f"{name}-episode.gif"
    env = make_env(run_path, args.env, 1, args.seed, render_mode="rgb_array")
    try:
        save_gif(model, env, gif_path, args.every)
    except ValueError as error:
        raise SystemExit(f"There is no GIF: {error}") from error
    env.close()
    print(f"Episode: {gif_path}")


if __name__ == "__main__":
    main()
