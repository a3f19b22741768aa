"""
Hyperparameter search with ``rl_zoo3 train --algo rgrl -optimize``.

A trial stores numbers and strings. :func:`convert_rgrl_params` makes constructor arguments of them, both while the
search runs and when the zoo loads a finished trial (``--trial-id``).
"""

from __future__ import annotations

from typing import Any

import optuna
from torch import nn

NET_ARCHS: dict[str, list[int]] = {
    "tiny": [64],
    "small": [64, 64],
    "medium": [128, 128],
    "big": [256, 256],
}

ACTIVATION_FNS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


def convert_rgrl_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: what :func:`sample_rgrl_params` suggested, e.g. ``trial.params``
    :return: keyword arguments of ``RGRL``
    """
    params = dict(sampled_params)
    params["gamma"] = 1 - params.pop("one_minus_gamma")
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    params["plan_horizon"] = params["sequence_length"] * params.pop("plan_sequences")
    params["n_candidates"] = params["ensemble_size"] * params.pop("candidates_per_member")
    params["gradient_steps"] = max(1, round(params["train_freq"] * params.pop("updates_per_step")))
    params["policy_kwargs"] = {
        "net_arch": list(NET_ARCHS[params.pop("net_arch")]),
        "activation_fn": ACTIVATION_FNS[params.pop("activation_fn")],
    }
    return params


def _suggest_model(trial: optuna.Trial) -> dict[str, Any]:
    """
    What the members are and how they learn.

    :param trial: the trial that suggests
    :return: name -> suggested value
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 4, 8),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.1, log=True),
        "ensemble_size": trial.suggest_int("ensemble_size", 2, 8),
        "per_exponent": trial.suggest_float("per_exponent", 0.0, 1.0),
        "learning_starts": trial.suggest_categorical("learning_starts", [100, 200, 500, 1000, 2000]),
        "train_freq": trial.suggest_categorical("train_freq", [10, 25, 50, 100]),
        "updates_per_step": trial.suggest_categorical("updates_per_step", [0.25, 0.5, 1.0, 2.0]),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "activation_fn": trial.suggest_categorical("activation_fn", list(ACTIVATION_FNS)),
    }


def _suggest_planner(trial: optuna.Trial) -> dict[str, Any]:
    """
    How actions are found.

    :param trial: the trial that suggests
    :return: name -> suggested value
    """
    return {
        "sequence_length": trial.suggest_categorical("sequence_length", [1, 2, 5, 10]),
        # Counted in sequences: a plan is made of whole ones, so its horizon is always a multiple.
        "plan_sequences": trial.suggest_int("plan_sequences", 2, 8),
        "n_plan_iterations": trial.suggest_int("n_plan_iterations", 2, 12),
        "candidates_per_member": trial.suggest_int("candidates_per_member", 1, 8),
        "action_learning_rate": trial.suggest_float("action_learning_rate", 0.03, 1.0, log=True),
        "action_init_std": trial.suggest_float("action_init_std", 0.3, 3.0, log=True),
    }


def sample_rgrl_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for RGRL hyperparameters; the signature is the zoo's.

    :param trial: the trial that suggests
    :param n_actions: dimension of a continuous action space, not needed
    :param n_envs: number of training environments, not needed
    :param additional_args: the zoo's arguments for other algorithms, not needed
    :return: keyword arguments of ``RGRL``
    """
    params = convert_rgrl_params({**_suggest_model(trial), **_suggest_planner(trial)})
    # The zoo prints a trial's attributes: show the values that RGRL takes where they differ from the sampled ones.
    for name in ("gamma", "batch_size", "plan_horizon", "n_candidates", "gradient_steps"):
        trial.set_user_attr(name, params[name])
    return params
