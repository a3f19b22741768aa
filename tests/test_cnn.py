"""Images: how they come in, what is learned from them, and that the units of features follow them."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage, is_vecenv_wrapped
from torch import nn, optim

from sb3_rgrl import RGRL, CnnEnsemblePolicy
from sb3_rgrl.targets import Scales
from tests.toy import SMALL

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

import images as pixels

FEW_FEATURES = {"features_extractor_kwargs": {"features_dim": 16}}
TINY = {**SMALL, "learning_starts": 25, "policy_kwargs": {"net_arch": [16], **FEW_FEATURES}}


def image_env(channel_first: bool = True, discrete: bool = True) -> FakeImageEnv:
    env = FakeImageEnv(3, 40, 40, n_channels=1, discrete=discrete, channel_first=channel_first)
    # Its images are drawn from the space, which reset(seed=...) does not seed.
    env.observation_space.seed(0)
    return env


def make_model(env=None, **kwargs) -> RGRL:
    return RGRL("CnnEnsemblePolicy", env or image_env(), **{"seed": 0, **TINY, **kwargs})


@pytest.mark.parametrize("channel_first", [False, True])
@pytest.mark.parametrize("discrete", [False, True])
def test_channels_first_or_last(channel_first, discrete):
    env = image_env(channel_first, discrete)
    model = make_model(env).learn(60)
    assert model._n_updates > 0
    assert is_vecenv_wrapped(model.env, VecTransposeImage) == (not channel_first)
    assert model.replay_buffer.observations.shape[1:] == (1, 40, 40)
    assert model.replay_buffer.observations.dtype == np.uint8
    # Images as the environment gives them, and as the agent sees them
    image = env.observation_space.sample()
    as_seen = image if channel_first else image.transpose(2, 0, 1)
    actions = [model.predict(given, deterministic=True)[1][0] for given in (image, as_seen, as_seen[None])]
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_array_equal(actions[0], actions[2])


def test_rows_of_a_batch_have_the_noise_that_they_have_alone():
    policy = make_model().policy
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 40, 40), dtype=np.uint8)
    whole = policy.plan(images)
    for k, image in enumerate(images):
        alone = policy.plan(image)
        np.testing.assert_array_equal(alone.descent.path()[0][:, 0], whole.descent.path()[0][:, k])
        np.testing.assert_allclose(alone.error[0], whole.error[k], rtol=1e-4)


def test_images_are_divided_by_255_unless_told_otherwise():
    image = np.full((1, 1, 40, 40), 51, dtype=np.uint8)
    policy = make_model().policy
    features = policy.features_extractor(th.full((1, 1, 40, 40), 0.2))
    th.testing.assert_close(policy.standardised_states(image), features.detach())

    class Scaled(FakeImageEnv):
        def __init__(self) -> None:
            super().__init__(3, 40, 40, channel_first=True)
            self.observation_space = spaces.Box(0.0, 1.0, (1, 40, 40), dtype=np.float32)

    with pytest.raises(ValueError, match=r"(?s)only with images not with Box.*policy_kwargs=dict\(normalize_images=False\)"):
        make_model(Scaled())
    policy_kwargs = {**TINY["policy_kwargs"], "normalize_images": False}
    model = make_model(Scaled(), policy_kwargs=policy_kwargs).learn(60)
    scaled = image.astype(np.float32) / 255
    features = model.policy.features_extractor(th.full((1, 1, 40, 40), 0.2)).detach()
    th.testing.assert_close(model.policy.standardised_states(scaled), model.policy.scales.state(features))
    # SB3 writes into the arguments of the extractor; not into the caller's.
    assert policy_kwargs == {"net_arch": [16], "features_extractor_kwargs": {"features_dim": 16}, "normalize_images": False}


def test_stacked_frames():
    env = VecFrameStack(DummyVecEnv([image_env]), 3, channels_order="first")
    assert make_model(env).learn(60).policy.features_extractor.cnn[0].in_channels == 3


class Wide(NatureCNN):
    pass


def test_policy_kwargs():
    policy_kwargs = {
        "net_arch": [8, 4],
        "activation_fn": nn.Tanh,
        "features_extractor_class": Wide,
        "features_extractor_kwargs": {"features_dim": 12},
        "optimizer_class": optim.RMSprop,
        "optimizer_kwargs": {"alpha": 0.9},
        "share_features_extractor": True,
    }
    given = {**policy_kwargs, "features_extractor_kwargs": dict(policy_kwargs["features_extractor_kwargs"])}
    model = make_model(policy_kwargs=policy_kwargs).learn(60)
    assert policy_kwargs == given
    policy = model.policy
    assert isinstance(policy.features_extractor, Wide)
    assert policy.scales.state.mean.shape == (12,)
    assert isinstance(policy.optimizer, optim.RMSprop)
    assert policy.optimizer.defaults["alpha"] == 0.9
    assert isinstance(policy.ensemble.activation, nn.Tanh)
    assert [weight.shape[-1] for weight in policy.ensemble.weights][:2] == [8, 4]


def test_members_share_the_extractor():
    with pytest.raises(ValueError, match="share_features_extractor must be True"):
        make_model(policy_kwargs={"share_features_extractor": False})


@pytest.mark.parametrize("error", [ValueError, AssertionError])
@pytest.mark.parametrize("policy", ["CnnPolicy", CnnEnsemblePolicy])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_vectors_are_no_images(env_id, policy, error):
    # The beginning is SB3's, which asserts it.
    with pytest.raises(error, match=r"You should use NatureCNN only with images not with (Box|Discrete)\(.*\n.*Ensemble"):
        RGRL(policy, env_id, **SMALL)


def test_members_predict_features_and_the_extractor_learns(monkeypatch):
    model = make_model().learn(25)
    before = [parameter.clone() for parameter in model.policy.features_extractor.parameters()]
    windows = model.replay_buffer.windows(model.replay_buffer.all_windows()[None, :4].repeat(2, axis=0))
    targets = model.policy.next_states_of(windows)
    assert targets.shape == (2, 4, 1, 16)
    assert not targets.requires_grad
    model.learn(40, reset_num_timesteps=False)
    after = model.policy.features_extractor.parameters()
    assert all(not th.equal(old, new) for old, new in zip(before, after, strict=True))


def test_not_too_many_images_at_once(monkeypatch):
    # A pass over the whole buffer must fit into memory as an update does.
    model = make_model(ewc_lambda=1.0, replay_buffer_kwargs={"priority_refresh": "all"})
    seen = []
    extract = CnnEnsemblePolicy.extract_features

    def counting(self, obs, features_extractor):
        seen.append(len(obs))
        return extract(self, obs, features_extractor)

    monkeypatch.setattr(CnnEnsemblePolicy, "extract_features", counting)
    model.learn(100)
    at_once = max(model.ensemble_size * model.batch_size, model.UNIT_WINDOWS)
    assert 0 < max(seen) <= at_once
    model.replay_buffer.mark_all_as_new()
    model._take_in_new_windows(model.replay_buffer)
    assert max(seen) <= at_once


# Units of features


def test_units_follow_features_that_change():
    model = make_model().learn(60)
    policy, buffer = model.policy, model.replay_buffer
    with th.no_grad():
        policy.features_extractor.linear[0].weight.mul_(30.0)
        policy.features_extractor.linear[0].bias.mul_(30.0)
    model._take_in_new_windows(buffer)
    with th.no_grad():
        every = th.as_tensor(buffer.observations[buffer.all_windows()])[None]
        states = policy.scales.state(policy.states_of(every))[0]
    # In the units from before they would be 30 times as wide. The units are of a sample of the windows: of a feature that
    # is other than 0 in one image of 48 that tells little.
    often = (policy.states_of(every)[0] != 0.0).sum(dim=0) > 10
    spread = states.std(dim=0)[often]
    assert len(spread) > 3
    assert 0.7 < float(spread.min()) <= float(spread.max()) < 1.4


def test_units_stay_where_nothing_is_learned_of_states():
    model = RGRL("MlpEnsemblePolicy", "CartPole-v1", seed=0, **SMALL).learn(100)
    assert not model.policy.learns_features
    assert model.policy.scales.state.count == model.replay_buffer.n_windows
    frozen = make_model()
    assert frozen.policy.learns_features
    frozen.policy.features_extractor.requires_grad_(False)
    assert not frozen.policy.learns_features
    assert frozen.learn(60)._n_updates > 0
    assert frozen.policy.scales.state.count > 0


def test_renewed_states_are_all_that_counts():
    scales = Scales(2)
    generator = th.Generator().manual_seed(0)
    old, new = (th.randn(50, 2, generator=generator) * scale for scale in (100.0, 3.0))
    alive = th.ones(50, 1)
    alive[:10] = 0.0
    scales.learn_windows(old, old[:, None], th.zeros(50, 1))
    scales.renew_states(new, 2.0 * new[:, None], alive)
    np.testing.assert_allclose(scales.state.mean, new.mean(dim=0), rtol=1e-5)
    np.testing.assert_allclose(scales.state.std, new.std(dim=0, correction=0), rtol=1e-5)
    counted = 2.0 * new[10:]
    usual = th.minimum(counted.square().mean(dim=0).sqrt(), counted.abs().mean(dim=0) * (np.pi / 2) ** 0.5)
    np.testing.assert_allclose(scales.state_change.std, usual, rtol=1e-5)


@pytest.mark.slow
def test_learns_from_pixels_alone():
    model = pixels.make_model("random", seed=0).learn(2_000)
    # Random actions get 22, with a standard error of 4 for ten episodes.
    assert np.mean([info["r"] for info in list(model.ep_info_buffer)[-10:]]) > 33.0


def test_pixels_tell_where_things_are():
    env = pixels.Pixels(gym.make("CartPole-v1"))
    left, upright, right = (env.observation(np.array([0.0, 0.0, angle, 0.0]))[0].astype(float) for angle in (-0.2, 0.0, 0.2))
    columns = np.arange(40)
    top = slice(8, 20)
    middles = [(image[top] * columns).sum() / image[top].sum() for image in (left, upright, right)]
    assert middles[0] < middles[1] - 1.0
    assert middles[1] < middles[2] - 1.0
    # Less than a pixel is seen, too.
    assert not np.array_equal(env.observation(np.array([0.0, 0.0, 0.005, 0.0]))[0], upright)
    np.testing.assert_allclose(middles[1], 19.5, atol=0.5)
    assert env.observation_space.contains(env.observation(np.zeros(4)))
