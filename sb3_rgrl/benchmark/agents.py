"""Who is measured: small agents that have seen a little of CartPole-v1, so that they have units and know returns."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
import yaml
from torch import nn

from sb3_rgrl.rgrl import RGRL
from sb3_rgrl.zoo import default_config_path

ENV_ID = "CartPole-v1"
N_STEPS = 240
"""Steps that an agent has seen: some of its default 200 random ones, and then a few updates and decisions."""

MLP_MEMBERS: dict[str, Any] = {
    "policy": "MlpEnsemblePolicy",
    "ensemble_size": 5,
    "plan_horizon": 15,
    "sequence_length": 5,
    # A decision is a plan.
    "policy_kwargs": {"net_arch": [64, 64], "execute_steps": 1},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "S": {**MLP_MEMBERS, "n_candidates": 20},
    "L": {**MLP_MEMBERS, "n_candidates": 320},
    "R": {
        **MLP_MEMBERS,
        "n_candidates": 20,
        "policy": "GruEnsemblePolicy",
        "policy_kwargs": {"net_arch": [64], "execute_steps": 1},
    },
}
"""S: 5 members of two hidden layers of 64, 4 candidates per member, T = 15, t = 5. L: 64 candidates per member. R: members
with one recurrent layer of 64."""


def shipped_setting(env_id: str = ENV_ID) -> dict[str, Any]:
    """
    :param env_id: An environment of ``hyperparams/rgrl.yml``.
    :return: What the zoo hands to :class:`RGRL` there, ``policy`` included.
    """
    entry = yaml.safe_load(default_config_path().read_text(encoding="utf-8"))[env_id]
    known = inspect.signature(RGRL).parameters
    setting = {name: value for name, value in entry.items() if name in known}
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        # The zoo evaluates them when they are text.
        if isinstance(setting.get(name), str):
            setting[name] = eval(setting[name], {"nn": nn, "th": th})
    return setting


def with_policy_kwargs(setting: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """
    :param setting: Arguments of :class:`RGRL`.
    :param changes: Arguments of its policy.
    :return: The same with these.
    """
    return {**setting, "policy_kwargs": {**setting.get("policy_kwargs", {}), **changes}}


def make_agent(setting: dict[str, Any], device: str = "cpu", **changes: Any) -> RGRL:
    """
    :param setting: Arguments of :class:`RGRL` without the environment.
    :param device: Where it computes.
    :param changes: Arguments that replace those of the setting.
    :return: An agent that has seen a little of CartPole-v1.
    """
    arguments = {"seed": 0, "device": device, **setting, **changes}
    model = RGRL(env=ENV_ID, **arguments)
    return model.learn(max(N_STEPS, model.learning_starts + 40), log_interval=None)


def seen_by(model: RGRL, n_states: int) -> Iterator[np.ndarray]:
    """
    :param model: An agent that has seen something.
    :param n_states: Number n of observations at a time.
    :return: Batches of what it saw, shape (n, ``*obs_shape``), in a row, without end.
    """
    assert model.replay_buffer is not None
    observations = model.replay_buffer.observations
    assert isinstance(observations, np.ndarray)
    seen = observations[: model.replay_buffer.size()]
    batches = [seen[(k * n_states + np.arange(n_states)) % len(seen)] for k in range(len(seen))]
    while True:
        yield from batches


class Decider:
    """
    Makes one decision after the other, each starting from the last plans.

    :param model: Whose.
    :param n_states: In how many environments at a time.
    """

    def __init__(self, model: RGRL, n_states: int) -> None:
        self.model, self.observations = model, seen_by(model, n_states)
        self.plans: tuple[np.ndarray, ...] | None = None
        self.starts = np.zeros(n_states, dtype=bool)

    def __call__(self) -> None:
        """Decide, as ``evaluate_policy`` does."""
        observation = next(self.observations)
        _, self.plans = self.model.predict(observation, self.plans, self.starts, deterministic=True)
