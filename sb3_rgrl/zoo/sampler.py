"""
Hyperparameter search with ``rl_zoo3 train --algo rgrl -optimize``.

A trial stores numbers and strings. :func:`convert_rgrl_params` makes constructor arguments of them, both while the
search runs and when the zoo loads a finished trial (``--trial-id``).

The search stays around the defaults, which are good on many tasks: what was tried of the rest is in docs/tried.md, and
trials are too dear to find that out anew. Plans are at most 70 and iterations 12, with which the slowest decision takes
20 ms or so, where the default takes one: with up to 160 plans and 18 iterations a trial on CartPole-v1 took up to five
minutes, and what such trials chose on other tasks was no better than the defaults on other seeds. The defaults are a trial
themselves, the second one: a search that found nothing better says so (docs/results.md, "Tuned by -optimize").
"""

from __future__ import annotations

from typing import Any

import optuna

# "default": by the width of the state.
NET_ARCHS: dict[str, list[int] | None] = {
    "default": None,
    "small": [64, 64],
    "medium": [128, 128],
}
# Here and of `execute_steps`, 0: as by default, where it depends on the task's time scale.
ACTION_REPEATS = [0, 1, 2, 4]
# As by default: how many updates there are for a step is searched instead.
TRAIN_FREQ = 10
# The defaults of the constructor, as a trial stores them.
DEFAULT_TRIAL: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size_pow": 6,
    "one_minus_gamma": 0.02,
    "ensemble_size": 5,
    "learning_starts": 200,
    "updates_per_step": 1.0,
    "net_arch": "default",
    "plan_horizon": 20,
    "action_repeat": 0,
    "n_plan_iterations": 6,
    "candidates_per_member": 10,
    "exploration_candidates": 5,
    "action_noise_correlation": 0.75,
    "execute_steps": 0,
    "return_lambda": 1.0,
    "uneven_actions": False,
    # Of continuous actions alone
    "action_init_std": 1.0,
    "plan_temperature": 1.0,
}


def convert_rgrl_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: what :func:`sample_rgrl_params` suggested, e.g. ``trial.params``
    :return: keyword arguments of ``RGRL``
    """
    params = dict(sampled_params)
    params["gamma"] = 1 - params.pop("one_minus_gamma")
    params["batch_size"] = 2 ** params.pop("batch_size_pow")
    params["n_candidates"] = params["ensemble_size"] * params.pop("candidates_per_member")
    params["train_freq"] = TRAIN_FREQ
    params["gradient_steps"] = max(1, round(TRAIN_FREQ * params.pop("updates_per_step")))
    params["action_repeat"] = params["action_repeat"] or None
    params["policy_kwargs"] = {
        "net_arch": NET_ARCHS[params.pop("net_arch")],
        "execute_steps": params.pop("execute_steps") or None,
        "return_lambda": params.pop("return_lambda"),
    }
    # Plans of choices have no temperature, and trials before uneven_actions was searched were without it.
    for name in ("plan_temperature", "uneven_actions"):
        if name in params:
            params["policy_kwargs"][name] = params.pop(name)
    return params


def _suggest_learning(trial: optuna.Trial) -> dict[str, Any]:
    """
    What the members are and how they learn.

    :param trial: the trial that suggests
    :return: name -> suggested value
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 7),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 5e-3, 0.1, log=True),
        "ensemble_size": trial.suggest_int("ensemble_size", 3, 7),
        "learning_starts": trial.suggest_categorical("learning_starts", [100, 200, 500]),
        "updates_per_step": trial.suggest_categorical("updates_per_step", [0.5, 1.0, 2.0, 4.0]),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "uneven_actions": trial.suggest_categorical("uneven_actions", [False, True]),
    }


def _suggest_planning(trial: optuna.Trial) -> dict[str, Any]:
    """
    How actions are found.

    :param trial: the trial that suggests
    :return: name -> suggested value
    """
    return {
        "plan_horizon": trial.suggest_int("plan_horizon", 10, 30, step=5),
        "action_repeat": trial.suggest_categorical("action_repeat", ACTION_REPEATS),
        "n_plan_iterations": trial.suggest_int("n_plan_iterations", 3, 12, step=3),
        "candidates_per_member": trial.suggest_int("candidates_per_member", 5, 10, step=5),
        "exploration_candidates": trial.suggest_categorical("exploration_candidates", [1, 5, 15, 50]),
        "action_noise_correlation": trial.suggest_categorical("action_noise_correlation", [0.0, 0.5, 0.75, 0.9]),
        "execute_steps": trial.suggest_int("execute_steps", 0, 4),
        "return_lambda": trial.suggest_categorical("return_lambda", [0.7, 0.85, 0.95, 1.0]),
    }


def _suggest_means(trial: optuna.Trial) -> dict[str, Any]:
    """
    How continuous actions are averaged: the wider plans begin, the less is left of what they do not agree on.

    :param trial: the trial that suggests
    :return: name -> suggested value
    """
    return {
        "action_init_std": trial.suggest_categorical("action_init_std", [0.7, 1.0, 1.4]),
        "plan_temperature": trial.suggest_categorical("plan_temperature", [0.0, 0.5, 1.0, 2.0]),
    }


def sample_rgrl_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for RGRL hyperparameters; the signature is the zoo's. The first trial of a study asks for a second one with the
    constructor's defaults.

    :param trial: the trial that suggests
    :param n_actions: dimension of a continuous action space; 0: it is not continuous
    :param n_envs: number of training environments, not needed
    :param additional_args: the zoo's arguments for other algorithms, not needed
    :return: keyword arguments of ``RGRL``
    """
    if trial.number == 0:
        # The zoo has no place to do this before the first trial.
        trial.study.enqueue_trial(DEFAULT_TRIAL, user_attrs={"defaults": True}, skip_if_exists=True)
    means = _suggest_means(trial) if n_actions > 0 else {}
    params = convert_rgrl_params({**_suggest_learning(trial), **_suggest_planning(trial), **means})
    # The zoo prints a trial's attributes: show the values that RGRL takes where they differ from the sampled ones.
    for name in ("gamma", "batch_size", "n_candidates", "gradient_steps"):
        trial.set_user_attr(name, params[name])
    return params
