"""A process that is told to stop saves what it knows and stops; nobody else's signals are taken."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_rgrl import RGRL
from sb3_rgrl.callbacks import ExactCheckpointCallback
from sb3_rgrl.checkpoint import checkpoints_in, load_checkpoint
from sb3_rgrl.resumable import Resumable
from tests.kill_while_saving import make_env
from tests.toy import TINY, Drift

ROOT = Path(__file__).resolve().parents[1]
BOTH = (signal.SIGINT, signal.SIGTERM)


def check_signals(n_signals: int) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.stop_by_signal", "--signals", str(n_signals)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["ended as they should"] == counts["within 10 s"] == counts["loadable"] == n_signals, result


def test_signals():
    check_signals(6)


@pytest.mark.soak
def test_100_signals():
    check_signals(100)


class SendAt(BaseCallback):
    """Sends a signal to this process at a step."""

    def __init__(self, number: int, step: int = 45, times: int = 1):
        super().__init__()
        self.number, self.step, self.times, self.steps_after = number, step, times, 0

    def _on_step(self):
        self.steps_after += self.num_timesteps > self.step
        if self.num_timesteps == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return True


def make_model(**changes) -> RGRL:
    return RGRL("MlpEnsemblePolicy", make_env(), seed=0, **{**TINY, **changes})


@pytest.fixture
def handlers():
    """Those that were there, and again are."""
    before = [signal.getsignal(number) for number in BOTH]
    yield before
    assert [signal.getsignal(number) for number in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_learning_ends_and_goes_on(tmp_path: Path, handlers, number):
    callback = ExactCheckpointCallback(None, tmp_path, signals=BOTH)
    sender = SendAt(number)
    model = make_model().learn(1000, callback=[sender, callback])
    assert callback.stopped_by == number
    assert sender.steps_after == 0
    assert model.num_timesteps == 45
    assert len(checkpoints_in(tmp_path)) == 1
    resumed = load_checkpoint(tmp_path, make_env())
    for (name, one), (_, other) in zip(model.policy.state_dict().items(), resumed.policy.state_dict().items(), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
    resumed.learn(30, callback=callback, reset_num_timesteps=False)
    assert callback.stopped_by is None
    assert resumed.num_timesteps == 75
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 65


def test_second_signal_does_what_it_always_did(tmp_path: Path, handlers):
    callback = ExactCheckpointCallback(None, tmp_path, signals=BOTH)
    with pytest.raises(KeyboardInterrupt):
        make_model().learn(1000, callback=[SendAt(signal.SIGINT, times=2), callback])


def test_without_signals_nothing_is_taken(tmp_path: Path, handlers):
    with pytest.raises(KeyboardInterrupt):
        make_model().learn(1000, callback=[SendAt(signal.SIGINT), ExactCheckpointCallback(None, tmp_path)])


def test_signal_after_learning_failed_is_not_ours(tmp_path: Path):
    class Failing(BaseCallback):
        def _on_step(self):
            raise RuntimeError("broken")

    before = signal.getsignal(signal.SIGINT)
    callback = ExactCheckpointCallback(None, tmp_path, signals=BOTH)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            make_model().learn(100, callback=[callback, Failing()])
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert callback.stopped_by is None
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        callback._restore_handlers()


def test_a_long_learning_phase_is_cut_short(tmp_path: Path, handlers):
    model = make_model(gradient_steps=10**9, train_freq=50)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    callback = ExactCheckpointCallback(None, tmp_path, signals=[signal.SIGTERM])
    model.learn(1000, callback=callback)
    timer.join()
    assert callback.stopped_by == signal.SIGTERM
    assert 0 < model._n_updates < 10**6
    assert load_checkpoint(tmp_path)._n_updates == model._n_updates


@pytest.mark.parametrize("fisher", ["batch", "window"])
def test_a_pass_over_the_whole_buffer_for_fisher_is_cut_short(tmp_path: Path, handlers, monkeypatch, fisher):
    monkeypatch.setattr(RGRL, "_windows_at_once", 4)
    model, asked = make_model(ewc_lambda=1.0, ewc_fisher=fisher), []
    before = [value.clone() for value in model.ewc.state_dict().values()]
    consolidate = model.ewc.consolidate

    def watch(chunks):
        for chunk in chunks:
            asked.append(chunk.shape[1])
            if len(asked) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield chunk

    model.ewc.consolidate = lambda chunks: consolidate(watch(chunks))
    callback = ExactCheckpointCallback(None, tmp_path, signals=[signal.SIGTERM])
    model.learn(1000, callback=callback)
    assert callback.stopped_by == signal.SIGTERM
    assert asked == [4]
    for value, other in zip(before, load_checkpoint(tmp_path).ewc.state_dict().values(), strict=True):
        assert value.equal(other), "F and W* belong together: those of the last whole pass"


def test_renewing_all_priorities_is_cut_short(tmp_path: Path, handlers, monkeypatch):
    monkeypatch.setattr(RGRL, "_windows_at_once", 4)
    model, asked = make_model(per_exponent=1.0, replay_buffer_kwargs={"priority_refresh": "all"}), []
    renew, window_errors = RGRL._renew_priorities, model.policy.window_errors

    def watch(*args, **kwargs):
        asked.append(len(args[0].indices[0]))
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return window_errors(*args, **kwargs)

    def renew_all(self, buffer, windows, new=None):
        self.policy.window_errors = watch if new is None else window_errors
        renew(self, buffer, windows, new)
        self.policy.window_errors = window_errors

    monkeypatch.setattr(RGRL, "_renew_priorities", renew_all)
    callback = ExactCheckpointCallback(None, tmp_path, signals=[signal.SIGTERM])
    model.learn(1000, callback=callback)
    assert callback.stopped_by == signal.SIGTERM
    assert asked == [4]
    buffer = load_checkpoint(tmp_path).replay_buffer
    assert (buffer.probabilities(0)[buffer.all_windows()] > 0).all()


def test_new_windows_get_their_priorities_all_the_same(tmp_path: Path, handlers, monkeypatch):
    monkeypatch.setattr(RGRL, "_windows_at_once", 4)
    renew = RGRL._renew_priorities

    def renew_after_signal(*args):
        if not args[0]._stop_soon:
            os.kill(os.getpid(), signal.SIGTERM)
        renew(*args)

    monkeypatch.setattr(RGRL, "_renew_priorities", renew_after_signal)
    model = make_model()
    model.learn(1000, callback=ExactCheckpointCallback(None, tmp_path, signals=[signal.SIGTERM]))
    buffer = load_checkpoint(tmp_path).replay_buffer
    assert buffer.n_windows > 4
    assert (buffer.probabilities(0)[buffer.all_windows()] > 0).all()


# Ctrl-C goes to the processes of the environments as well, and these end at once.
CTRL_C = """
import signal, sys
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from sb3_rgrl import RGRL
from sb3_rgrl.callbacks import ExactCheckpointCallback
from sb3_rgrl.resumable import Resumable
from tests.toy import TINY, Drift

if __name__ == "__main__":
    env = make_vec_env(Drift, n_envs=2, vec_env_cls=SubprocVecEnv, wrapper_class=Resumable,
                       vec_env_kwargs={"start_method": "fork"})
    model = RGRL("MlpEnsemblePolicy", env, seed=0, **TINY).learn(40)
    callback = ExactCheckpointCallback(None, sys.argv[1], signals=[signal.SIGINT])
    print("ready", flush=True)
    model.learn(10**9, callback=callback, reset_num_timesteps=False)
    print("stopped by", callback.stopped_by, flush=True)
"""


def test_ctrl_c_with_environments_in_processes(tmp_path: Path):
    (tmp_path / "program.py").write_text(CTRL_C)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "checkpoints")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    threading.Event().wait(0.5)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert "stopped by 2" in output
    env = make_vec_env(Drift, n_envs=2, vec_env_cls=SubprocVecEnv, wrapper_class=Resumable)
    resumed = load_checkpoint(tmp_path / "checkpoints", env)
    resumed.learn(20, reset_num_timesteps=False)
    env.close()
