"""The end of an episode in the middle of a plan: what comes after it does not count."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sb3_rgrl.ensemble.base import END_SLOPE

Array = NDArray[Any]


class Survival:
    """
    A plan is cut at its milestones into N segments of S rewards. With e_n the probability of an end at milestone n, the
    logistic function of what is predicted (:func:`~sb3_rgrl.ensemble.end_logit`), what is left of the episode before each
    segment is ::

        alive_0 = 1,    alive_n+1 = alive_n (1 - e_n)

    A reward is r = (1 - e_n) r_on + e_n r_end: what the step brings if the episode goes on, and if it ends in its segment.
    Rewards count by alive_n, the return-to-go after a window that ends at milestone n by alive_n+1; of what is told of it no
    more than the largest return counts. Backward, let D_n be the
    gradient on alive_n: each reward r of the segment counts by it, and so does all that is alive later, hence with d the
    gradient on what counted ::

        D_N = d * return_to_go,    D_n = sum(d * r) + (1 - e_n) D_n+1 + (d * return_to_go where a window ends)
        gradient on e_n = alive_n (sum(d * (r_end - r_on)) - D_n+1)

    and the gradient on the prediction is that times ``END_SLOPE`` e_n (1 - e_n).

    :param n_windows: Windows W of a plan.
    :param n_milestones: Milestones K of a window; N = W K.
    :param n_rewards: Rewards S of a segment.
    :param shape: (g, b).
    :param dtype: Of everything.
    """

    # Numbers below the smallest ordinary one slow a processor down (docs/performance.md). They would come from what is all
    # but over: so an end is never surer than by this logit, and what is alive with less than this probability is not.
    LARGEST_LOGIT, LEAST_ALIVE = 30.0, 1e-12

    def __init__(self, n_windows: int, n_milestones: int, n_rewards: int, shape: tuple[int, int], dtype: DTypeLike) -> None:
        n_segments = n_windows * n_milestones
        by_window = (n_windows, n_milestones, *shape)
        self.rewards = np.empty((n_segments, *shape, n_rewards), dtype)
        """Rewards as they count, shape (N, g, b, S)."""
        self.returns_to_go = np.empty((n_windows, *shape), dtype)
        """Return-to-go after each window as it counts, shape (W, g, b)."""
        self.return_to_go = self.returns_to_go[-1]
        """That after the last one, shape (g, b)."""
        self._returns_to_go, self._is_less = np.empty_like(self.returns_to_go), np.empty(self.returns_to_go.shape, np.bool_)
        self._one, self._end_slope = np.array(1.0, dtype), np.array(END_SLOPE, dtype)
        self._minus_slope, self._largest_logit = np.array(-END_SLOPE, dtype), np.array(self.LARGEST_LOGIT, dtype)
        self._least_alive, self._is_alive = np.array(self.LEAST_ALIVE, dtype), np.empty((n_segments, *shape), np.bool_)
        # One and the same memory, seen by segment or by window and milestone.
        self._rewards = self.rewards.reshape(*by_window, n_rewards)
        self._slope = np.empty(by_window, dtype)
        self._left = np.empty((n_segments, *shape), dtype)
        self._left_by_window = self._left.reshape(by_window)
        self._alive = alive = np.ones((n_segments + 1, *shape), dtype)
        d_alive = np.empty((n_segments + 1, *shape), dtype)
        self._before, self._after, self._at_ends = alive[:-1].reshape(by_window), alive[1:], alive[n_milestones::n_milestones]
        self._weights = self._before[..., None]
        self._d_before, self._d_after, self._d_at_end = d_alive[:-1], d_alive[1:].reshape(by_window), d_alive[-1]
        self._d_between, self._by_returns = d_alive[n_milestones:-1:n_milestones], np.empty((n_windows, *shape), dtype)
        self._recursion = [(d_alive[n], self._left[n], d_alive[n + 1]) for n in range(n_segments - 1, 0, -1)]
        # A sum of one number is that number.
        self._sums_products = n_rewards > 1
        self._products = np.empty_like(self.rewards) if self._sums_products else self._d_before[..., None]
        self._product = np.empty(shape, dtype)
        self._products_by_window = self._products.reshape(self._rewards.shape)
        # Of a reward what more the end brings, all that is expected, and the gradient on the latter.
        self._gap, self._mixed, self._d_mixed = (np.empty_like(self._rewards) for _ in range(3))
        self._ends = np.empty(by_window, dtype)
        self._ends_of_rewards, self._d_ends = self._ends[..., None], np.empty(by_window, dtype)

    def forward(self, rewards: Array, ended: Array, returns_to_go: Array, end_rewards: Array, largest_return: Array) -> None:
        """
        :param rewards: In raw units, had the episode not ended, shape (W, K, g, b, S).
        :param ended: Predicted ends, as members tell them, shape (W, K, g, b).
        :param returns_to_go: In raw units, had the episode not ended, shape (W, g, b).
        :param end_rewards: Rewards in raw units if it ends in their segment, in their shape.
        :param largest_return: The most that counts of a return-to-go, shape (1,).
        """
        np.less(returns_to_go, largest_return, out=self._is_less)
        np.minimum(returns_to_go, largest_return, out=self._returns_to_go)
        # What is left is the logistic function of the negative logit: 1 / (1 + exp(logit)), in place.
        left = self._left_by_window
        np.subtract(ended, self._one, out=left)
        np.multiply(left, self._end_slope, out=left)
        np.minimum(left, self._largest_logit, out=left)
        np.exp(left, out=left)
        np.add(left, self._one, out=left)
        np.reciprocal(left, out=left)
        np.multiply.accumulate(self._left, axis=0, out=self._after)
        np.greater(self._after, self._least_alive, out=self._is_alive)
        np.multiply(self._after, self._is_alive, out=self._after)
        np.subtract(self._one, left, out=self._ends)
        np.subtract(end_rewards, rewards, out=self._gap)
        np.multiply(self._gap, self._ends_of_rewards, out=self._mixed)
        np.add(self._mixed, rewards, out=self._mixed)
        np.multiply(self._weights, self._mixed, out=self._rewards)
        np.multiply(self._at_ends, self._returns_to_go, out=self.returns_to_go)

    def backward(self, d_rewards: Array, d_returns: Array, out: tuple[Array, Array, Array, Array]) -> None:
        """
        :param d_rewards: Gradient on :attr:`rewards`, in their shape.
        :param d_returns: Gradient on :attr:`returns_to_go`, in their shape.
        :param out: Where the gradient on each of the first four arguments of :meth:`forward` is written.
        """
        out_rewards, out_ended, out_returns, out_end_rewards = out
        d_rewards = d_rewards.reshape(self._rewards.shape)
        np.multiply(d_rewards, self._weights, out=self._d_mixed)
        np.multiply(self._d_mixed, self._ends_of_rewards, out=out_end_rewards)
        np.subtract(self._d_mixed, out_end_rewards, out=out_rewards)
        np.multiply(d_returns, self._at_ends, out=out_returns)
        np.multiply(out_returns, self._is_less, out=out_returns)
        np.multiply(d_rewards, self._mixed, out=self._products_by_window)
        if self._sums_products:
            np.add.reduce(self._products, axis=-1, out=self._d_before)
        np.multiply(d_returns, self._returns_to_go, out=self._by_returns)
        np.add(self._d_between, self._by_returns[:-1], out=self._d_between)
        self._d_at_end[...] = self._by_returns[-1]
        for d_alive, left, d_alive_later in self._recursion:
            np.multiply(left, d_alive_later, out=self._product)
            np.add(d_alive, self._product, out=d_alive)
        # The slope of a logistic function: e (1 - e).
        np.multiply(self._ends, self._left_by_window, out=self._slope)
        np.multiply(self._before, self._d_after, out=self._d_after)
        np.multiply(self._d_mixed, self._gap, out=self._gap)
        np.add.reduce(self._gap, axis=-1, out=self._d_ends)
        np.subtract(self._d_after, self._d_ends, out=self._d_after)
        np.multiply(self._d_after, self._slope, out=self._d_after)
        np.multiply(self._d_after, self._minus_slope, out=out_ended)
