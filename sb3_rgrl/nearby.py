"""States near the observed one, from which members may score plans."""

import math

import numpy as np

# From how many states each member scores plans with noise. Each costs as much as scoring without noise; from one it helps
# less, if at all (docs/tried.md, "Members that judge from nearby").
STATE_DRAWS = 4


def state_offsets(n_members: int, state_dim: int, std: float) -> np.ndarray:
    """
    Noise for the states from which members score plans, the same at each call: plans are liked less that members expect to go
    well from exactly one state alone, which may be what all of them are wrong about. It sums to 0: in the mean nothing
    is moved.

    :param n_members: Number m of members.
    :param state_dim: Elements d of a state.
    :param std: Standard deviation of the noise, in units of the states.
    :return: Float32, shape (K, m, 1, d), K = ``STATE_DRAWS``.
    """
    noise = np.random.Generator(np.random.PCG64(0)).standard_normal((STATE_DRAWS, n_members, 1, state_dim))
    noise -= noise.mean(axis=(0, 1))
    n_draws = STATE_DRAWS * n_members
    # Taking the mean away leaves (n - 1) / n of the variance.
    noise *= std * math.sqrt(n_draws / (n_draws - 1))
    return noise.astype(np.float32)
