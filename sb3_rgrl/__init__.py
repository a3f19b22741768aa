"""Reversal Generative Reinforcement Learning (RGRL) for Stable-Baselines3."""

from sb3_rgrl.policies import CnnEnsemblePolicy, MlpEnsemblePolicy
from sb3_rgrl.rgrl import RGRL

__version__ = "0.1.0"

__all__ = ["RGRL", "CnnEnsemblePolicy", "MlpEnsemblePolicy", "__version__"]
