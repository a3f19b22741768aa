"""Environments of this package, known to gymnasium as soon as ``sb3_rgrl`` is imported."""

from gymnasium.envs.registration import register

# By its name: the module is imported when one is made.
register("sb3_rgrl/FoodWorld-v0", entry_point="sb3_rgrl.envs.food_world:FoodWorld", max_episode_steps=200)
