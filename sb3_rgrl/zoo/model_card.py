"""
The model card: what the zoo writes, and a section of RGRL's own with the evaluation, an episode and a plan.
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard

from sb3_rgrl.rgrl import RGRL

PLAN, GIF = "plan.png", "replay.gif"
TAG = "rgrl"
BEFORE = "\n## Usage"
"""Our section stands before that one of the zoo's."""
COMMANDS = {"python -m rl_zoo3.": "python -m sb3_rgrl.zoo ", "pip install rl_zoo3": "pip install sb3-rgrl"}
"""What the card's commands become, which know RGRL without the start-up hook, too."""


def complete_card(folder: Path, model: RGRL) -> None:
    """
    Put our section into the card of a repository.

    :param folder: The repository, with the zoo's ``README.md`` and ``results.json``, the picture of a plan and perhaps a GIF.
    :param model: The agent.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    section = section_of(model, results, has_gif=(folder / GIF).is_file())
    path = folder / "README.md"
    card = ModelCard.load(path)
    start, usage, rest = card.text.partition(BEFORE)
    commands = usage + rest
    for of_the_zoo, ours in COMMANDS.items():
        commands = commands.replace(of_the_zoo, ours)
    card.text = f"{start}\n{section}{commands}"
    card.data.tags = [*(card.data.tags or []), TAG]
    card.save(path)


def section_of(model: RGRL, results: dict[str, float], has_gif: bool) -> str:
    """
    :param model: The agent.
    :param results: What the zoo has measured: ``mean_reward``, ``std_reward``, ``n_eval_episodes``, ``is_deterministic``.
    :param has_gif: Whether there is a GIF.
    :return: Evaluation, an episode, a plan, and what has to be installed, as Markdown.
    """
    kind = "deterministic" if results["is_deterministic"] else "noisy"
    lines = [
        "## Evaluation",
        "",
        f"Mean return **{results['mean_reward']:.1f} ± {results['std_reward']:.1f}** (standard deviation) over "
        f"{results['n_eval_episodes']} episodes of {kind} decisions, after {model.num_timesteps:,} steps of training.",
        "",
        *([f"![An episode]({GIF})", ""] if has_gif else []),
        "## How it decides",
        "",
        f"Reversal Generative Reinforcement Learning has no policy network. An ensemble of {model.ensemble_size} nets has "
        f"learned what sequences of actions bring. A decision begins with {model.n_candidates} noisy plans of "
        f"{model.plan_horizon} actions, and gradient descent on the actions moves them toward a desired reward.",
        "",
        f"![How a plan forms]({PLAN})",
        "",
        "*The first decision of an episode. Left: the return that the ensemble expects of each plan, and how much the nets "
        "differ about it. Right: the plan whose first action is executed, as it forms.*",
        "",
        "The commands below need the package `sb3-rgrl`, which brings the RL Zoo along. `RGRL.load` runs no code of the "
        "agent's file; the zoo's scripts trust the folder that they are given, see SECURITY.md of that package.",
        "",
    ]
    return "\n".join(lines)
