"""Callbacks are called as SB3 calls them."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env

from sb3_rgrl import RGRL
from tests.test_run import SMALL


class Recorder(BaseCallback):
    """Writes down the hooks in their order and what `on_step` could see."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.calls, self.stop_at = [], stop_at

    def _on_training_start(self):
        self.calls.append("training_start")

    def _on_rollout_start(self):
        self.calls.append("rollout_start")

    def _on_step(self):
        self.calls.append("step")
        for name in ("infos", "dones", "rewards", "new_obs", "actions"):
            assert len(self.locals[name]) == self.training_env.num_envs
        assert self.locals["total_timesteps"] > 0
        assert self.locals["tb_log_name"] == "RGRL"
        return self.num_timesteps != self.stop_at

    def _on_rollout_end(self):
        self.calls.append("rollout_end")

    def _on_training_end(self):
        self.calls.append("training_end")


@pytest.mark.parametrize("n_envs", [1, 2])
def test_hooks_in_sb3s_order(n_envs):
    recorder = Recorder()
    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=0)
    RGRL("MlpEnsemblePolicy", env, **SMALL).learn(80, callback=recorder)
    rollout = ["rollout_start", *["step"] * 20, "rollout_end"]
    assert recorder.calls == ["training_start", *rollout * (4 // n_envs), "training_end"]


def test_falsy_step_stops_at_once_without_learning():
    recorder = Recorder(stop_at=70)
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL)
    model.learn(500, callback=recorder)
    assert model.num_timesteps == 70
    assert model._n_updates == 0
    assert recorder.calls[-2:] == ["step", "training_end"]


def test_lists_and_functions():
    seen = []

    def function(locals_, globals_):
        seen.append(locals_["num_collected_steps"])
        return True

    RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(40, callback=function)
    assert len(seen) == 40
    stop = StopTrainingOnMaxEpisodes(max_episodes=2)
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(400, callback=[stop, Recorder()])
    assert model.num_timesteps < 400


def test_evaluation_does_not_change_the_training_run(tmp_path):
    def weights_after(callback):
        model = RGRL("MlpEnsemblePolicy", make_vec_env("CartPole-v1", seed=3), seed=3, **SMALL)
        model.learn(200, callback=callback)
        return model.policy.parameters_to_vector()

    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", seed=9), n_eval_episodes=2, eval_freq=50, best_model_save_path=str(tmp_path), verbose=0
    )
    np.testing.assert_array_equal(weights_after(None), weights_after(evaluation))
    assert (tmp_path / "best_model.zip").is_file()


def test_checkpoints_with_buffer(tmp_path):
    checkpoint = CheckpointCallback(50, str(tmp_path), save_replay_buffer=True)
    every = EveryNTimesteps(50, Recorder())
    RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(100, callback=CallbackList([checkpoint, every]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "rl_model_100_steps.zip",
        "rl_model_50_steps.zip",
        "rl_model_replay_buffer_100_steps.pkl",
        "rl_model_replay_buffer_50_steps.pkl",
    ]
    loaded = RGRL.load(tmp_path / "rl_model_100_steps.zip", env=make_vec_env("CartPole-v1"))
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_100_steps.pkl")
    # The callback of step 100 comes before that step is stored.
    assert loaded.replay_buffer.size() == 99


# SB3's bar is drawn by tqdm.rich, which announces itself as experimental.
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_progress_bar():
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(60, progress_bar=True)
    assert model.num_timesteps == 60
