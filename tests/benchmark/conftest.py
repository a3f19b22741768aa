"""Of all tests of the benchmark suite: runs are waited for without a pause, and in one thread."""

import pytest

from sb3_rgrl.benchmark import grid, peers, protocol
from sb3_rgrl.benchmark.timing import one_torch_thread


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(grid, "POLL_SECONDS", 0.0)
    with one_torch_thread():
        yield


@pytest.fixture
def contestant_of(tmp_path):
    """Makes models that are closed at the end."""
    made = []

    def make_contestant(info, n_eval_envs=3):
        made.append(peers.make_contestant(info, n_eval_envs, tmp_path))
        return made[-1]

    yield make_contestant
    for contestant in made:
        contestant.eval_env.close()
        contestant.model.get_env().close()


@pytest.fixture
def evaluated(contestant_of):
    """Makes runs in this process, without files."""
    return lambda info, check=lambda: None: _evaluated(contestant_of(info), info, check)


def _evaluated(contestant, info, check):
    evaluations = protocol.Evaluations(contestant, info, lambda rows: None, check)
    contestant.learn(evaluations)
    return contestant, evaluations
