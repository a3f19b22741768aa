"""What is written to the log, under which names."""

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import safe_mean

from sb3_rgrl.policies import Plan


class Update(NamedTuple):
    """How one update went, mean over the members."""

    loss: float
    ewc_penalty: float
    reward_error: float
    return_error: float
    state_loss: float


def log_updates(logger: Logger, updates: Sequence[Update], n_updates: int) -> None:
    """
    :param logger: Where to.
    :param updates: Those of one learning phase.
    :param n_updates: How many there were in all phases.
    """
    logger.record("train/n_updates", n_updates, exclude="tensorboard")
    for name in Update._fields:
        logger.record(f"train/{name}", np.mean([getattr(update, name) for update in updates]))


def log_plan(logger: Logger, plan: Plan, milliseconds: float) -> None:
    """
    :param logger: Where to.
    :param plan: A decision for each environment.
    :param milliseconds: How long each took.
    """
    logger.record_mean("plan/error_before", float(plan.error_before.mean()))
    logger.record_mean("plan/error_after", float(plan.error.mean()))
    logger.record_mean("plan/disagreement", float(plan.disagreement.mean()))
    logger.record_mean("plan/ms_per_decision", milliseconds)


def dump_progress(agent: BaseAlgorithm) -> None:
    """
    Write how far it is and how well it did, and all that was recorded since the last time.

    :param agent: The agent.
    """
    assert agent.ep_info_buffer is not None
    assert agent.ep_success_buffer is not None
    time_elapsed = max((time.time_ns() - agent.start_time) / 1e9, sys.float_info.epsilon)
    fps = int((agent.num_timesteps - agent._num_timesteps_at_start) / time_elapsed)
    agent.logger.record("time/episodes", agent._episode_num, exclude="tensorboard")
    if len(agent.ep_info_buffer) > 0 and len(agent.ep_info_buffer[0]) > 0:
        agent.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in agent.ep_info_buffer]))
        agent.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in agent.ep_info_buffer]))
    agent.logger.record("time/fps", fps)
    agent.logger.record("time/time_elapsed", int(time_elapsed), exclude="tensorboard")
    agent.logger.record("time/total_timesteps", agent.num_timesteps, exclude="tensorboard")
    if len(agent.ep_success_buffer) > 0:
        agent.logger.record("rollout/success_rate", safe_mean(agent.ep_success_buffer))
    agent.logger.dump(step=agent.num_timesteps)
