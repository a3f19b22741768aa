"""Callbacks are called as SB3 calls them."""

import numpy as np
import pytest
import stable_baselines3.common.callbacks as callbacks_of_sb3
import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_rgrl import RGRL
from tests.toy import SMALL


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


@pytest.mark.parametrize("falsy", [False, 0, None, np.bool_(False), th.tensor(False)], ids=repr)
def test_every_falsy_answer_stops_before_the_step_is_stored(falsy):
    class Stop(BaseCallback):
        def _on_step(self):
            return falsy

    callback = Stop()
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(50, callback=callback)
    assert (callback.n_calls, model.num_timesteps, model.replay_buffer.size()) == (1, 1, 0)


def test_what_children_see_is_what_their_list_sees():
    inner, outer = Recorder(), Recorder()
    event = EveryNTimesteps(30, inner)
    callbacks = CallbackList([event, outer])
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(60, callback=callbacks)
    assert inner.calls.count("step") == 2
    assert outer.calls.count("step") == 60
    assert inner.model is outer.model is model
    for name in ("new_obs", "infos", "self", "env", "num_collected_steps", "num_collected_episodes"):
        assert callbacks.locals[name] is inner.locals[name] is outer.locals[name] is event.locals[name]
    assert model.observation_space.contains(callbacks.locals["new_obs"][0])
    assert event.num_timesteps == event.n_calls == model.num_timesteps


def test_at_most_so_many_episodes_of_each_environment():
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, env_kwargs={"max_episode_steps": 25})
    stop = StopTrainingOnMaxEpisodes(max_episodes=2)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(500, callback=stop)
    assert (stop.n_episodes, model.num_timesteps) == (4, 2 * 2 * 25)


def test_stop_at_a_good_return_or_without_progress():
    def evaluation(**kwargs):
        # There is one action and it is right: the first evaluation is perfect, and none after it is better.
        env = DummyVecEnv([lambda: IdentityEnv(1, ep_length=5)])
        return EvalCallback(env, n_eval_episodes=1, eval_freq=20, warn=False, verbose=0, **kwargs)

    good = evaluation(callback_on_new_best=StopTrainingOnRewardThreshold(5.0))
    model = RGRL("MlpEnsemblePolicy", IdentityEnv(1, ep_length=5), **SMALL).learn(200, callback=good)
    assert (model.num_timesteps, good.best_mean_reward) == (20, 5.0)
    stuck = evaluation(callback_after_eval=StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1))
    model = RGRL("MlpEnsemblePolicy", IdentityEnv(1, ep_length=5), **SMALL).learn(200, callback=stuck)
    # The first evaluation is an improvement, the next three are not: one more than are allowed.
    assert model.num_timesteps == 4 * 20


@pytest.mark.parametrize("normalize", [False, True])
def test_evaluation_does_not_change_the_training_run(normalize, tmp_path):
    def environment(seed, training):
        env = make_vec_env("CartPole-v1", seed=seed)
        return VecNormalize(env, training=training, norm_reward=training) if normalize else env

    def trained(callback):
        model = RGRL("MlpEnsemblePolicy", environment(3, training=True), seed=3, **SMALL)
        model.learn(160, callback=callback)
        assert model._n_updates > 0
        buffer = model.replay_buffer
        return model.policy.parameters_to_vector(), buffer.observations[:160], buffer.actions[:160]

    def evaluation(deterministic):
        folder = str(tmp_path / str(deterministic))
        return EvalCallback(
            environment(9, training=False),
            n_eval_episodes=2,
            eval_freq=50,
            deterministic=deterministic,
            best_model_save_path=folder,
            log_path=folder,
            verbose=0,
        )

    alone = trained(None)
    # With noise, too, which SB3's algorithms would draw from the training run.
    for deterministic in (True, False):
        for with_evaluation, without in zip(trained(evaluation(deterministic)), alone, strict=True):
            np.testing.assert_array_equal(with_evaluation, without)
        assert (tmp_path / str(deterministic) / "best_model.zip").is_file()
        with np.load(tmp_path / str(deterministic) / "evaluations.npz") as evaluations:
            assert evaluations["timesteps"].tolist() == [50, 100, 150]
            assert evaluations["results"].shape == (3, 2)


def test_evaluation_in_several_environments():
    env = DummyVecEnv([IdentityEnv] * 3)
    evaluation = EvalCallback(env, n_eval_episodes=3, eval_freq=50, warn=False, verbose=0)
    RGRL("MlpEnsemblePolicy", IdentityEnv(), **SMALL).learn(100, callback=evaluation)
    assert 0.0 <= evaluation.last_mean_reward <= 100.0
    assert evaluation.n_calls == 100


def test_checkpoints_with_buffer_and_statistics(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1", seed=0))
    checkpoint = CheckpointCallback(50, str(tmp_path), save_replay_buffer=True, save_vecnormalize=True)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(100, callback=checkpoint)
    names = ["rl_model_{}_steps.zip", "rl_model_replay_buffer_{}_steps.pkl", "rl_model_vecnormalize_{}_steps.pkl"]
    assert {path.name for path in tmp_path.iterdir()} == {name.format(steps) for name in names for steps in (50, 100)}
    again = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_100_steps.pkl"), make_vec_env("CartPole-v1"))
    loaded = RGRL.load(tmp_path / "rl_model_100_steps.zip", env=again)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_100_steps.pkl")
    # The callback of step 100 comes before that step is stored.
    assert loaded.replay_buffer.size() == 99
    np.testing.assert_array_equal(loaded.replay_buffer.observations[:99], model.replay_buffer.observations[:99])
    loaded.learn(40, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.replay_buffer.size()) == (140, 139)


class Memory(Logger):
    """Keeps what is dumped."""

    def __init__(self):
        super().__init__(None, [])
        self.dumps = []

    def dump(self, step: int = 0) -> None:
        self.dumps.append((step, dict(self.name_to_value)))
        super().dump(step)


def logged(log_interval: int | None, callback: BaseCallback | None = None) -> list[tuple[int, dict]]:
    model = RGRL("MlpEnsemblePolicy", make_vec_env("Pendulum-v1", env_kwargs={"max_episode_steps": 25}), **SMALL)
    memory = Memory()
    model.set_logger(memory)
    model.learn(150, callback=callback, log_interval=log_interval)
    return memory.dumps


def test_log_every_so_many_episodes():
    dumps = logged(log_interval=2)
    assert [step for step, _ in dumps] == [50, 100, 150]
    assert [values["time/episodes"] for _, values in dumps] == [2, 4, 6]
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "time/total_timesteps"} <= set(dumps[0][1])
    assert {"train/loss", "train/learning_rate", "plan/error_after"} <= set(dumps[-1][1])


def test_log_every_so_many_steps_and_not_else():
    dumps = logged(log_interval=None, callback=LogEveryNTimesteps(n_steps=70))
    assert [step for step, _ in dumps] == [70, 140]
    assert dumps[1][1]["time/total_timesteps"] == 140
    assert {"train/loss", "rollout/ep_rew_mean", "plan/error_after"} <= set(dumps[1][1])


def test_no_log_at_all():
    assert logged(log_interval=None) == []


def test_tensorboard_folder_is_continued_on_resume(tmp_path):
    def runs(folder="run"):
        return sorted(path.name for path in (tmp_path / folder).iterdir())

    def n_files(name, folder="run"):
        return len(list((tmp_path / folder / name).glob("events.out.tfevents.*")))

    env = make_vec_env("CartPole-v1")
    model = RGRL("MlpEnsemblePolicy", env, tensorboard_log=str(tmp_path / "run"), **SMALL).learn(80)
    assert runs() == ["RGRL_1"]
    model.learn(40, reset_num_timesteps=False)
    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", env=env).learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 160
    assert runs() == ["RGRL_1"]
    assert n_files("RGRL_1") == 3
    loaded.learn(20)
    loaded.learn(20, tb_log_name="mine")
    loaded.learn(20, tb_log_name="mine", reset_num_timesteps=False)
    assert runs() == ["RGRL_1", "RGRL_2", "mine_1"]
    RGRL.load(tmp_path / "agent", env=env, tensorboard_log=str(tmp_path / "other")).learn(20)
    assert runs("other") == ["RGRL_1"]


# SB3's bar is drawn by tqdm.rich, which announces itself as experimental.
@pytest.mark.filterwarnings("ignore:rich is experimental")
@pytest.mark.parametrize("n_envs", [1, 3])
def test_progress_bar(n_envs, monkeypatch):
    bars = []
    real = callbacks_of_sb3.tqdm

    def remembered(*args, **kwargs):
        bars.append(real(*args, **kwargs))
        return bars[-1]

    monkeypatch.setattr(callbacks_of_sb3, "tqdm", remembered)
    env = make_vec_env("CartPole-v1", n_envs=n_envs)
    model = RGRL("MlpEnsemblePolicy", env, **SMALL).learn(60, progress_bar=True)
    assert model.num_timesteps == 60
    assert [(bar.n, bar.total) for bar in bars] == [(60, 60)]
