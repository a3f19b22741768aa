"""Reversal Generative Reinforcement Learning (RGRL) for Stable-Baselines3."""

from sb3_rgrl import envs
from sb3_rgrl.buffers import SequenceReplayBuffer
from sb3_rgrl.environments import EnvironmentFault
from sb3_rgrl.hindsight import HerSequenceReplayBuffer
from sb3_rgrl.policies import (
    AttentionEnsemblePolicy,
    CnnEnsemblePolicy,
    GruEnsemblePolicy,
    LstmEnsemblePolicy,
    MlpEnsemblePolicy,
    MultiInputEnsemblePolicy,
    RnnEnsemblePolicy,
)
from sb3_rgrl.rgrl import RGRL

__version__ = "0.1.0"

__all__ = [
    "RGRL",
    "AttentionEnsemblePolicy",
    "CnnEnsemblePolicy",
    "EnvironmentFault",
    "GruEnsemblePolicy",
    "HerSequenceReplayBuffer",
    "LstmEnsemblePolicy",
    "MlpEnsemblePolicy",
    "MultiInputEnsemblePolicy",
    "RnnEnsemblePolicy",
    "SequenceReplayBuffer",
    "__version__",
    "envs",
]
