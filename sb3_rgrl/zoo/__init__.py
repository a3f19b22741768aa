"""
RGRL in the RL Zoo (``rl_zoo3``): registration, hyperparameter search and ``python -m sb3_rgrl.zoo``.
"""

from sb3_rgrl.zoo.registration import default_config_path, register

__all__ = ["default_config_path", "register"]
