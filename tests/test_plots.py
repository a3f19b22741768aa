"""Pictures show what plans and beliefs are, and drawing them changes nothing."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from matplotlib.colors import to_rgb
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_rgrl import RGRL, MlpEnsemblePolicy
from sb3_rgrl.beliefs import Beliefs, Decisions
from sb3_rgrl.pictures import PlanPicturesCallback
from sb3_rgrl.plots import COLOURS, belief, expected_returns, plan_trace
from tests.toy import SMALL

OBSERVATIONS = spaces.Box(-1, 1, (3,))
GAMMA = 0.9


def make_policy(space, **kwargs) -> MlpEnsemblePolicy:
    th.manual_seed(0)
    kwargs = {"n_candidates": 6, "n_plan_iterations": 3, "net_arch": [8], "plan_horizon": 4, "sequence_length": 2, **kwargs}
    policy = MlpEnsemblePolicy(OBSERVATIONS, space, lambda _: 1e-3, ensemble_size=3, gamma=GAMMA, **kwargs)
    # A return was observed, so what follows plans counts.
    policy.scales.learn_best_return(th.tensor([3.0]), th.ones(1))
    return policy


def some_observations(n: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (n, 3)).astype(np.float32)


def colour_bar_labels(figure, part: int, n_parts: int) -> list[str]:
    bar = figure.axes[2 + n_parts + part]
    return [label.get_text() for label in bar.get_yticklabels()]


def images(figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


# What members expect


@pytest.mark.parametrize("return_weight", [0.0, 1.0])
def test_predicted_return_is_that_of_the_rewards_and_of_what_follows(return_weight):
    policy, observations = make_policy(spaces.Discrete(3), return_weight=return_weight), some_observations(2)
    plan = policy.plan(observations)
    predicted = policy.predict_return(observations, plan.actions)
    of_plan = (policy.predict_reward(observations, plan.actions) * GAMMA ** th.arange(4)).sum(dim=-1)
    assert predicted.shape == (3, 2)
    assert th.allclose(predicted, of_plan, atol=1e-6) == (return_weight == 0)
    goal = policy.goal()
    errors = (((predicted - goal.total[:, None]) / goal.return_scale) ** 2).numpy()
    np.testing.assert_allclose(errors.mean(axis=0), plan.error, rtol=1e-4)
    np.testing.assert_allclose(errors.std(axis=0), plan.disagreement, rtol=1e-3, atol=1e-6)


def test_expected_returns_are_those_of_every_plan_on_the_way():
    policy, observations = make_policy(spaces.Box(-2, 2, (2,))), some_observations(2)
    plan = policy.plan(observations)
    for index in range(2):
        expected = expected_returns(policy, observations, plan, index)
        assert expected.shape == (4, 3, 6)
        for iteration, population in enumerate(plan.descent.path()[:, :, index]):
            for k, preactivated in enumerate(population):
                actions = 2 * np.tanh(preactivated.numpy())[None]
                alone = policy.predict_return(observations[index], actions)[:, 0]
                np.testing.assert_allclose(expected[iteration, :, k], alone, rtol=1e-4, atol=1e-5)


# Pictures of plans


@pytest.mark.parametrize("index", [0, 1])
def test_lines_are_mean_and_spread_of_what_members_expect(index):
    policy, observations = make_policy(spaces.Box(-2, 2, (1,)), plan_temperature=0.0), some_observations(2)
    plan = policy.plan(observations)
    figure = plan_trace(policy, observations, plan, index)
    expected = expected_returns(policy, observations, plan, index)
    path = plan.descent.path()[:, :, index].numpy()
    (chosen,) = (k for k in range(6) if np.array_equal(path[-1, k], plan.preactivated[index]))
    for axes, values in zip(figure.axes[:2], (expected.mean(axis=1), expected.std(axis=1)), strict=True):
        lines = [line for line in axes.lines if len(line.get_ydata()) > 0]
        thick = [line for line in lines if line.get_linewidth() > 2]
        assert len(lines) == 6
        assert [line.get_label() for line in thick] == ["the plan that is executed"]
        np.testing.assert_array_equal(thick[0].get_ydata(), values[:, chosen])
        others = np.array([line.get_ydata() for line in lines if line is not thick[0]])
        np.testing.assert_array_equal(others, np.delete(values, chosen, axis=1).T)
        assert axes.get_ylabel()
    (actions,) = images(figure)
    np.testing.assert_allclose(actions, 2 * np.tanh(path[:, chosen, :, 0]), rtol=1e-6)
    assert figure.axes[2].images[0].get_clim() == (-2, 2)


def test_lines_of_those_whose_mean_is_executed():
    policy, observations = make_policy(spaces.Box(-2, 2, (1,)), n_candidates=30), some_observations(9)
    plan = policy.plan(observations)
    # Not each of them is a mean.
    index = int(plan.weights.max(axis=0).argmin())
    figure = plan_trace(policy, observations, plan, index)
    expected = expected_returns(policy, observations, plan, index).mean(axis=1)
    coloured = [line for line in figure.axes[0].lines if len(line.get_ydata()) > 0 and line.get_linewidth() > 1]
    assert coloured[0].get_label() == "those whose mean is executed"
    weights = plan.weights[:, index]
    counting = np.flatnonzero(weights > 0.05 * weights.max())
    assert len(counting) > 1, "the test needs a mean"
    np.testing.assert_array_equal([line.get_ydata() for line in coloured], expected[:, counting].T)
    (actions,) = images(figure)
    np.testing.assert_allclose(actions[-1], plan.actions[index, :, 0], atol=1e-5)
    way = 2 * np.average(np.tanh(plan.descent.path()[:, :, index, :, 0].numpy()), axis=1, weights=weights)
    np.testing.assert_allclose(actions, way, atol=1e-5)


def of_executed(policy, observation) -> tuple[np.ndarray, list[np.ndarray], object]:
    """The way of the executed plan, its images and their figure."""
    plan = policy.plan(observation)
    path = plan.descent.path()[:, :, 0].numpy()
    chosen = next(k for k in range(path.shape[1]) if np.array_equal(path[-1, k], plan.preactivated[0]))
    figure = plan_trace(policy, observation, plan)
    return path[:, chosen], images(figure), figure


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x)
    return powers / powers.sum(axis=-1, keepdims=True)


def test_of_two_choices_the_probability_of_the_second():
    path, (image,), figure = of_executed(make_policy(spaces.Discrete(2, start=5)), some_observations(1)[0])
    np.testing.assert_allclose(image, softmax(path)[..., 1], rtol=1e-5)
    assert colour_bar_labels(figure, 0, 1) == ["5", "undecided", "6"]


def test_of_more_choices_the_colour_of_the_likeliest():
    path, (image,), figure = of_executed(make_policy(spaces.Discrete(3, start=-1)), some_observations(1)[0])
    probabilities = softmax(path)
    for place in np.ndindex(*image.shape[:2]):
        best = probabilities[place].argmax()
        certainty = (probabilities[place][best] - 1 / 3) / (2 / 3)
        colour = 1 - certainty * (1 - np.array(to_rgb(COLOURS[best])))
        np.testing.assert_allclose(image[place], colour, atol=1e-5)
    assert colour_bar_labels(figure, 0, 1) == ["-1", "0", "1"]


def test_parts_of_several_choices_and_of_switches():
    path, (two, three), figure = of_executed(make_policy(spaces.MultiDiscrete([2, 3])), some_observations(1)[0])
    np.testing.assert_allclose(two, softmax(path[..., :2])[..., 1], rtol=1e-5)
    assert three.shape == (4, 4, 3)
    assert colour_bar_labels(figure, 1, 2) == ["0", "1", "2"]
    path, switches, _ = of_executed(make_policy(spaces.MultiBinary(2)), some_observations(1)[0])
    np.testing.assert_allclose(np.stack(switches, axis=-1), 1 / (1 + np.exp(-path)), rtol=1e-5)


def test_many_parts_names_other_searches_and_no_iterations():
    observation = some_observations(1)[0]
    figure = plan_trace(make_policy(spaces.Box(0, 1, (9,))), observation)
    assert len(images(figure)) == 6
    assert "first 6 of 9" in figure.axes[2].get_title()
    figure = plan_trace(make_policy(spaces.Discrete(2), search="cem"), observation, action_names=["left", "right"])
    assert figure.axes[1].get_xlabel() == "generation"
    assert colour_bar_labels(figure, 0, 1)[::2] == ["left", "right"]
    figure = plan_trace(make_policy(spaces.Discrete(12), n_plan_iterations=0), observation)
    assert all(len(line.get_ydata()) <= 1 for line in figure.axes[0].lines)


def test_plan_for_other_observations_is_refused():
    policy, observations = make_policy(spaces.Discrete(2)), some_observations(2)
    with pytest.raises(ValueError, match=r"The plan is one for 2 observation\(s\), but there are 1"):
        plan_trace(policy, observations[0], policy.plan(observations))
    with pytest.raises(ValueError, match="index must be 0 to 1"):
        plan_trace(policy, observations, index=2)


def test_what_cannot_be_drawn_is_told():
    policy = MlpEnsemblePolicy(OBSERVATIONS, spaces.Discrete(3), lambda _: 1e-3, ensemble_size=2, net_arch=[4])
    observation = np.zeros(OBSERVATIONS.shape, np.float32)
    with pytest.raises(ValueError, match="action_names must be 3 names"):
        plan_trace(policy, observation, action_names=["left"])
    with pytest.raises(TypeError, match=r"model\.policy, got RGRL"):
        plan_trace(RGRL("MlpEnsemblePolicy", "CartPole-v1"), observation)
    for ask in (policy.plan, policy.predict, lambda what: plan_trace(policy, what)):
        with pytest.raises(ValueError, match="mixing Gym API"):
            ask((observation, {}))


def test_importing_the_package_does_not_import_matplotlib():
    code = "import sys, sb3_rgrl; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What was expected, and what came


def test_decisions_are_joined_with_the_returns_that_came():
    beliefs = Beliefs(2, GAMMA)
    rewards = np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0], [8.0, 9.0]])
    for step, reward in enumerate(rewards):
        if step > 0:  # the first action is random
            beliefs.decide(2 * step + 2, np.array([[step, 10.0], [step + 2, 10.0]]))
        # The first environment terminates with the third step, the other one is cut off with the last.
        beliefs.receive(reward, np.array([step == 2, step == 3]), np.array([step == 2, False]))
    seen = beliefs.decisions()
    first = [2 + GAMMA * 4, 4]
    second = [
        (6 + GAMMA * 7 + GAMMA**2 * 9) / (1 + GAMMA + GAMMA**2) / (1 - GAMMA),
        (7 + GAMMA * 9) / (1 + GAMMA) / (1 - GAMMA),
        9 / (1 - GAMMA),
    ]
    running = [8 / (1 - GAMMA)]
    np.testing.assert_allclose(seen.received, [*first, *second, *running])
    np.testing.assert_allclose(seen.weight, [1, 1, 1 - GAMMA**3, 1 - GAMMA**2, 1 - GAMMA, 1 - GAMMA])
    np.testing.assert_allclose(seen.step, [4, 6, 4, 6, 8, 8])
    np.testing.assert_allclose(seen.expected, [2, 3, 10, 10, 10, 4])
    np.testing.assert_allclose(seen.spread, [1, 1, 0, 0, 0, 1])
    beliefs.forget_running()
    assert len(beliefs.decisions().step) == 5


@pytest.mark.parametrize("terminated", [True, False])
def test_expectations_of_the_plan_alone_meet_as_many_rewards(terminated):
    beliefs = Beliefs(1, GAMMA)
    for step, reward in enumerate([1.0, 2.0, 3.0]):
        beliefs.decide(step + 1, np.zeros((2, 1)), horizon=2)
        beliefs.receive(np.array([reward]), np.array([step == 2]), np.array([terminated]))
    expected = [1 + GAMMA * 2, 2 + GAMMA * 3, 3.0] if terminated else [1 + GAMMA * 2, 2 + GAMMA * 3]
    np.testing.assert_allclose(beliefs.decisions().received, expected)


def test_picture_of_beliefs_shows_weighted_means_and_single_decisions():
    # Two decisions at either end of training, and one of which too little is known
    columns = [[1, 1, 41, 41, 41], [4, 10, 1, 3, 9], [1, 1, 2, 2, 2], [0, 6, 5, 7, 99], [2, 1, 1, 1, 0.5]]
    decisions = Decisions(*np.array(columns, dtype=float))
    left, right, *_ = belief(decisions).axes
    decisions = Decisions(*(column[:4] for column in decisions))
    expected, received = left.lines
    np.testing.assert_allclose(expected.get_xydata(), [[1, 6], [41, 2]])
    np.testing.assert_allclose(received.get_xydata(), [[1, 2], [41, 6]])
    band = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0, 7)
    dots = right.collections[0]
    np.testing.assert_allclose(dots.get_offsets(), np.stack([decisions.expected, decisions.received], axis=1))
    np.testing.assert_allclose(dots.get_array(), decisions.step)
    np.testing.assert_allclose(dots.get_sizes() / dots.get_sizes().min(), decisions.weight)
    with pytest.raises(ValueError, match="nothing to draw"):
        belief(Beliefs(1, GAMMA))


# The callback


class Watching(PlanPicturesCallback):
    """Keeps what the policy decided, and what members expected of it then."""

    def _on_training_start(self):
        super()._on_training_start()
        self.planned, policy, plan = [], self.model.policy, self.model.policy.plan

        def watched(obs, *args):
            decision = plan(obs, *args)
            if any(argument is policy.generator for argument in args):
                self.planned.append(policy.predict_return(obs, decision.actions).numpy())
            return decision

        policy.plan = watched

    def _on_training_end(self):
        super()._on_training_end()
        del self.model.policy.plan


@pytest.mark.parametrize(("normalized", "execute_steps"), [(False, 1), (True, 1), (True, 3)])
def test_callback_notes_what_was_expected_of_every_decision(normalized, execute_steps):
    env = make_vec_env("Pendulum-v1", n_envs=2, seed=0, env_kwargs={"max_episode_steps": 20})
    env = VecNormalize(env, gamma=0.98) if normalized else env
    callback = Watching()
    model = RGRL("MlpEnsemblePolicy", env, seed=0, **SMALL)
    model.policy.execute_steps = execute_steps
    with pytest.warns(UserWarning, match="no TensorBoard folder"):
        model.learn(160, callback=callback)
    decisions = callback.beliefs.decisions()
    expected = np.array(callback.planned)  # (decisions, m, n_envs)
    assert len(decisions.step) == 2 * len(expected) >= 40 // execute_steps
    order = np.argsort(decisions.step, kind="stable")
    np.testing.assert_allclose(decisions.expected[order], expected.mean(axis=1).ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(decisions.spread[order], expected.std(axis=1).ravel(), rtol=1e-3, atol=1e-5)
    # Raw rewards, as they are stored, in episodes of 20 steps each, side by side
    rewards = model.replay_buffer.rewards[:160].reshape(-1, 2)
    for step, received in zip(decisions.step[order][::2], decisions.received[order][::2], strict=True):
        place = int(step) // 2 - 1
        rest = rewards[place : 20 * (place // 20 + 1), 0]
        discounts = 0.98 ** np.arange(len(rest))
        np.testing.assert_allclose(received, rest @ discounts / (1 - 0.98 ** len(rest)), rtol=1e-4)


def test_pictures_are_in_tensorboard_and_training_is_what_it_was(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    runs = []
    for callback in (None, PlanPicturesCallback(n_steps=50)):
        model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, tensorboard_log=str(tmp_path), **SMALL)
        runs.append(model.learn(180, callback=callback, log_interval=None))
    without, with_pictures = runs
    for one, other in zip(without.policy.parameters(), with_pictures.policy.parameters(), strict=True):
        assert th.equal(one, other)
    np.testing.assert_array_equal(without.replay_buffer.actions, with_pictures.replay_buffer.actions)
    states = [(run.policy.generator.bit_generator.state, run.replay_buffer.rng.bit_generator.state) for run in runs]
    assert states[0] == states[1]

    events = event_accumulator.EventAccumulator(str(tmp_path / "RGRL_2"), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["plan/belief", "plan/trace"]
    # The first decisions are later than step 50.
    assert [event.step for event in events.Images("plan/trace")] == [100, 150, 180]
    for name in ("plan/trace", "plan/belief"):
        picture = np.asarray(Image.open(io.BytesIO(events.Images(name)[-1].encoded_image_string)))
        assert picture.shape[0] > 300
        assert picture.std() > 10


def test_callback_refuses_what_it_cannot_do():
    hidden = EveryNTimesteps(50, CallbackList([PlanPicturesCallback()]))
    with pytest.raises(ValueError, match="has to see every step, but EveryNTimesteps hides"):
        RGRL("MlpEnsemblePolicy", "CartPole-v1", **SMALL).learn(20, callback=hidden)
    with pytest.raises(ValueError, match="n_steps must be at least 1"):
        PlanPicturesCallback(n_steps=0)
    with pytest.raises(ValueError, match="but the agent is PPO"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").learn(8, callback=PlanPicturesCallback())
