"""How an ensemble decides: plans begin, are moved toward what is desired, and the best is chosen, or the mean of the good."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor

from sb3_rgrl.choosing import mean_of_members, pick_best
from sb3_rgrl.court import Court, Draws
from sb3_rgrl.execution import go_on, left_of
from sb3_rgrl.expecting import ExpectingPolicy
from sb3_rgrl.goals import Goal
from sb3_rgrl.imagination import Units
from sb3_rgrl.judges import AutogradJudges, Case, Judges
from sb3_rgrl.mean_plans import Choice, mean_of_good
from sb3_rgrl.nearby import STATE_DRAWS, state_offsets
from sb3_rgrl.observations import as_arrays
from sb3_rgrl.planner import Descent, MwmSgdPlanner, as_numpy
from sb3_rgrl.searches import Evaluations, Search, count_evaluations, make_search
from sb3_rgrl.starts import PlanStarts


@dataclass
class Plan:
    """
    What was decided for n states, and how it came about. T is the horizon, m the size of the ensemble.

    :param actions: The plans as actions of the environment, shape (n, T, ``*action_space.shape``).
    :param preactivated: The plans as the planner moves them, shape (n, T, action_dim).
    :param error_before: Mean error of the initial plans, shape (n,).
    :param error: Error of the chosen plan, mean over the ensemble, shape (n,).
    :param disagreement: Standard deviation of that error over the members, shape (n,).
    :param descent: The population on its way, to look at.
    :param weights: How much each of its plans in the end counts in the decision, shape (P, n): 1 for one of them, or the
        weights of the mean that is executed, see ``plan_temperature``.
    """

    actions: np.ndarray
    preactivated: np.ndarray
    error_before: np.ndarray
    error: np.ndarray
    disagreement: np.ndarray
    descent: Descent[Any]
    weights: np.ndarray


class DecidingPolicy(ExpectingPolicy):
    """The part of :class:`~sb3_rgrl.policies.EnsemblePolicy` that plans."""

    # Agents that plan anew at each step change their minds each time; those that look too seldom crash (docs/tried.md).
    FOLLOWED_STEPS: ClassVar[int] = 3

    planner: MwmSgdPlanner
    starts: PlanStarts
    search: str
    exploration_candidates: int
    exploration_members: int | None
    plan_temperature: float
    plan_state_noise: float
    warm_start: bool
    execute_steps: int | None
    n_warm_iterations: int | None
    fast_gradients: bool
    compile_planning: bool
    prediction_generator: np.random.Generator
    _court: Court

    def seed_noise(self) -> None:
        """Seed the noise of plans and the draws of thinned members anew, from torch's generator."""
        seed = int(th.randint(2**62, ()))
        # Predictions draw from a generator of their own: looking at an agent, as evaluation does, must not change how it
        # learns.
        self.generator = _generator(seed)
        self.prediction_generator = np.random.Generator(np.random.PCG64(seed).jumped())

    def plan(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        generator: np.random.Generator | None = None,
    ) -> Plan:
        """
        Plan, and tell how it went.

        :param observation: One observation or n of them.
        :param state: The last plans, of which one action was executed, or what :meth:`predict` returned with them, to start
            from; None: from noise alone.
        :param episode_start: Where an episode begins, so that the last plan means nothing, shape (n,).
        :param deterministic: Whether the noise depends on nothing but the observation.
        :param generator: Source of the noise where it does not; None: one that learning has no part in.
        :return: The plan for each observation.
        """
        # The caller may be in no_grad or inference_mode; planning needs gradients.
        with th.inference_mode(False), th.enable_grad():
            observation = as_arrays(observation)
            states = self.standardised_states(observation)
            if deterministic:
                generator = None
            elif generator is None:
                generator = self.prediction_generator
            starts = self._starts_of_search()
            if generator is None:
                plans = starts.of_states(self._noise_keys(observation, states))
            else:
                plans = starts.fresh(len(states), generator)
            n_iterations = None
            if state is not None and self.warm_start:
                last = state[0] if len(state) == 1 else left_of(state[0], state[1] // self.action_repeat)
                plans = starts.warm(plans, last, episode_start)
                n_iterations = self._iterations_when_warm(len(states), episode_start)
            n_considered = self._n_considered(deterministic)
            if generator is None and not self._in_closed_form(states) and states.device.type == "cpu":
                return self._decide_one_by_one(states, plans, n_considered, n_iterations)
            return self._decide(states, plans, n_considered, generator, n_iterations)

    def act(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
        generator: np.random.Generator | None = None,
        watch: Callable[[Plan], None] | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """
        The next action of each plan, and new plans where ``execute_steps`` were made.

        :param observation: One observation or n of them.
        :param state: What the last call returned; None: nothing was planned yet.
        :param episode_start: Where an episode begins, shape (n,).
        :param deterministic: See :meth:`plan`.
        :param generator: See :meth:`plan`.
        :param watch: Is told the plans if some are made.
        :return: Actions, shape (n, ``*action_space.shape``), and the state for the next call, see :func:`go_on`.
        """

        def plan_anew(seen: Any, last: tuple[np.ndarray, ...] | None, starts: np.ndarray | None) -> np.ndarray:
            plan = self.plan(seen, last, starts, deterministic, generator)
            if watch is not None:
                watch(plan)
            return plan.preactivated

        n_steps, repeat = self.followed_steps, self.action_repeat
        encoded, after = go_on(plan_anew, self.codec, n_steps, repeat, observation, state, episode_start)
        return self.codec.decode(encoded), after

    @property
    def followed_steps(self) -> int:
        """For how many steps of the environment a plan is followed before there is a new one, see ``execute_steps``."""
        repeat, wanted = self.action_repeat, self.execute_steps
        if wanted is None:
            wanted = self.FOLLOWED_STEPS if repeat == 1 else min(self.FOLLOWED_STEPS, repeat)
        n_actions = self.starts.horizon if self.scales.foresight.suffices else 1
        return min(wanted, n_actions * repeat)

    def _noise_keys(self, observation: np.ndarray | dict[str, np.ndarray], states: th.Tensor) -> np.ndarray:
        """
        :return: What the noise of a deterministic decision depends on, the same to the last bit for an observation alone
            and for one among many, shape (n, k).
        """
        extractor = self.features_extractor
        # Without images, SB3's extractor for dicts puts parts side by side: such an agent decides as one that sees them so.
        puts_side_by_side = type(extractor) is CombinedExtractor and next(extractor.parameters(), None) is None
        if type(extractor) is FlattenExtractor or puts_side_by_side:
            return as_numpy(states)
        # Nets round in another way for each number of rows: their features are no key, the observation itself is.
        tensors, _ = self.obs_to_tensor(observation)
        parts = [tensors[name] for name in sorted(tensors)] if isinstance(tensors, dict) else [tensors]
        return np.concatenate([as_numpy(part).reshape(len(states), -1) for part in parts], axis=1)

    @property
    def searcher(self) -> Search:
        """What finds plans: the planner, or a control in its place."""
        return make_search(self.search, self.planner, self.starts.correlation)

    def _starts_of_search(self) -> PlanStarts:
        n_starts = self.searcher.n_starts(self.starts.n_plans)
        return self.starts if n_starts == self.starts.n_plans else replace(self.starts, n_plans=n_starts)

    def _n_considered(self, deterministic: bool) -> int:
        return self.starts.n_plans if deterministic else min(self.exploration_candidates, self.starts.n_plans)

    def _executes_means(self, deterministic: bool) -> bool:
        # Without the noise of single plans there is less to learn from (docs/tried.md, "The mean of the best plans").
        return deterministic and self.codec.has_means and self.plan_temperature > 0.0

    def _scores_nearby(self, deterministic: bool) -> bool:
        return deterministic and self.plan_state_noise > 0.0

    def _iterations_when_warm(self, n_states: int, episode_start: np.ndarray | None) -> np.ndarray | None:
        """
        :return: Iterations of each state, shape (n,); None: all have the same as ever.
        """
        n_cold, n_warm = self.planner.n_iterations, self.n_warm_iterations
        if n_warm is None:
            n_warm = math.ceil(n_cold / 3)
        if not self.searcher.needs_gradients or n_warm >= n_cold:
            return None
        n_iterations = np.full(n_states, n_warm)
        if episode_start is not None:
            n_iterations[np.asarray(episode_start, dtype=bool)] = self.planner.n_iterations
        return n_iterations

    def _decide_one_by_one(
        self, states: th.Tensor, plans: np.ndarray, n_considered: int, n_iterations: np.ndarray | None
    ) -> Plan:
        """
        Each state as if it were alone. Torch rounds in another way for each number of rows; Adam makes whole steps of
        gradients that are no more than rounding, and rounding tells which of the plans with the same actions is the best.

        :param states: See :meth:`_decide`.
        :param plans: See :meth:`_decide`.
        :param n_considered: See :meth:`_decide`.
        :param n_iterations: See :meth:`_decide`.
        :return: See :meth:`_decide`.
        """
        decisions = []
        for k in range(len(states)):
            own = None if n_iterations is None else n_iterations[k : k + 1]
            decisions.append(self._decide(states[k : k + 1], plans[:, k : k + 1].copy(), n_considered, None, own))
        return decisions[0] if len(decisions) == 1 else _side_by_side(decisions)

    def _decide(
        self,
        states: th.Tensor,
        plans: np.ndarray,
        n_considered: int,
        generator: np.random.Generator | None,
        n_iterations: np.ndarray | None = None,
    ) -> Plan:
        """
        :param states: Standardised states, shape (n, d).
        :param plans: Initial pre-activated actions, shape (P, n, T, action_dim).
        :param n_considered: How many of them can be chosen in the end, drawn at random.
        :param generator: Source of the draws of members and of the units that they miss; None: the same ones each time.
        :param n_iterations: See :meth:`MwmSgdPlanner.descend`.
        :return: The best plan for each state.
        """
        judges, draws = self._judges(states, len(plans), generator)
        searcher = self.searcher
        descent: Descent[Any]
        if n_iterations is None:
            judge_fn = judges.gradient if searcher.needs_gradients else judges.error
            descent = searcher.descend(judges.take(plans), judge_fn, draws.dealt)
        else:
            descent = self.planner.descend(judges.take(plans), judges.gradient, draws.dealt, n_iterations)
        considered = None
        if n_considered < len(descent.preactivated):
            considered = draws.generator.permutation(len(descent.preactivated))[:n_considered]
        voters = None if generator is None else self._voters(len(states), generator)
        return self._choose(judges, considered, voters, descent, deterministic=generator is None)

    def _voters(self, n_states: int, generator: np.random.Generator) -> np.ndarray | None:
        """
        :return: Which members choose among the plans while training, see :func:`pick_best`.
        """
        n_members, n_voters = self.ensemble_size, self.exploration_members
        if n_voters is None or n_voters >= n_members:
            return None
        everyone = np.broadcast_to(np.arange(n_members), (n_states, n_members))
        voters: np.ndarray = generator.permuted(everyone, axis=1)[:, :n_voters].T
        return voters

    def _judges(self, states: th.Tensor, population: int, generator: np.random.Generator | None) -> tuple[Judges[Any], Draws]:
        """
        :param states: Standardised states, shape (n, d).
        :param population: Number P of plans.
        :param generator: See :meth:`_decide`.
        :return: Who judges plans, and what is drawn for that.
        """
        in_closed_form, deterministic = self._in_closed_form(states), generator is None
        if in_closed_form and deterministic and self.search == "gradient":
            draws = self._court.fixed_draws(self.planner, self.ensemble, population)
        else:
            generator = generator or _generator(0)
            draws = Draws(generator, [], generator)
        offsets = self._offsets(states, deterministic)
        if not in_closed_form:
            case = Case(states, self.goal(), self.units(), draws.generator, offsets)
            return AutogradJudges(self.ensemble, self.codec, case), draws
        n_draws, depend_on = max(self.planner.n_iterations, 1), self._depend_on()
        return self._court.judges(self.ensemble, self.codec, states, offsets, self._aims, depend_on, draws, n_draws), draws

    def _offsets(self, states: th.Tensor, deterministic: bool) -> th.Tensor | None:
        """
        :param states: Standardised states, shape (n, d).
        :param deterministic: See :meth:`plan`.
        :return: See :class:`~sb3_rgrl.judges.Case`.
        """
        if not self._scores_nearby(deterministic):
            return None
        noise = state_offsets(self.ensemble_size, states.shape[1], self.plan_state_noise)
        return th.from_numpy(noise).to(states)

    def _in_closed_form(self, states: th.Tensor) -> bool:
        # Closed forms work in place: outside of the CPU and in other precisions autograd does.
        on_cpu = states.device.type == "cpu" and states.dtype == self.discounts.dtype == th.float32
        if not (on_cpu and self.fast_gradients):
            return False
        return self._court.can_judge(self.ensemble, self.action_space, self.compile_planning)

    def _aims(self) -> tuple[Goal, Units]:
        return self.goal(), self.units()

    def _depend_on(self) -> tuple[list[th.Tensor], Hashable]:
        """
        :return: All that members, goal and units depend on.
        """
        scales, desired = self.scales, self.desired_reward
        units = [scales.reward, scales.step_reward, scales.end_reward, scales.return_to_go]
        tensors = [
            *self.ensemble.parameters(),
            *(scales.state.std, scales.state_change.std),
            *(part for unit in units for part in (unit.mean, unit.std)),
            *(scales.best_reward, scales.best_return, scales.trust.value, scales.action_repeat, self.discounts),
            # Whether an end was seen.
            scales.end_reward.count,
        ]
        aimed_at = tuple(desired) if isinstance(desired, list) else desired
        others = (self.aim, aimed_at, self.gamma, self.return_weight, self.return_trust, self.return_lambda)
        return tensors, others

    def _choose(
        self,
        judges: Judges[Any],
        considered: np.ndarray | None,
        voters: np.ndarray | None,
        descent: Descent[Any],
        deterministic: bool,
    ) -> Plan:
        """
        :param judges: Who judges plans.
        :param considered: Which of the plans at the end of the descent can be chosen; None: all.
        :param voters: Which members choose, see :func:`pick_best`.
        :param descent: How they came about.
        :param deterministic: Whether it may be a mean of them.
        :return: The best plan for each state, or a mean of all of them, see ``plan_temperature``.
        """
        plans = descent.preactivated
        candidates = plans if considered is None else plans[considered]
        errors = judges.score(candidates)
        best, error, disagreement = map(as_numpy, pick_best(errors, voters))
        if not np.isfinite(error).all():
            raise ValueError(
                "The error of the best plan is not finite: the observation or the members' weights are not finite, "
                "or action_learning_rate is far too large."
            )
        states = np.arange(len(best))
        weights = np.zeros(plans.shape[:2], dtype=np.float32)
        weights[best if considered is None else considered[best], states] = 1.0
        choice = Choice(weights, as_numpy(candidates[best, states]), error, disagreement)
        if self._executes_means(deterministic):
            # Means over members, for these may judge anew where the last errors are.
            of_plans = as_numpy(mean_of_members(errors))
            choice = mean_of_good(judges, self.codec, as_numpy(plans), of_plans, choice, self.plan_temperature)
        decided = choice.preactivated
        executed = self.codec.execute(decided.reshape(-1, decided.shape[-1]))
        return Plan(
            actions=self.codec.decode(executed).reshape(*decided.shape[:2], *(self.action_space.shape or ())),
            preactivated=decided,
            error_before=as_numpy(descent.steps[0][1].mean(0)) if descent.steps else error,
            error=choice.error,
            disagreement=choice.disagreement,
            descent=descent,
            weights=choice.weights,
        )

    def evaluations_per_decision(self, deterministic: bool = True) -> Evaluations:
        """
        :param deterministic: See :meth:`plan`.
        :return: How often a member judges a plan for one observation, a gradient counted as two: the same for all ways to
            search. With ``n_warm_iterations`` those that go on from the last decision take fewer.
        """
        n_considered = self._n_considered(deterministic)
        counted = count_evaluations(self.searcher, self.ensemble_size, self.starts.n_plans, n_considered)
        # All members judge the mean once more, where it is good at once.
        of_mean = self.ensemble_size if self._executes_means(deterministic) else 0
        n_times = STATE_DRAWS if self._scores_nearby(deterministic) else 1
        return counted._replace(scoring=n_times * (counted.scoring + of_mean))


def _side_by_side(plans: list[Plan]) -> Plan:
    """
    :param plans: Decisions for one state each.
    :return: The decision for all of them. What needed fewer iterations stays as it was in the end.
    """
    n_steps = max(len(plan.descent.steps) for plan in plans)
    rows = []
    for plan in plans:
        last, steps = plan.descent.preactivated, plan.descent.steps
        stays = last, th.full(last.shape[:2], float(plan.error[0]), dtype=last.dtype)
        rows.append([*steps, *[stays] * (n_steps - len(steps))])
    joined = []
    for row in zip(*rows, strict=True):
        joined.append((th.cat([at for at, _ in row], dim=1), th.cat([error for _, error in row], dim=1)))
    descent = Descent(th.cat([plan.descent.preactivated for plan in plans], dim=1), joined)
    return Plan(
        actions=np.concatenate([plan.actions for plan in plans]),
        preactivated=np.concatenate([plan.preactivated for plan in plans]),
        error_before=np.concatenate([plan.error_before for plan in plans]),
        error=np.concatenate([plan.error for plan in plans]),
        disagreement=np.concatenate([plan.disagreement for plan in plans]),
        descent=descent,
        weights=np.concatenate([plan.weights for plan in plans], axis=1),
    )


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))
