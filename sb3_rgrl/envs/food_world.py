"""A point that is pushed to food: two forces that have to be chosen together."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

TIME_STEP = 0.05  # seconds
ACCELERATION = 4.0  # by the largest force
DRAG = 2.0  # loss of speed per second and speed
TOP_SPEED = ACCELERATION / DRAG
REACH = 0.1
# Food appears at least so far from the agent, and within this range on both axes.
NEAREST, RANGE = 0.5, 0.9
PIXELS = 96
BACKGROUND, FOOD, AGENT = (255, 255, 255), (0, 158, 115), (0, 114, 178)


class FoodWorld(gym.Env[np.ndarray, np.ndarray]):
    """
    A point of mass 1 in the square from -1 to 1, and food that appears elsewhere as soon as it is reached.

    **Actions**, shape (2,): force along x and y, each from -1 to 1; longer forces than 1 are cut to length 1, in their
    direction. So no direction is stronger than another: with the square alone, diagonal pushes would be.

    **Observations**, shape (7,): position (x, y), velocity (x, y), place of the food relative to the agent (x, y), and its
    distance.

    **Dynamics**: each step of 0.05 s adds ``0.05 (4 force - 2 velocity)`` to the velocity and then ``0.05 velocity`` to the
    position. Speed stays below 2. Walls stop the part of the velocity that goes into them.

    **Rewards**: by how much the agent came nearer to the food, plus 1 when it comes within 0.1 of it. Minus the distance,
    which many tasks have, would punish success: the next food is farther away. Coming nearer is a potential (Ng, Harada and
    Russell, 1999), so that circling earns nothing.

    **Episodes** never terminate; ``gymnasium.make("sb3_rgrl/FoodWorld-v0")`` cuts them off after 200 steps (10 s).
    ``info["foods"]`` counts the food of the episode.

    :param render_mode: None, or ``"rgb_array"`` for images of 96 x 96.
    :raises ValueError: If there is no such mode.
    """

    # Not a ClassVar: gymnasium declares it as an instance's.
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"FoodWorld renders as {self.metadata['render_modes']} or not at all (None), got {render_mode!r}")
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        high = np.array([1.0, 1.0, TOP_SPEED, TOP_SPEED, 1.0 + RANGE, 1.0 + RANGE, 2**0.5 * (1.0 + RANGE)], np.float32)
        low = np.append(-high[:-1], np.float32(0.0))
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self._position, self._velocity, self._food = np.zeros((3, 2))
        self._n_foods = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Put the agent somewhere, at rest.

        :param seed: Seed of all places from now on; None: go on with the generator there is.
        :param options: Not used.
        :return: Observation, shape (7,), and info.
        """
        super().reset(seed=seed)
        self._position = self.np_random.uniform(-RANGE, RANGE, 2)
        self._velocity = np.zeros(2)
        self._food = self._new_food()
        self._n_foods = 0
        return self._observe(), {"foods": 0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Force, shape (2,).
        :return: Observation, reward, False twice, and info.
        :raises ValueError: If the action has another shape, or is not finite.
        """
        force = _force_of(action)
        before = self._distance()
        self._velocity = self._velocity + TIME_STEP * (ACCELERATION * force - DRAG * self._velocity)
        moved = self._position + TIME_STEP * self._velocity
        self._position = np.clip(moved, -1.0, 1.0)
        self._velocity[moved != self._position] = 0.0
        reward = before - self._distance()
        if self._distance() <= REACH:
            reward += 1.0
            self._n_foods += 1
            self._food = self._new_food()
        return self._observe(), float(reward), False, False, {"foods": self._n_foods}

    def render(self) -> np.ndarray | None:
        """
        :return: The agent (blue), from whose centre a line shows its velocity, and the food (green) as large as its reach;
            shape (96, 96, 3), y upwards. None if there is no render mode.
        """
        if self.render_mode is None:
            return None
        image = np.full((PIXELS, PIXELS, 3), BACKGROUND, np.uint8)
        image[_near(self._food, REACH)] = FOOD
        for share in np.linspace(0.0, 0.2, 20):
            image[_near(self._position + share * self._velocity, 0.015)] = AGENT
        image[_near(self._position, 0.05)] = AGENT
        return image

    def _new_food(self) -> np.ndarray:
        # From anywhere in the square, most of it is far enough.
        while True:
            food = self.np_random.uniform(-RANGE, RANGE, 2)
            if np.linalg.norm(food - self._position) >= NEAREST:
                return food

    def _distance(self) -> float:
        return float(np.linalg.norm(self._food - self._position))

    def _observe(self) -> np.ndarray:
        parts = (self._position, self._velocity, self._food - self._position, [self._distance()])
        return np.concatenate(parts).astype(np.float32)


def _force_of(action: np.ndarray) -> np.ndarray:
    """
    :return: Force of length 1 at most, shape (2,).
    """
    force = np.asarray(action, np.float64)
    if force.shape != (2,) or not np.isfinite(force).all():
        raise ValueError(f"FoodWorld takes two finite forces, along x and y, got {action!r}")
    force = np.clip(force, -1.0, 1.0)
    return force / max(1.0, float(np.linalg.norm(force)))


def _near(place: np.ndarray, radius: float) -> np.ndarray:
    """
    :return: Which pixels lie within the radius of a place, shape (96, 96).
    """
    ticks = np.linspace(-1.0, 1.0, PIXELS)
    near: np.ndarray = np.hypot(ticks[None, :] - place[0], ticks[::-1, None] - place[1]) <= radius
    return near
