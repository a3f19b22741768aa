"""Pictures of what an agent has in mind while it learns, in TensorBoard."""

import warnings
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture
from stable_baselines3.common.callbacks import BaseCallback, EventCallback
from stable_baselines3.common.logger import CSVOutputFormat, Figure, HumanOutputFormat, JSONOutputFormat, KVWriter

from sb3_rgrl import plots
from sb3_rgrl.beliefs import Beliefs
from sb3_rgrl.components import component_of, rewards_of_step
from sb3_rgrl.policies import EnsemblePolicy
from sb3_rgrl.rgrl import RGRL


class PlanPicturesCallback(BaseCallback):
    """
    Draws plans and beliefs into TensorBoard while an agent learns, as ``plan/trace`` and ``plan/belief``, see
    :func:`sb3_rgrl.plots.plan_trace` and :func:`sb3_rgrl.plots.belief`. Learning goes on as it would without it, bit by bit.

    It must see every step, so it does not belong into :class:`EveryNTimesteps`.

    :param n_steps: How many environment steps are between two pictures. There is one more at the end.
    :param plan: Whether to draw plans, from the first decision on that is not random.
    :param belief: Whether to draw beliefs.
    :param observation: Where to plan for the picture, one observation as the agent gets it; None: wherever the first
        environment is. The plan is made for the picture, deterministic and from noise alone.
    :param action_names: See :func:`sb3_rgrl.plots.plan_trace`.
    :param verbose: Verbosity level.
    :param component: Of reward vectors, the component that is drawn.
    :raises ValueError: If ``n_steps`` is less than 1.
    """

    def __init__(
        self,
        n_steps: int = 1_000,
        plan: bool = True,
        belief: bool = True,
        observation: np.ndarray | dict[str, np.ndarray] | None = None,
        action_names: list[str] | None = None,
        verbose: int = 0,
        component: int = 0,
    ) -> None:
        super().__init__(verbose)
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        self.n_steps, self.plan, self.belief = n_steps, plan, belief
        self.observation, self.action_names, self.component = observation, action_names, component
        self.beliefs: Beliefs | None = None
        """What was expected and received so far, for :func:`sb3_rgrl.plots.belief`."""
        self._last_plans: tuple[np.ndarray, ...] | None = None
        self._last_step, self._last_drawn = 0, 0
        self._last_obs: Any = None

    def _init_callback(self) -> None:
        if not isinstance(self.model, RGRL):
            raise ValueError(f"PlanPicturesCallback draws what RGRL has in mind, but the agent is {type(self.model).__name__}")

    def _on_training_start(self) -> None:
        # A list tells of its own parent no sooner.
        if isinstance(self.parent, EventCallback):
            raise ValueError(
                f"PlanPicturesCallback has to see every step, but {type(self.parent).__name__} hides most of them: give it to "
                "learn() itself, n_steps says how often it draws"
            )
        model = self._agent()
        began_anew = model.num_timesteps < max(self._last_step, 1)
        if self.beliefs is None or began_anew or self.beliefs.n_envs != model.n_envs:
            self.beliefs = Beliefs(model.n_envs, model.gamma)
            self._last_step = self._last_drawn = model.num_timesteps
        if not self._writers():
            warnings.warn(
                "There is no TensorBoard folder to draw into, so there will be no pictures: "
                "give the agent one, RGRL(..., tensorboard_log=folder)",
                stacklevel=2,
            )

    def _on_step(self) -> bool:
        if self.belief:
            self._take_in_step()
        self._last_obs, self._last_step = self._agent()._last_obs, self.num_timesteps
        if self.num_timesteps - self._last_drawn >= self.n_steps:
            self._draw()
        return True

    def _on_training_end(self) -> None:
        if self._last_drawn < self.num_timesteps:
            self._draw()

    def _take_in_step(self) -> None:
        """Remember what was expected of this step, before the agent stores it, and what it brought."""
        model, beliefs = self._agent(), self.beliefs
        assert beliefs is not None
        assert model._last_episode_starts is not None
        if self.num_timesteps - self._last_step != model.n_envs:
            beliefs.forget_running()
        for env in np.flatnonzero(model._last_episode_starts):
            # Environments were reset in the middle of it; else it has ended, and there is nothing left to end.
            beliefs.end(int(env))
        plans = model._last_plans
        # Random actions leave the last plans as they are.
        if plans is not None and plans is not self._last_plans:
            policy: EnsemblePolicy = model.policy
            actions = policy.codec.decode(policy.codec.execute(plans[0].reshape(-1, policy.codec.dim)))
            expected = self._of_component(policy.predict_return(model._last_obs, actions).cpu().numpy())  # type: ignore[arg-type]
            horizon = None if policy.goal().return_weight > 0 else policy.plan_horizon
            # Plans of which more was executed are older decisions.
            beliefs.decide(self.num_timesteps, expected, horizon, plans[1] == 1)
        self._last_plans = plans
        normalizer, infos = model.get_vec_normalize_env(), self.locals["infos"]
        rewards = rewards_of_step(self.locals["rewards"], infos, model.policy.reward_shape, normalizer)
        dones = np.asarray(self.locals["dones"], dtype=bool)
        cut_off = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        beliefs.receive(self._of_component(rewards), dones, dones & ~cut_off)

    def _of_component(self, rewards: np.ndarray) -> np.ndarray:
        return component_of(rewards, self._agent().policy.reward_shape, self.component)

    def _draw(self) -> None:
        writers = self._writers()
        if not writers:
            return
        self._last_drawn = self.num_timesteps
        assert self.beliefs is not None
        if self.plan and self._agent()._last_plans is not None:
            observation = self._first_observation() if self.observation is None else self.observation
            names, component = self.action_names, self.component
            picture = plots.plan_trace(self._agent().policy, observation, action_names=names, component=component)
            self._write(writers, "plan/trace", picture)
        if self.belief and len(self.beliefs.decisions().step) > 0:
            self._write(writers, "plan/belief", plots.belief(self.beliefs.decisions()))

    def _first_observation(self) -> np.ndarray | dict[str, np.ndarray]:
        if isinstance(self._last_obs, dict):
            return {key: part[0] for key, part in self._last_obs.items()}
        first: np.ndarray = self._last_obs[0]
        return first

    def _write(self, writers: list[KVWriter], name: str, picture: Picture) -> None:
        # Not through `record`: pictures would wait for the next dump, and what is left at the end of training be lost.
        for writer in writers:
            writer.write({name: Figure(picture, close=True)}, {name: ()}, self.num_timesteps)

    def _writers(self) -> list[KVWriter]:
        text = (HumanOutputFormat, CSVOutputFormat, JSONOutputFormat)
        return [writer for writer in self.logger.output_formats if not isinstance(writer, text)]

    def _agent(self) -> RGRL:
        assert isinstance(self.model, RGRL)
        return self.model
