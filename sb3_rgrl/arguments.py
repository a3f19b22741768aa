"""Arguments of agents and policies: what cannot be is told before anything is made of it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_rgrl.goals import AIMS
from sb3_rgrl.searches import check_search


class NotAnImageError(AssertionError, ValueError):
    """Observations are no images, but a policy for images gets them: an AssertionError in SB3, a ValueError by its nature."""


def check_agent(agent: Any) -> None:
    """
    :param agent: The agent, of which those are the attributes.
    :raises ValueError: If one of them is out of its range.
    """
    for name in (
        "ensemble_size",
        "sequence_length",
        "plan_horizon",
        "n_candidates",
        "exploration_candidates",
        "batch_size",
        "buffer_size",
    ):
        check_count(name, getattr(agent, name), least=1)
    for name in (
        "learning_rate",
        "learning_starts",
        "action_learning_rate",
        "action_init_std",
        "per_exponent",
        "per_epsilon",
        "ewc_lambda",
    ):
        value = getattr(agent, name)
        if not callable(value) and not (is_number(value) and value >= 0 and np.isfinite(value)):
            raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")
    for name in ("dropout", "action_noise_correlation", "random_action_hold"):
        value = getattr(agent, name)
        if not (is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be at least 0 and less than 1, got {value!r}")
    check_count("n_plan_iterations", agent.n_plan_iterations, least=0)
    check_action_repeat(agent.action_repeat)
    if not is_count(agent.gradient_steps) or agent.gradient_steps < -1:
        raise ValueError(f"gradient_steps must be -1 (as many as steps) or a larger integer, got {agent.gradient_steps!r}")
    if not (is_number(agent.gamma) and 0 < agent.gamma <= 1):
        raise ValueError(f"gamma must be more than 0 and at most 1, got {agent.gamma!r}")


def is_count(value: Any) -> bool:
    """
    :param value: Anything.
    :return: Whether it is an integer, and not True or False, which count as 1 and 0 in Python.
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """
    :param value: Anything.
    :return: Whether it is a real number, and not True or False.
    """
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_count(name: str, value: Any, least: int) -> None:
    """
    :param name: Name of an argument.
    :param value: Its value.
    :param least: The least that it can be.
    :raises ValueError: If it is no integer, or less.
    """
    if not is_count(value) or value < least:
        raise ValueError(f"{name} must be an integer, at least {least}, got {value!r}")


def check_action_repeat(action_repeat: Any) -> None:
    """
    :param action_repeat: How many steps of the environment an action lasts, or None.
    :raises ValueError: If it is something else.
    """
    if action_repeat is not None and not (is_count(action_repeat) and action_repeat >= 1):
        raise ValueError(f"action_repeat must be None or a number of steps, at least 1, got {action_repeat!r}")


def as_train_freq(train_freq: int | tuple[int, str] | TrainFreq) -> TrainFreq:
    """
    :param train_freq: ``n``, ``(n, "step")`` or ``(n, "episode")``.
    :return: The same in SB3's form.
    :raises ValueError: If it is none of these.
    """
    frequency, unit = train_freq if isinstance(train_freq, (tuple, list)) else (train_freq, "step")
    try:
        parsed = TrainFreq(frequency, TrainFrequencyUnit(unit))
    except ValueError as error:
        raise ValueError(f"The unit of the `train_freq` must be either 'step' or 'episode' not '{unit}'!") from error
    if not is_count(frequency) or frequency < 1:
        raise ValueError(f"The frequency of `train_freq` must be a positive integer and not {frequency!r}")
    return parsed


def check_net_arch(net_arch: Any) -> None:
    """
    :param net_arch: Widths of the members' hidden layers, or None.
    :raises ValueError: If it is something else, such as SB3's dictionaries for actors and critics.
    """
    if net_arch is None:
        return
    is_list = isinstance(net_arch, (Sequence, np.ndarray)) and not isinstance(net_arch, str)
    if not is_list or not all(isinstance(width, (int, np.integer)) for width in net_arch):
        raise ValueError(
            f"net_arch must be the widths of the hidden layers, such as [64, 64]: all nets of RGRL are members of the same "
            f"kind, there is no actor and no critic; got {net_arch!r}"
        )


def check_policy(
    *,
    plan_horizon: int,
    sequence_length: int,
    action_repeat: int | None,
    aim: str,
    search: str,
    action_initializer: str,
    n_plan_iterations: int,
    n_warm_iterations: int | None,
    execute_steps: int | None,
    exploration_candidates: int,
    exploration_members: int | None,
    plan_temperature: float,
    plan_state_noise: float,
    return_expectile: float,
    return_trust: float | None,
    return_lambda: float,
    windows_per_sample: int | None,
) -> None:
    """
    Those of :class:`~sb3_rgrl.policies.EnsemblePolicy` that depend on each other, or that no other part of it checks.

    :raises ValueError: If one of them is out of its range.
    """
    if plan_horizon < 1 or plan_horizon % sequence_length != 0:
        raise ValueError(
            f"plan_horizon must be a multiple of sequence_length, for members are unrolled window after window: "
            f"got {plan_horizon} and {sequence_length}"
        )
    check_action_repeat(action_repeat)
    if aim not in AIMS:
        raise ValueError(f"aim must be one of {AIMS}, got {aim!r}")
    check_search(search, action_initializer, n_warm_iterations)
    if n_warm_iterations is not None and not 0 <= n_warm_iterations <= n_plan_iterations:
        raise ValueError(
            f"n_warm_iterations must be 0 to n_plan_iterations, which is {n_plan_iterations}, got {n_warm_iterations}"
        )
    if execute_steps is not None and execute_steps < 1:
        raise ValueError(f"execute_steps must be at least 1, got {execute_steps}")
    if exploration_candidates < 1:
        raise ValueError(f"exploration_candidates must be at least 1, got {exploration_candidates}")
    if exploration_members is not None:
        check_count("exploration_members", exploration_members, least=1)
    if not 0.0 <= plan_temperature < math.inf:
        raise ValueError(f"plan_temperature must be finite and not negative, got {plan_temperature}")
    if not 0.0 <= plan_state_noise < math.inf:
        raise ValueError(f"plan_state_noise must be finite and not negative, got {plan_state_noise}")
    check_returns(aim, return_expectile, return_trust, return_lambda)
    if windows_per_sample is not None and windows_per_sample < 1:
        raise ValueError(f"windows_per_sample must be at least 1, got {windows_per_sample}")


def check_returns(aim: str, return_expectile: float, return_trust: float | None, return_lambda: float) -> None:
    """
    What is learned of returns, and how much of it counts in plans.

    :raises ValueError: If one of them is out of its range, or says nothing with this aim.
    """
    if not 0.0 < return_expectile < 1.0:
        raise ValueError(f"return_expectile must be more than 0 and less than 1, got {return_expectile}")
    if return_trust is not None and not 0.0 <= return_trust <= 1.0:
        raise ValueError(f"return_trust must be None or a number from 0 to 1, got {return_trust}")
    if not 0.0 < return_lambda <= 1.0:
        raise ValueError(
            f"return_lambda must be more than 0 and at most 1, got {return_lambda}; to look one window ahead alone, take a "
            "plan_horizon of sequence_length"
        )
    if return_lambda < 1.0 and aim != "return":
        raise ValueError(
            f"return_lambda={return_lambda} weighs returns, but aim={aim!r} aims at each reward: take aim='return', or leave "
            "return_lambda at 1"
        )
