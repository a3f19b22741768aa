"""The best of the plans, against loops; each kind of array."""

import numpy as np
import pytest
import torch as th

from sb3_rgrl.choosing import pick_best

BACKENDS = ("torch", "numpy")


def of_kind(plans: th.Tensor, backend: str) -> th.Tensor | np.ndarray:
    return plans.clone() if backend == "torch" else plans.numpy().copy()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pick_best_equals_a_loop(backend):
    scores = th.rand(3, 5, 4, generator=th.Generator().manual_seed(0), dtype=th.float64)
    best, error, disagreement = pick_best(of_kind(scores, backend))
    winners = []
    for state in range(4):
        means = [sum(scores[i, p, state].item() for i in range(3)) / 3 for p in range(5)]
        winner = means.index(min(means))
        winners.append(winner)
        assert best[state].item() == winner
        assert error[state].item() == pytest.approx(means[winner], abs=1e-12)
        deviations = [(scores[i, winner, state].item() - means[winner]) ** 2 for i in range(3)]
        assert disagreement[state].item() == pytest.approx((sum(deviations) / 3) ** 0.5, abs=1e-12)
    assert len(set(winners)) > 1, "the test needs states with different winners"
    for found in (best, error, disagreement):
        assert found.shape == (4,)
        assert isinstance(found, th.Tensor if backend == "torch" else np.ndarray)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_voters", [1, 2, 3])
def test_some_members_choose_and_all_tell_the_error(backend, n_voters):
    scores = th.rand(3, 5, 8, generator=th.Generator().manual_seed(1), dtype=th.float64)
    voters = np.stack([np.random.default_rng(state).permutation(3)[:n_voters] for state in range(8)], axis=1)
    best, error, disagreement = pick_best(of_kind(scores, backend), voters)
    for state in range(8):
        seen = [sum(scores[i, p, state].item() for i in voters[:, state]) for p in range(5)]
        winner = seen.index(min(seen))
        assert best[state].item() == winner
        of_winner = scores[:, winner, state].numpy()
        assert error[state].item() == pytest.approx(of_winner.mean(), abs=1e-12)
        assert disagreement[state].item() == pytest.approx(of_winner.std(), abs=1e-12)
    differs = (np.asarray(best) != np.asarray(pick_best(of_kind(scores, backend))[0])).any()
    assert differs == (n_voters < 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_members_choose_no_plan_that_others_have_no_error_for(backend):
    scores = of_kind(th.tensor([[[2.0], [0.5], [1.0], [th.nan]], [[2.0], [th.nan], [1.0], [0.0]]]), backend)
    for voter in (0, 1):
        best, error, _ = pick_best(scores, np.array([[voter]]))
        assert (best.item(), error.item()) == (2, 1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_best_index_brings_up_the_plans(backend):
    plans = of_kind(th.randn(3, 2, 4, 2, generator=th.Generator().manual_seed(5), dtype=th.float64), backend)
    best, error, disagreement = pick_best((plans**2).sum(-1).sum(-1)[None])
    chosen = plans[best, np.arange(2)]
    assert chosen.shape == (2, 4, 2)
    np.testing.assert_allclose(np.asarray((chosen**2).sum(-1).sum(-1)), np.asarray(error), rtol=1e-12)
    assert disagreement.tolist() == [0.0, 0.0], "one member agrees with itself"


@pytest.mark.parametrize("backend", BACKENDS)
def test_pick_best_never_takes_a_plan_without_an_error(backend):
    # One plan that ran away must not be executed while there are others.
    scores = of_kind(th.tensor([[[2.0], [th.nan], [1.0]], [[2.0], [0.0], [1.0]]]), backend)
    best, error, disagreement = pick_best(scores)
    assert (best.item(), error.item(), disagreement.item()) == (2, 1.0, 0.0)
    assert np.isnan(scores[0, 1, 0].item()), "the errors are left as they are"
    rows = [[th.inf, th.nan, th.inf], [th.nan, th.nan, th.inf], [1e30, th.nan, th.nan]]
    best, error, _ = pick_best(of_kind(th.tensor([rows]), backend))
    assert best[0].item() == 2
    assert error[1:].tolist() == [th.inf, th.inf], "without any plan the error says so"


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_plans_that_differ_by_rounding_the_first_is_taken(backend):
    one = np.float32(7.4338093)
    rounded = np.nextafter(one, np.float32(0.0))
    errors = np.array([[[9.0, one, 2.0], [one, rounded, 1.0], [rounded, 8.0, 1.0 - 1e-4]]], dtype=np.float32)
    best, _, _ = pick_best(of_kind(th.tensor(errors), backend))
    assert best.tolist() == [1, 0, 2], "what differs by more than rounding is better"
