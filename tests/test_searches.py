"""The controls, random shooting and CEM: what they find, and that they get as many evaluations as the gradient."""

import numpy as np
import pytest
import torch as th

import sb3_rgrl.judges
from sb3_rgrl import RGRL
from sb3_rgrl.closed_form import MlpClosedForm
from sb3_rgrl.mean_plans import N_TEMPERATURES
from sb3_rgrl.planner import MEMBER_CHOICES, MwmSgdPlanner
from sb3_rgrl.searches import SEARCHES, CemPlanner, RandomShooting, count_evaluations, make_search
from sb3_rgrl.starts import initial_actions
from tests.test_judges import ACTION_SPACES, CLOSED, assert_close, both_judges, make_policy
from tests.toy import SMALL

CONTROLS = ("cem", "shooting")
N_MEMBERS, N_STATES, HORIZON, ACTION_DIM = 3, 2, 4, 2


class Bowls:
    """Member i's error of a plan is the squared distance to a goal of its own, in each state another one."""

    def __init__(self, spread: float = 0.3) -> None:
        rng = np.random.default_rng(8)
        of_states = rng.normal(0.0, 1.5, (1, N_STATES, HORIZON, ACTION_DIM))
        self.goals = of_states + rng.normal(0.0, spread, (N_MEMBERS, N_STATES, HORIZON, ACTION_DIM))
        self.calls: list[tuple[np.ndarray, np.ndarray | None]] = []

    def of_members(self, plans: np.ndarray) -> np.ndarray:
        """Errors of plans of shape (P, n, T, A) for all members, shape (m, P, n)."""
        return ((plans - self.goals[:, None]) ** 2).sum(axis=(-1, -2))

    def __call__(self, preactivated, chosen):
        plans = np.asarray(preactivated).copy()
        self.calls.append((plans, chosen))
        n_groups, batch = plans.shape[:2]
        who = np.arange(N_MEMBERS) if chosen is None else chosen
        assert len(who) == n_groups
        by_plan = plans.reshape(n_groups, batch // N_STATES, N_STATES, HORIZON, ACTION_DIM)
        errors = ((by_plan - self.goals[who][:, None]) ** 2).sum(axis=(-1, -2)).reshape(n_groups, batch)
        return th.tensor(errors) if isinstance(preactivated, th.Tensor) else errors


def planner_of(member_choice: str = "random", n_iterations: int = 5) -> MwmSgdPlanner:
    return MwmSgdPlanner(N_MEMBERS, n_iterations, 0.1, member_choice=member_choice)


def starts_of(search, population: int, n_states: int = N_STATES, seed: int = 1) -> np.ndarray:
    shape = (search.n_starts(population), n_states, HORIZON, ACTION_DIM)
    return np.random.default_rng(seed).normal(size=shape)


# How many evaluations


class Count:
    """Counts evaluations of members where they are made: rows of plans that go through them, forward and backward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        imagine, pull_back, in_torch = MlpClosedForm.imagine, MlpClosedForm.pull_back, sb3_rgrl.judges.imagine

        def counting_imagine(form, state, actions, **kwargs):
            survival = imagine(form, state, actions, **kwargs)
            self.rows += survival.return_to_go.size
            return survival

        def counting_pull_back(form, d_rewards, d_returns, out):
            self.rows += d_returns[-1].size
            pull_back(form, d_rewards, d_returns, out)

        def counting_in_torch(ensemble, state, actions, members, units):
            self.rows += actions.shape[0] * actions.shape[1] * (2 if actions.requires_grad else 1)
            return in_torch(ensemble, state, actions, members, units)

        monkeypatch.setattr(MlpClosedForm, "imagine", counting_imagine)
        monkeypatch.setattr(MlpClosedForm, "pull_back", counting_pull_back)
        monkeypatch.setattr(sb3_rgrl.judges, "imagine", counting_in_torch)


@pytest.mark.parametrize("fast_gradients", [True, False])
@pytest.mark.parametrize("n_candidates", [6, 4])
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
def test_all_searches_take_the_evaluations_that_they_tell(member_choice, n_candidates, fast_gradients, monkeypatch):
    count = Count(monkeypatch)
    for search in SEARCHES:
        kwargs = {"member_choice": member_choice, "n_candidates": n_candidates, "exploration_candidates": 2}
        policy = make_policy(CLOSED[0], search=search, fast_gradients=fast_gradients, **kwargs)
        for deterministic in (True, False):
            for n_states in (1, 3):
                observations = np.random.default_rng(0).normal(size=(n_states, 4)).astype(np.float32)
                count.rows = 0
                policy.plan(observations, deterministic=deterministic)
                told = policy.evaluations_per_decision(deterministic)
                assert count.rows == n_states * told.total
                # 3 iterations of a forward and a backward pass, then all 3 members.
                expected = 6 * n_candidates * (3 if member_choice == "mean" else 1)
                assert tuple(told) == (expected, 3 * (n_candidates if deterministic else 2))


def test_defaults_spend_850():
    policy = RGRL("MlpEnsemblePolicy", "CartPole-v1").policy
    assert policy.evaluations_per_decision() == (600, 250)
    assert policy.evaluations_per_decision(deterministic=False) == (600, 25)


def test_mean_of_plans_is_judged_too(monkeypatch):
    count = Count(monkeypatch)
    policy = RGRL("MlpEnsemblePolicy", "Pendulum-v1").policy
    assert policy.evaluations_per_decision() == (600, 255)
    assert policy.evaluations_per_decision(deterministic=False) == (600, 25)
    policy.plan(np.zeros((1, 3), dtype=np.float32))
    # And once more by all members each time that the temperature is halved.
    assert count.rows in range(855, 850 + 5 * N_TEMPERATURES + 1, 5)


def test_no_more_are_considered_than_there_are():
    assert count_evaluations(planner_of(), N_MEMBERS, 4, 9).scoring == 4 * N_MEMBERS


# What they do


@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
def test_shooting_equals_a_loop(member_choice):
    search, errors = RandomShooting(planner_of(member_choice, n_iterations=3)), Bowls()
    draws = starts_of(search, population=4)
    descent = search.descend(draws, errors, np.random.default_rng(3))
    assert len(errors.calls) == 1
    of_members, (_, chosen) = errors.of_members(draws), errors.calls[0]
    for p in range(4):
        for i in range(N_STATES):
            of_draws = of_members[:, 6 * p : 6 * p + 6, i]
            expected = of_draws.mean(axis=0) if member_choice == "mean" else of_draws[chosen[p]]
            np.testing.assert_array_equal(descent.preactivated[p, i], draws[6 * p + expected.argmin(), i])
            np.testing.assert_allclose(descent.errors()[:, p, i], expected)
            for k, (plans, _) in enumerate(descent.steps):
                np.testing.assert_array_equal(plans[p, i], draws[6 * p + k, i])
    if member_choice == "cyclic":
        np.testing.assert_array_equal(chosen, [0, 1, 2, 0])


def next_generation(plans: np.ndarray, errors: np.ndarray, n_elites: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of the best plans of one state, and these, in plain loops over everything."""
    order = sorted(range(len(plans)), key=lambda p: errors[p])[:n_elites]
    elites = np.array([plans[p] for p in order])
    mean, std = np.zeros(plans.shape[1:]), np.zeros(plans.shape[1:])
    for k in range(plans.shape[1]):
        for c in range(plans.shape[2]):
            numbers = [elite[k, c] for elite in elites]
            mean[k, c] = sum(numbers) / n_elites
            std[k, c] = max((sum((number - mean[k, c]) ** 2 for number in numbers) / n_elites) ** 0.5, 0.2)
    return mean, std, elites


@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
def test_generations_of_cem(member_choice):
    # 200 plans: 40 elites, of which 13 live on between generations and all of them in the end.
    search, errors = CemPlanner(planner_of(member_choice, n_iterations=2)), Bowls()
    starts = starts_of(search, population=200)
    descent = search.descend(starts, errors, np.random.default_rng(3))
    generations = [np.asarray(plans) for plans in descent.path()]
    assert len(generations) == 5
    assert len(errors.calls) == 4
    np.testing.assert_array_equal(generations[0], starts)
    whitened = []
    for k in range(4):
        _, chosen = errors.calls[k]
        of_members = errors.of_members(generations[k])
        of_plans = of_members.mean(axis=0) if chosen is None else of_members[chosen[0]]
        np.testing.assert_allclose(descent.errors()[k], of_plans)
        for i in range(N_STATES):
            mean, std, elites = next_generation(generations[k][:, i], of_plans[:, i], n_elites=40)
            n_kept = 40 if k == 3 else 13
            following = generations[k + 1][:, i]
            np.testing.assert_allclose(following[0], mean, rtol=1e-6)
            np.testing.assert_array_equal(following[1 : 1 + n_kept], elites[:n_kept])
            whitened.append(((following[1 + n_kept :] - mean) / std).ravel())
    noise = np.concatenate(whitened)
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    if member_choice == "cyclic":
        assert [chosen[0] for _, chosen in errors.calls] == [0, 1, 2, 0]
    assert all((chosen is None) == (member_choice == "mean") for _, chosen in errors.calls)


@pytest.mark.parametrize("kind", CONTROLS)
def test_random_members_take_turns_at_random(kind):
    search, errors = make_search(kind, planner_of(n_iterations=300), 0.0), Bowls()
    search.descend(starts_of(search, population=4), errors, np.random.default_rng(0))
    search.descend(starts_of(search, population=4), errors, np.random.default_rng(1))
    if kind == "cem":
        counts = np.bincount([chosen[0] for _, chosen in errors.calls], minlength=N_MEMBERS)
        # 1,200 draws of 1 in 3: a standard deviation of 16
        np.testing.assert_allclose(counts, 400, atol=80)
    else:
        assert not np.array_equal(errors.calls[0][1], errors.calls[1][1])


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
def test_torch_and_numpy_agree(kind, member_choice):
    search = make_search(kind, planner_of(member_choice), 0.3)
    starts = starts_of(search, population=7)
    in_numpy, in_torch = (
        search.descend(each, Bowls(), np.random.default_rng(2)) for each in (starts.copy(), th.tensor(starts))
    )
    assert isinstance(in_numpy.preactivated, np.ndarray)
    assert isinstance(in_torch.preactivated, th.Tensor)
    np.testing.assert_array_equal(in_numpy.preactivated, in_torch.preactivated)
    np.testing.assert_array_equal(in_numpy.path(), in_torch.path())
    np.testing.assert_array_equal(in_numpy.errors(), in_torch.errors())


def test_searches_find_what_they_look_for():
    """All of them beat the starts; in a smooth bowl the gradient is best, and CEM is better than no search at all."""
    errors, best = Bowls(), {}
    starts = starts_of(planner_of(), population=30)
    for kind in CONTROLS:
        search = make_search(kind, planner_of(n_iterations=10), 0.0)
        first = starts if kind == "cem" else starts_of(search, population=30)
        plans = search.descend(first, errors, np.random.default_rng(0)).preactivated
        best[kind] = errors.of_members(plans).mean(axis=0).min(axis=0)
    best["starts"] = errors.of_members(starts).mean(axis=0).min(axis=0)
    least = ((errors.goals - errors.goals.mean(axis=0)) ** 2).sum(axis=(-1, -2)).mean(axis=0)
    assert (best["cem"] - least < 0.2 * (best["starts"] - least)).all()
    assert (best["cem"] < best["shooting"]).all()
    assert (best["shooting"] < best["starts"]).all()


@pytest.mark.parametrize("kind", CONTROLS)
def test_plans_without_an_error_are_never_kept(kind):
    errors = Bowls()

    def some_lost(preactivated, chosen):
        of_plans = errors(preactivated, chosen)
        return np.where(preactivated[..., 0, 0] > 0.7, np.nan, of_plans)

    search = make_search(kind, planner_of("mean"), 0.0)
    starts = starts_of(search, population=40)
    descent = search.descend(starts, some_lost, np.random.default_rng(0))
    if kind == "shooting":
        assert (descent.preactivated[:, :, 0, 0] <= 0.7).all()
    else:
        np.testing.assert_array_less(descent.path()[1:, 0, :, 0, 0], 0.7)  # means of elites
    assert np.isfinite(descent.preactivated).all()


@pytest.mark.parametrize("kind", CONTROLS)
def test_rounding_does_not_say_which_of_equal_plans_is_kept(kind):
    noise = np.random.default_rng(5)

    def of_few_kinds(preactivated, chosen):
        # Errors of plans that are executed as the same one, each with a rounding error of its own.
        errors = 1.37 * (1 + (preactivated[..., 0, 0] > 0.0) + 2.0 * (preactivated[..., 1, 0] > 0.0))
        return errors * (1.0 + 1e-7 * noise.standard_normal(errors.shape))

    search = make_search(kind, planner_of("cyclic"), 0.0)
    starts = starts_of(search, population=40)
    first, second = (search.descend(starts, of_few_kinds, np.random.default_rng(0)).preactivated for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", CONTROLS)
def test_without_iterations_plans_stay(kind):
    search, errors = make_search(kind, planner_of(n_iterations=0), 0.0), Bowls()
    starts = starts_of(search, population=4)
    descent = search.descend(starts, errors, np.random.default_rng(0))
    np.testing.assert_array_equal(descent.preactivated, starts)
    assert errors.calls == descent.steps == []
    assert search.evaluations(4) == 0


@pytest.mark.parametrize("population", [1, 2, 3, 9])
@pytest.mark.parametrize("kind", CONTROLS)
def test_any_population_in_single_precision(kind, population):
    search = make_search(kind, planner_of(), 0.5)
    starts = starts_of(search, population).astype(np.float32)
    before = starts.copy()
    descent = search.descend(starts, Bowls(), np.random.default_rng(0))
    assert descent.preactivated.shape == (population, N_STATES, HORIZON, ACTION_DIM)
    assert descent.preactivated.dtype == np.float32
    np.testing.assert_array_equal(starts, before)


def test_draws_that_are_no_whole_number_of_searches():
    with pytest.raises(ValueError, match="10 draws for each plan, got 25"):
        RandomShooting(planner_of()).descend(np.zeros((25, 1, HORIZON, ACTION_DIM)), Bowls(), np.random.default_rng(0))


def test_noise_of_cem_is_correlated_as_the_starts_are():
    search = CemPlanner(planner_of("mean", n_iterations=1), correlation=0.9)
    shape = (400, N_STATES, 30, 1)
    starts = initial_actions("normal", shape, 1.0, 0.0, np.random.default_rng(0))
    last = search.descend(starts, lambda plans, chosen: np.zeros(plans.shape[:2]), np.random.default_rng(0)).preactivated
    noise = last[100:] - last[0]
    neighbours = np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1]
    assert neighbours == pytest.approx(0.9, abs=0.04)


# In a policy


@pytest.mark.parametrize("n_states", [1, 2])
@pytest.mark.parametrize("chosen", [None, [2, 0, 2, 1]])
@pytest.mark.parametrize("aim", ["return", "step"])
@pytest.mark.parametrize("space", sorted(ACTION_SPACES))
@pytest.mark.parametrize("policy_class", CLOSED)
def test_errors_in_closed_form_equal_those_in_torch(policy_class, space, aim, chosen, n_states):
    policy = make_policy(policy_class, space, aim=aim)
    plain, fast = both_judges(policy, n_states)
    judged = None if chosen is None else np.array(chosen)
    preactivated = th.randn(3 if chosen is None else 4, 2 * n_states, 6, policy.codec.dim)
    in_torch = plain.error(preactivated, judged)
    assert_close(fast.error(preactivated.numpy(), judged), in_torch)
    # They are scores of the same plans by the same members.
    scores = plain.score(preactivated.reshape(-1, n_states, 6, policy.codec.dim))
    for group in range(len(preactivated)):
        member = group if chosen is None else chosen[group]
        expected = scores[member, 2 * group : 2 * group + 2].reshape(-1)
        np.testing.assert_allclose(in_torch[group], expected, rtol=1e-5)


@pytest.mark.parametrize("space", sorted(ACTION_SPACES))
@pytest.mark.parametrize("member_choice", MEMBER_CHOICES)
@pytest.mark.parametrize("kind", CONTROLS)
def test_decisions_on_both_paths(kind, member_choice, space):
    policy = make_policy(CLOSED[0], space, search=kind, member_choice=member_choice, dropout=0.0)
    observations = np.random.default_rng(3).normal(2.0, 3.0, (3, 4)).astype(np.float32)
    fast = policy.plan(observations)
    policy.fast_gradients = False
    plain = policy.plan(observations)
    assert isinstance(plain.descent.preactivated, th.Tensor)
    # Of discrete actions several plans are executed as the same one: which of them is chosen is up to rounding.
    np.testing.assert_allclose(fast.actions, plain.actions, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.error, plain.error, rtol=1e-4)


@pytest.mark.parametrize("kind", CONTROLS)
def test_discrete_decisions_depend_on_the_observation_alone(kind):
    # Here many plans have the same error, but for rounding.
    policy = make_policy(CLOSED[0], "discrete", search=kind, n_candidates=20, n_plan_iterations=6)
    observations = np.random.default_rng(3).normal(2.0, 3.0, (12, 4)).astype(np.float32)
    at_once = policy.plan(observations)
    for i in range(12):
        np.testing.assert_array_equal(policy.plan(observations[i : i + 1]).actions[0], at_once.actions[i])


@pytest.mark.parametrize("kind", CONTROLS)
def test_deterministic_decisions_depend_on_the_observation_alone(kind):
    policy = make_policy(CLOSED[0], "box", search=kind)
    observations = np.random.default_rng(3).normal(2.0, 3.0, (4, 4)).astype(np.float32)
    observations[3] = observations[1]
    actions, (plans, _) = policy.predict(observations, deterministic=True)
    for warm in (None, (plans,)):
        at_once = policy.plan(observations, warm)
        for i in range(4):
            alone = policy.plan(observations[i : i + 1], None if warm is None else (plans[i : i + 1],))
            np.testing.assert_allclose(at_once.preactivated[i], alone.preactivated[0], rtol=1e-4, atol=1e-5)
    assert np.isin(actions, policy.predict(observations, deterministic=True)[0]).all()
    # Noise of other observations is other noise, and without `deterministic` it is new each time.
    spreads = policy.plan(observations).descent.preactivated.std(axis=0)
    np.testing.assert_allclose(spreads[1], spreads[3], rtol=1e-4)
    assert not np.allclose(spreads[0], spreads[1], rtol=1e-2)
    first, second = (policy.predict(observations)[1][0] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", CONTROLS)
def test_noise_of_later_generations_depends_on_the_observation(kind):
    # The same starts, errors and members, so that only the further noise could differ: it must not.
    search = make_search(kind, planner_of("mean"), 0.0)
    starts = starts_of(search, population=30, n_states=1)
    equal = np.concatenate([starts, starts], axis=1)
    other = np.concatenate([starts, starts + 1e-6], axis=1)

    def flat(plans, chosen):
        return np.zeros(plans.shape[:2])

    same = search.descend(equal, flat, np.random.default_rng(0)).preactivated
    np.testing.assert_array_equal(same[:, 0], same[:, 1])
    if kind == "cem":
        differ = search.descend(other, flat, np.random.default_rng(0)).preactivated
        assert not np.allclose(differ[10:, 0], differ[10:, 1], atol=1e-2)


@pytest.mark.parametrize("kind", CONTROLS)
def test_warm_starts_are_used(kind):
    policy = make_policy(CLOSED[0], "box", search=kind, n_candidates=40)
    observation = np.random.default_rng(3).normal(2.0, 3.0, (1, 4)).astype(np.float32)
    last = np.full((1, 6, 2), 1.5, dtype=np.float32)
    first = policy.plan(observation, (last,)).descent.path()[0]
    # Half of the plans lie around what was planned last.
    np.testing.assert_allclose(first[:20, 0, :-1].mean(dim=(0, 1)), 1.5, atol=0.3)
    np.testing.assert_allclose(first[20:, 0, :-1].mean(dim=(0, 1)), 0.0, atol=0.5)


@pytest.mark.parametrize("name", ["MlpEnsemblePolicy", "GruEnsemblePolicy", "AttentionEnsemblePolicy"])
@pytest.mark.parametrize("kind", CONTROLS)
def test_agents_learn_with_them_and_come_back(kind, name, tmp_path):
    settings = {**SMALL, "policy_kwargs": {"search": kind, "net_arch": [8]}}
    model = RGRL(name, "CartPole-v1", seed=0, **settings).learn(120)
    assert model._n_updates > 0
    observations = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * 0.1
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent")
    assert loaded.policy.search == kind
    for mine, its in zip(model.predict(observations)[1], loaded.predict(observations)[1], strict=True):
        assert mine.shape == its.shape
    decisions = [agent.predict(observations, deterministic=True)[1][0] for agent in (model, loaded)]
    np.testing.assert_array_equal(*decisions)


def test_other_searches_are_refused():
    with pytest.raises(ValueError, match=r"search must be one of \('gradient', 'cem', 'shooting'\), got 'grid'"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs={"search": "grid"})
    for kind in CONTROLS:
        with pytest.raises(ValueError, match="needs noise"):
            RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs={"search": kind, "action_initializer": "zero"})
