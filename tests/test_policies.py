"""The policies by their names: what they are made of, what they aim at, and that they come back from the disk."""

import inspect
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from torch import nn, optim

import sb3_rgrl
from sb3_rgrl import RGRL
from sb3_rgrl.ensemble import (
    AttentionEnsemble,
    GruEnsemble,
    LstmEnsemble,
    MixedEnsemble,
    MlpEnsemble,
    RnnEnsemble,
)
from tests.toy import SMALL

# Fewer decisions than in SMALL: here it matters that an agent acts and learns at all.
TINY: dict[str, Any] = {**SMALL, "learning_starts": 100, "seed": 0}

KINDS = {
    "MlpEnsemblePolicy": MlpEnsemble,
    "GruEnsemblePolicy": GruEnsemble,
    "LstmEnsemblePolicy": LstmEnsemble,
    "RnnEnsemblePolicy": RnnEnsemble,
    "AttentionEnsemblePolicy": AttentionEnsemble,
}
each_policy = pytest.mark.parametrize("name", KINDS)


def make_model(name: str = "MlpEnsemblePolicy", env: Any = "CartPole-v1", **kwargs) -> RGRL:
    return RGRL(name, env, **{**TINY, **kwargs})


def observations_of(model: RGRL, n: int = 4) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (0.1 * generator.normal(size=(n, *model.observation_space.shape))).astype(np.float32)


def assert_decide_the_same(first: Any, second: Any, observations: np.ndarray) -> None:
    """Agents or policies."""
    action, plans = first.predict(observations, deterministic=True)
    again, plans_again = second.predict(observations, deterministic=True)
    np.testing.assert_array_equal(action, again)
    np.testing.assert_array_equal(plans[0], plans_again[0])


# By name


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@each_policy
def test_each_policy_learns_is_saved_and_decides_the_same(name, env_id, tmp_path):
    model = make_model(name, env_id)
    assert type(model.policy) is getattr(sb3_rgrl, name)
    assert type(model.policy.ensemble) is KINDS[name]
    before = [parameter.detach().clone() for parameter in model.policy.ensemble.parameters()]
    model.learn(160)
    assert model.num_timesteps == 160
    assert model._n_updates > 0
    for old, new in zip(before, model.policy.ensemble.parameters(), strict=True):
        assert all(not th.equal(old[i], new[i]) for i in range(len(old))), "every member learns"
        assert th.isfinite(new).all()
    observations = observations_of(model)
    action, _ = model.predict(observations[0], deterministic=True)
    assert model.action_space.contains(np.asarray(action, dtype=model.action_space.dtype))

    model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent")
    assert_decide_the_same(model, loaded, observations)


@pytest.mark.parametrize("named", [False, True], ids=["class", "name"])
def test_class_and_name_are_the_same(named):
    policy = "GruEnsemblePolicy" if named else sb3_rgrl.GruEnsemblePolicy
    model = RGRL(policy, "CartPole-v1", **TINY)
    assert type(model.policy.ensemble) is GruEnsemble


def test_unknown_name():
    with pytest.raises(ValueError, match="Policy GruPolicy unknown"):
        make_model("GruPolicy")


@each_policy
def test_defaults_of_each_kind(name):
    model = make_model(name, policy_kwargs={})
    activation, net_arch = {
        "MlpEnsemblePolicy": (nn.SiLU, [64, 64]),
        "AttentionEnsemblePolicy": (nn.SiLU, [64, 64]),
    }.get(name, (nn.Tanh, [64]))
    assert model.policy.net_arch == net_arch
    assert type(model.policy.ensemble.activation) is activation
    # Perceptrons tell states at the end of a window, the others after each step.
    milestones = 1 if name == "MlpEnsemblePolicy" else SMALL["sequence_length"]
    assert model.policy.ensemble.n_milestones == milestones
    assert model.replay_buffer.milestone_every == SMALL["sequence_length"] // milestones


@pytest.mark.parametrize(("n_elements", "width"), [(16, 64), (17, 128)])
def test_perceptrons_of_wide_states_have_more_units(n_elements, width):
    space = gym.spaces.Box(-1, 1, (n_elements,))
    policy = sb3_rgrl.MlpEnsemblePolicy(space, gym.spaces.Discrete(2), lambda _: 1e-3)
    assert policy.net_arch == [width, width]
    assert (5, width, width) in {tuple(parameter.shape) for parameter in policy.ensemble.parameters()}
    # Asked for, they are what was asked for; and members of other kinds were not measured.
    small = sb3_rgrl.MlpEnsemblePolicy(space, gym.spaces.Discrete(2), lambda _: 1e-3, net_arch=[])
    assert small.net_arch == []
    assert sb3_rgrl.GruEnsemblePolicy(space, gym.spaces.Discrete(2), lambda _: 1e-3).net_arch == [64]
    assert sb3_rgrl.AttentionEnsemblePolicy(space, gym.spaces.Discrete(2), lambda _: 1e-3).net_arch == [64, 64]


def test_features_that_are_learned_are_no_wide_states():
    class Many(LearnedFeatures):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self._features_dim, self.linear = 17, nn.Linear(4, 17)

    model = make_model(policy_kwargs={"features_extractor_class": Many})
    assert model.policy.net_arch == [64, 64]
    assert model.policy.scales.state.mean.shape == (17,)


@each_policy
def test_plan_and_predict_reward(name):
    model = make_model(name).learn(120)
    observations = observations_of(model)
    model.policy.zero_grad()
    plan = model.policy.plan(observations)
    assert all(parameter.grad is None for parameter in model.policy.parameters()), "actions descend, weights do not"
    assert plan.actions.shape == (4, 6)
    assert plan.preactivated.shape == (4, 6, 2)
    assert (plan.error >= 0).all()
    assert np.isfinite(plan.error).all()
    rewards = model.policy.predict_reward(observations, plan.actions)
    assert rewards.shape == (2, 4, 6)
    assert th.isfinite(rewards).all()
    # One state's plan does not depend on the others.
    alone = model.policy.plan(observations[2:3])
    np.testing.assert_allclose(alone.error, plan.error[2:3], rtol=1e-3)


# What policy_kwargs bring


@pytest.mark.parametrize(
    ("name", "net_arch", "activation_fn", "n_weights"),
    [
        ("MlpEnsemblePolicy", [12, 8, 10], nn.ReLU, 4),
        ("GruEnsemblePolicy", [12, 10], nn.ELU, 3 * 2 + 1),
        ("LstmEnsemblePolicy", [12, 10], nn.SiLU, 4 * 2 + 1),
        ("RnnEnsemblePolicy", [12, 10], nn.ReLU, 3 * 2 + 1),
        ("AttentionEnsemblePolicy", [12, 12, 12], nn.GELU, 2 + 4 * 3 + 1),
    ],
)
def test_policy_kwargs_arrive_in_the_nets(name, net_arch, activation_fn, n_weights):
    kwargs: dict[str, Any] = {
        "net_arch": net_arch,
        "activation_fn": activation_fn,
        "weight_initializer": "orthogonal",
        "optimizer_class": optim.SGD,
        "optimizer_kwargs": {"momentum": 0.5, "weight_decay": 1e-4},
    }
    if name == "AttentionEnsemblePolicy":
        kwargs["member_kwargs"] = {"n_heads": 3}
    untouched = deepcopy(kwargs)
    model = make_model(name, policy_kwargs=kwargs, learning_rate=0.01)
    ensemble = model.policy.ensemble
    assert len(ensemble.weights) == len(ensemble.biases) == n_weights
    widths = {width for weight in ensemble.weights for width in weight.shape[1:]}
    assert set(net_arch) <= widths
    assert type(ensemble.activation) is activation_fn
    # First biases of zero, and weights that keep lengths: no uniform numbers have either.
    assert not any(bias.any() for bias in ensemble.biases)
    last = ensemble.weights[-1]
    if last.shape[1] < last.shape[2]:
        last = last.transpose(1, 2)
    th.testing.assert_close(last.transpose(1, 2) @ last, th.eye(last.shape[-1]).expand(2, -1, -1), rtol=0.0, atol=1e-5)
    if name == "AttentionEnsemblePolicy":
        assert ensemble.n_heads == 3
    optimizer = model.policy.optimizer
    assert type(optimizer) is optim.SGD
    assert optimizer.defaults["momentum"] == 0.5
    assert optimizer.defaults["weight_decay"] == 1e-4
    assert optimizer.defaults["lr"] == 0.01
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in ensemble.parameters()} <= held

    model.learn(120)
    assert kwargs == untouched
    assert model._n_updates > 0


def test_perceptrons_can_tell_more_milestones():
    model = make_model("MlpEnsemblePolicy", policy_kwargs={"net_arch": [8], "member_kwargs": {"n_milestones": 3}})
    assert model.policy.ensemble.n_milestones == 3
    assert model.replay_buffer.milestone_every == 1
    assert model.learn(120)._n_updates > 0


def test_unfit_kwargs():
    with pytest.raises(ValueError, match=r"does not fit 'mlp' members: .*'n_heads'"):
        make_model(policy_kwargs={"member_kwargs": {"n_heads": 2}})
    with pytest.raises(ValueError, match="weight_initializer must be one of"):
        make_model(policy_kwargs={"weight_initializer": "glorot"})
    with pytest.raises(ValueError, match="net_arch of recurrent members needs"):
        make_model("LstmEnsemblePolicy", policy_kwargs={"net_arch": []})
    with pytest.raises(ValueError, match="net_arch of attention members is"):
        make_model("AttentionEnsemblePolicy", policy_kwargs={"net_arch": [6]})
    for net_arch in ({"pi": [8], "qf": [8]}, 8, "8", [8, "8"]):
        with pytest.raises(ValueError, match="net_arch must be the widths of the hidden layers"):
            make_model(policy_kwargs={"net_arch": net_arch})
    with pytest.raises(ValueError, match="must add up to ensemble_size 2, got"):
        make_model(policy_kwargs={"member_groups": [{"n_members": 3}]})
    with pytest.raises(ValueError, match=r"Members must be of one of the kinds .*, got 'cnn'"):
        make_model(policy_kwargs={"member_groups": [{"n_members": 2, "kind": "cnn"}]})
    with pytest.raises(ValueError, match="aim must be one of"):
        make_model(policy_kwargs={"aim": "reward"})
    with pytest.raises(ValueError, match="n_milestones must divide sequence_length, got 2 and 3"):
        make_model("GruEnsemblePolicy", policy_kwargs={"member_kwargs": {"n_milestones": 2}})


# Several windows in a row


@pytest.mark.parametrize("name", ["MlpEnsemblePolicy", "GruEnsemblePolicy"])
def test_learns_from_several_windows_in_a_row(name):
    model = make_model(name, policy_kwargs={"net_arch": [8], "windows_per_sample": 2})
    assert model.replay_buffer.sequence_length == 6
    model.learn(140)
    windows = model.replay_buffer.sample(3)
    n_milestones = 2 * model.policy.ensemble.n_milestones
    assert windows.actions.shape == (2, 3, 6, 2)
    assert windows.terminated.shape == (2, 3, n_milestones)
    errors = model.policy.window_errors(windows, thin=False)
    assert errors.losses.shape == (2, 3)
    assert model._n_updates > 0
    by_one = make_model(name, policy_kwargs={"net_arch": [8], "windows_per_sample": 1})
    by_one.policy.load_state_dict(model.policy.state_dict())
    first = windows._replace(
        actions=windows.actions[:, :, :3],
        rewards=windows.rewards[..., :3],
        **{
            part: getattr(windows, part)[:, :, : n_milestones // 2]
            for part in ("next_observations", "terminated", "returns_to_go", "return_weights")
        },
    )
    alone = by_one.policy.window_errors(first, thin=False)
    assert (alone.rewards <= errors.rewards).all(), "more steps, more absolute errors"
    assert not th.allclose(alone.rewards, errors.rewards)


class LearnedFeatures(BaseFeaturesExtractor):
    """A linear layer."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, features_dim=3)
        self.linear = nn.Linear(4, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(observations)


def test_samples_hold_six_actions_by_default():
    assert make_model().policy.windows_per_sample == 2, "of three actions each"
    assert make_model(sequence_length=1, plan_horizon=6).policy.windows_per_sample == 6
    assert make_model(sequence_length=7, plan_horizon=7).policy.windows_per_sample == 1
    learned = {"net_arch": [8], "features_extractor_class": LearnedFeatures}
    assert make_model(sequence_length=1, plan_horizon=6, policy_kwargs=learned).policy.windows_per_sample == 1


def test_no_windows_in_a_row():
    with pytest.raises(ValueError, match="windows_per_sample must be at least 1, got 0"):
        make_model(policy_kwargs={"windows_per_sample": 0})


# What is desired


def test_desired_reward_for_all_members():
    goal = make_model(desired_reward=0.75).policy.goal()
    assert goal.reward.tolist() == [0.75, 0.75]


def test_desired_reward_of_each_member():
    model = make_model(desired_reward=[0.5, 2.0])
    goal = model.policy.goal()
    assert goal.reward.tolist() == [0.5, 2.0]
    assert goal.of(th.tensor([1, 0, 1])).reward.tolist() == [2.0, 0.5, 2.0]
    before = model.learn(120).policy.plan(observations_of(model)).error
    model.policy.set_desired_reward([5.0, 20.0])
    assert (model.policy.plan(observations_of(model)).error != before).all()


@pytest.mark.parametrize("desired", [[1.0, 2.0, 3.0], float("nan"), [1.0, float("inf")], "much", [[1.0, 2.0]]], ids=str)
def test_what_nobody_can_desire(desired):
    with pytest.raises(ValueError, match="desired_reward must be one finite number, or one for each of the 2 members"):
        make_model(desired_reward=desired)


@pytest.mark.parametrize("per_member", [False, True], ids=["one", "each"])
def test_schedule_of_the_desired_reward(per_member):
    asked = []

    def schedule(progress: float) -> float | list[float]:
        asked.append(progress)
        return [1.0 - progress, 2.0] if per_member else 1.0 - progress

    model = make_model(desired_reward=schedule)
    assert asked == [1.0]
    assert model.policy.goal().reward.tolist() == [0.0, 2.0 if per_member else 0.0]
    aimed = []

    def note(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        aimed.append(model.policy.goal().reward[0].item())
        return True

    model.learn(200, callback=note)
    # Random steps first; then each learning phase, 20 steps apart, asks anew.
    assert asked == pytest.approx([1.0, *(1.0 - steps / 200 for steps in range(120, 201, 20))])
    assert aimed[:120] == 120 * [0.0]
    assert aimed[120:] == pytest.approx([steps / 200 for steps in (120, 140, 160, 180) for _ in range(20)])
    assert model.policy.goal().reward.tolist() == pytest.approx([1.0, 2.0 if per_member else 1.0])


def test_schedule_goes_on_where_it_was_saved(tmp_path):
    model = make_model(desired_reward=lambda progress: 1.0 - progress).learn(140)
    with pytest.warns(UserWarning, match="desired_reward .*trust=True"):
        model.save(tmp_path / "agent")
    loaded = RGRL.load(tmp_path / "agent", trust=True)
    assert model.policy.goal().reward.tolist() == loaded.policy.goal().reward.tolist() == [1.0, 1.0]
    assert_decide_the_same(model, loaded, observations_of(model))


def test_schedule_of_sb3():
    model = make_model(desired_reward=LinearSchedule(0.0, 1.0, 1.0)).learn(140)
    assert model.policy.goal().reward.tolist() == [1.0, 1.0]


def test_schedule_that_leaves_the_range_of_rewards():
    model = make_model(desired_reward=lambda progress: 2.0 - progress, policy_kwargs={"reward_range": (0.0, 1.3)})
    with pytest.raises(ValueError, match=r"desired_reward 1\.[0-9]+ is outside what a reward can be here, 0\.0 to 1\.3"):
        model.learn(200)
    assert model.policy.goal().reward.tolist() == [1.0, 1.0]


# What a reward can be


class RangedEnv(gym.Wrapper):
    """CartPole that tells what its rewards can be, as Gym's environments once did."""

    def __init__(self, reward_range: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.reward_range = reward_range


ADVICE = "no plan could ever bring it. Choose one within that range, or None"


@pytest.mark.parametrize("desired", [1.5, -0.1, [0.5, 1.01]], ids=str)
@pytest.mark.parametrize("told_by", ["environment", "policy_kwargs", "environments"])
def test_reward_that_cannot_be(told_by, desired):
    env: Any = RangedEnv()
    kwargs: dict[str, Any] = {}
    if told_by == "policy_kwargs":
        env, kwargs = "CartPole-v1", {"policy_kwargs": {"net_arch": [8], "reward_range": [0.0, 1.0]}}
    elif told_by == "environments":
        env = make_vec_env(RangedEnv, n_envs=2)
    with pytest.raises(ValueError, match=r"desired_reward .* is outside what a reward can be here, 0\.0 to 1\.0") as error:
        make_model(env=env, desired_reward=desired, **kwargs)
    assert ADVICE in str(error.value)
    assert str(desired) in str(error.value)


@pytest.mark.parametrize("desired", [None, 0.0, 1.0, [0.0, 1.0]], ids=str)
def test_reward_that_can_be(desired):
    model = make_model(env=RangedEnv(), desired_reward=desired)
    assert model.policy.reward_range == (0.0, 1.0)
    with pytest.raises(ValueError, match="is outside what a reward can be here"):
        model.policy.set_desired_reward(3.0)
    assert model.policy.desired_reward == desired, "a refused reward changes nothing"


def test_what_the_caller_knows_goes_before_what_the_environment_tells():
    model = make_model(env=RangedEnv(), desired_reward=5.0, policy_kwargs={"net_arch": [8], "reward_range": (0.0, 10.0)})
    assert model.policy.reward_range == (0.0, 10.0)


def test_endless_range_refuses_nothing():
    model = make_model(env=RangedEnv((-float("inf"), float("inf"))), desired_reward=1e6)
    assert model.policy.goal().reward.tolist() == [1e6, 1e6]


def test_environments_of_different_ranges():
    env = make_vec_env(lambda: RangedEnv((0.0, 1.0)), n_envs=2)
    env.env_method("set_wrapper_attr", "reward_range", (-2.0, 0.5), indices=[1])
    assert make_model(env=env, desired_reward=-1.5).policy.reward_range == (-2.0, 1.0)


def test_environments_that_tell_no_range():
    assert make_model().policy.reward_range is None


@pytest.mark.parametrize("reward_range", [(1.0, 0.0), (0.0,), (0.0, 1.0, 2.0)], ids=str)
def test_what_is_no_range(reward_range):
    with pytest.raises(ValueError, match=r"reward_range must be the .*least, largest.* reward of a step"):
        make_model(desired_reward=0.5, policy_kwargs={"reward_range": reward_range})


# SB3's way to keep a policy without its agent


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (
            "MlpEnsemblePolicy",
            {
                "net_arch": [12],
                "activation_fn": nn.ReLU,
                "aim": "step",
                "return_weight": 0.5,
                "action_optimizer": "sgd",
                "action_initializer": "uniform",
                "member_choice": "cyclic",
                "warm_start": False,
                "fast_gradients": False,
                "windows_per_sample": 2,
                "reward_range": (0.0, 1.0),
                "optimizer_class": optim.RMSprop,
                "optimizer_kwargs": {"momentum": 0.1},
            },
        ),
        ("AttentionEnsemblePolicy", {"net_arch": [12], "member_kwargs": {"n_heads": 2}, "weight_initializer": "orthogonal"}),
        ("LstmEnsemblePolicy", {"net_arch": [6], "member_kwargs": {"n_milestones": 1}}),
        (
            "GruEnsemblePolicy",
            {"member_groups": [{"n_members": 1, "net_arch": [5]}, {"n_members": 1, "kind": "rnn", "activation_fn": nn.ReLU}]},
        ),
    ],
)
def test_policy_comes_back_without_its_agent(name, kwargs, tmp_path):
    settings = {"desired_reward": [0.5, 1.0], "action_init_std": 0.7, "action_noise_correlation": 0.4, "gamma": 0.9}
    model = make_model(name, policy_kwargs=kwargs, action_learning_rate=0.2, dropout=0.1, **settings).learn(120)
    policy = model.policy
    policy.save(str(tmp_path / "policy"))
    loaded = type(policy).load(str(tmp_path / "policy"))
    assert type(loaded) is type(policy)
    assert type(loaded.ensemble) is type(policy.ensemble)
    observations = observations_of(model)
    assert_decide_the_same(policy, loaded, observations)
    assert_decide_the_same(model, loaded, observations)

    data, again = policy._get_constructor_parameters(), loaded._get_constructor_parameters()
    assert {key: value for key, value in data.items() if key != "lr_schedule"} == {
        key: value for key, value in again.items() if key != "lr_schedule"
    }
    for key, value in {**kwargs, **settings, "dropout": 0.1, "action_learning_rate": 0.2}.items():
        assert data[key] == value, key
    assert type(loaded.optimizer) is type(policy.optimizer)
    if name == "GruEnsemblePolicy":
        assert isinstance(loaded.ensemble, MixedEnsemble)
        assert [type(group) for group in loaded.ensemble.groups()] == [GruEnsemble, RnnEnsemble]


def test_every_parameter_of_a_policy_is_saved_with_it():
    # One that is added and forgotten would come back as its default.
    model = make_model()
    parameters = set(inspect.signature(sb3_rgrl.policies.EnsemblePolicy.__init__).parameters) - {"self"}
    assert parameters == set(model.policy._get_constructor_parameters())


def test_weights_fade_by_default():
    group = RGRL("MlpEnsemblePolicy", "CartPole-v1").policy.optimizer.param_groups[0]
    assert (type(RGRL("MlpEnsemblePolicy", "CartPole-v1").policy.optimizer), group["weight_decay"]) == (optim.AdamW, 0.1)
    assert group["fused"] is True


@pytest.mark.parametrize("optimizer_class", [optim.Adam, optim.AdamW])
def test_optimizers_of_the_caller_have_their_own_weight_decay(optimizer_class):
    policy_kwargs = {"optimizer_class": optimizer_class, "optimizer_kwargs": {"eps": 1e-5}}
    optimizer = RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs=policy_kwargs).policy.optimizer
    assert optimizer.defaults["weight_decay"] == optimizer_class([th.nn.Parameter(th.zeros(1))]).defaults["weight_decay"]
    assert optimizer.defaults["eps"] == 1e-5
    plain = RGRL("MlpEnsemblePolicy", "CartPole-v1", policy_kwargs={"optimizer_class": optim.Adam}).policy.optimizer
    assert (plain.defaults["weight_decay"], plain.defaults["fused"]) == (0, True)
