"""
Who takes part, with which hyperparameters: RGRL, the algorithms of SB3 and its contrib package, and two simple policies.

``<algorithm>`` is tuned: what the RL Zoo's users get, by its own files and its ``ExperimentManager``, with the wrappers,
normalisation, schedules and number of environments that belong to it. ``<algorithm>-sb3`` has the defaults of SB3's
constructor. RGRL is the other way round: ``rgrl`` is frozen at the defaults of its constructor, ``rgrl-tuned`` takes
``hyperparams/rgrl.yml``.
"""

import argparse
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import rl_zoo3
import yaml
from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from sb3_rgrl.benchmark.results import RunInfo
from sb3_rgrl.benchmark.simple import LinearSearch, SimpleAlgorithm, UniformRandom
from sb3_rgrl.zoo import default_config_path, register

register()

Spaces = tuple[type[spaces.Space[Any]], ...]
DISCRETE: Spaces = (spaces.Discrete,)
BOX: Spaces = (spaces.Box,)
BOTH: Spaces = (spaces.Box, spaces.Discrete)
MOST: Spaces = (*BOTH, spaces.MultiDiscrete, spaces.MultiBinary)
ACTION_SPACES: dict[str, Spaces] = {
    "rgrl": MOST,
    "dqn": DISCRETE,
    "qrdqn": DISCRETE,
    "ppo": MOST,
    "a2c": MOST,
    "trpo": MOST,
    "ars": BOTH,
    "ppo_lstm": MOST,
    "sac": BOX,
    "td3": BOX,
    "ddpg": BOX,
    "tqc": BOX,
    "crossq": BOX,
    "random": MOST,
    "linear-search": BOTH,
}
"""Algorithm -> action spaces that it can take, as its constructor checks them."""
SIMPLE: dict[str, type[SimpleAlgorithm]] = {"random": UniformRandom, "linear-search": LinearSearch}
RGRL = "rgrl"

# They choose what is run or printed, not how the agent learns.
NO_HYPERPARAMETERS = ("self", "env", "seed", "device", "verbose", "tensorboard_log", "stats_window_size", "_init_setup_model")


@dataclass(frozen=True)
class Variant:
    """
    An algorithm with a source of hyperparameters.

    :param name: Its name on the command line.
    :param algorithm: Name of the algorithm, the RL Zoo's where it has one.
    :param tuned: Whether the hyperparameters are those of a file of the RL Zoo's form, else the constructor's defaults.
    :param changes: What departs from the constructor's defaults.
    """

    name: str
    algorithm: str
    tuned: bool = False
    changes: dict[str, Any] = field(default_factory=dict)


def _all_variants() -> dict[str, Variant]:
    peers = [name for name in ACTION_SPACES if name != RGRL and name not in SIMPLE]
    variants = [
        Variant(RGRL, RGRL),
        Variant("rgrl-tuned", RGRL, tuned=True),
        Variant("rgrl-cem", RGRL, changes={"policy_kwargs": {"search": "cem"}}),
        Variant("rgrl-shooting", RGRL, changes={"policy_kwargs": {"search": "shooting"}}),
        *(Variant(name, name, tuned=True) for name in peers),
        *(Variant(f"{name}-sb3", name) for name in peers),
        *(Variant(name, name) for name in SIMPLE),
    ]
    return {variant.name: variant for variant in variants}


VARIANTS = _all_variants()
"""Name -> variant, all there are."""


# Whether it can


def why_not(algorithm: str, env: gym.Env[Any, Any]) -> str:
    """
    :param algorithm: Name of an algorithm.
    :param env: An environment.
    :return: Why it cannot learn there; empty if it can.
    """
    allowed, space = ACTION_SPACES[algorithm], env.action_space
    if not isinstance(space, allowed):
        names = " and ".join(kind.__name__ for kind in allowed)
        return f"{algorithm} takes {names} actions, but the action space is {space}"
    seen = env.observation_space
    if algorithm == "linear-search":
        if not (isinstance(seen, spaces.Box) and len(seen.shape) == 1):
            return f"{algorithm} takes flat Box observations, but the observation space is {seen}"
        if isinstance(space, spaces.Box) and not space.is_bounded():
            return f"{algorithm} takes bounded actions, but the action space is {space}"
    return ""


# Hyperparameters


def tuned_entry(algorithm: str, env_id: str) -> tuple[dict[str, Any], str]:
    """
    :param algorithm: Name of an algorithm of the RL Zoo, or ``"rgrl"``.
    :param env_id: Environment.
    :return: Its entry in the tuned hyperparameters, and which one that is. Without one of its own: that of another version
        of the environment, that of all Atari games, or the default.
    """
    path = default_config_path() if algorithm == RGRL else Path(rl_zoo3.__path__[0]) / "hyperparams" / f"{algorithm}.yml"
    entries: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    others = sorted((name for name in entries if name.rpartition("-v")[0] == env_id.rpartition("-v")[0] != ""), reverse=True)
    shared = ["atari"] if ExperimentManager.is_atari(env_id) else []
    name = next(name for name in (env_id, *others, *shared, "default") if name in entries)
    entry = dict(entries[name])
    # The zoo's default for RecurrentPPO names a policy that it does not have.
    aliases = ALGOS[algorithm].policy_aliases
    if entry.get("policy") not in aliases and "." not in str(entry.get("policy")):
        entry["policy"] = default_policy(algorithm, image=entry.get("policy") == "CnnPolicy")
    return entry, f"{path.name} of {'sb3_rgrl' if algorithm == RGRL else 'rl_zoo3'}: {name}"


def default_policy(algorithm: str, image: bool) -> str:
    """
    :param algorithm: Name of an algorithm that learns.
    :param image: Whether observations are images.
    :return: Name of its plainest policy for them.
    :raises ValueError: If it has none.
    """
    kind = "Cnn" if image else "Mlp"
    found = [name for name in ALGOS[algorithm].policy_aliases if name.startswith(kind)]
    if not found:
        raise ValueError(f"{algorithm} has no policy for images")
    return found[0]


def constructor_defaults(algorithm: type) -> dict[str, Any]:
    """
    :param algorithm: Class of an algorithm.
    :return: Default of each of its hyperparameters that has one.
    """
    parameters = inspect.signature(algorithm).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in NO_HYPERPARAMETERS and p.default is not p.empty}


def hyperparameters_of(variant: Variant, env: gym.Env[Any, Any]) -> tuple[dict[str, Any], str]:
    """
    :param variant: A variant.
    :param env: The environment, made with ``gymnasium.make``.
    :return: All its hyperparameters there, in types of JSON, and where they come from. Texts of the zoo's files stay texts.
    """
    if variant.algorithm in SIMPLE:
        return constructor_defaults(SIMPLE[variant.algorithm]), "defaults of sb3_rgrl.benchmark"
    defaults = constructor_defaults(ALGOS[variant.algorithm])
    if variant.tuned:
        assert env.spec is not None
        entry, source = tuned_entry(variant.algorithm, env.spec.id)
        # The budget replaces it.
        entry.pop("n_timesteps", None)
        return as_json({**defaults, **entry}), source
    chosen = {"policy": policy_of(variant.algorithm, env.observation_space), **variant.changes}
    return as_json({**defaults, **chosen}), "defaults of the constructor"


def policy_of(algorithm: str, space: spaces.Space[Any]) -> str:
    """
    :param algorithm: Name of an algorithm that learns.
    :param space: Observation space.
    :return: Name of its plainest policy for it.
    """
    if isinstance(space, spaces.Dict):
        return next(name for name in ALGOS[algorithm].policy_aliases if name.startswith("MultiInput"))
    return default_policy(algorithm, image=is_image_space(space))


def as_json(value: Any) -> Any:
    """
    :param value: Anything.
    :return: The same after a way through JSON: tuples become lists, what JSON does not know its name or text.
    """
    return json.loads(json.dumps(value, default=lambda other: getattr(other, "__name__", None) or repr(other)))


# Making it


@dataclass
class Contestant:
    """
    A model that is ready to learn.

    :param model: It; ``predict`` and ``num_timesteps`` are used.
    :param learn: Learns for the whole budget and calls the callback after each step.
    :param eval_env: Environments to evaluate on, wrapped like those of training, with the rewards as they are.
    :param deterministic: Whether it is evaluated with deterministic actions.
    """

    model: BaseAlgorithm | SimpleAlgorithm
    learn: Callable[[BaseCallback], object]
    eval_env: VecEnv
    deterministic: bool = True


def make_contestant(info: RunInfo, n_eval_envs: int, scratch: Path) -> Contestant:
    """
    :param info: Which run.
    :param n_eval_envs: Number of environments to evaluate on.
    :param scratch: Folder for the zoo's own files.
    :return: The model and its environments, on the CPU.
    """
    variant = VARIANTS[info.variant]
    deterministic = not (ExperimentManager.is_atari(info.env_id) or ExperimentManager.is_minigrid(info.env_id))
    if variant.tuned:
        return _tuned(variant, info, n_eval_envs, scratch, deterministic)
    env = make_vec_env(info.env_id, n_envs=1, seed=info.seed)
    eval_env = make_vec_env(info.env_id, n_envs=n_eval_envs)
    model: BaseAlgorithm | SimpleAlgorithm
    if variant.algorithm in SIMPLE:
        model = SIMPLE[variant.algorithm](env, seed=info.seed)
    else:
        policy = policy_of(variant.algorithm, env.observation_space)
        model = ALGOS[variant.algorithm](policy, env, seed=info.seed, device="cpu", **variant.changes)
        # Images are transposed for the model's own environment.
        eval_env = BaseAlgorithm._wrap_env(eval_env)

    def learn(callback: BaseCallback) -> None:
        if isinstance(model, SimpleAlgorithm):
            model.learn(info.n_timesteps, callback)
        else:
            model.learn(info.n_timesteps, callback, log_interval=None)  # type: ignore[arg-type]

    return Contestant(model, learn, eval_env, deterministic)


def _tuned(variant: Variant, info: RunInfo, n_eval_envs: int, scratch: Path, deterministic: bool) -> Contestant:
    entry, _ = tuned_entry(variant.algorithm, info.env_id)
    config = scratch / "hyperparams.yml"
    config.write_text(yaml.safe_dump({info.env_id: entry}), encoding="utf-8")
    manager = ExperimentManager(
        argparse.Namespace(),
        variant.algorithm,
        info.env_id,
        str(scratch),
        n_timesteps=info.n_timesteps,
        # The zoo evaluates neither as often nor as this benchmark does.
        eval_freq=-1,
        seed=info.seed,
        log_interval=-2,
        verbose=0,
        device="cpu",
        config=str(config),
    )
    made = manager.setup_experiment()
    assert made is not None
    model, _ = made

    def learn(callback: BaseCallback) -> None:
        manager.callbacks.append(callback)
        manager.learn(model)

    return Contestant(model, learn, manager.create_envs(n_eval_envs, eval_env=True), deterministic)
