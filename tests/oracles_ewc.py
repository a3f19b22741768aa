"""
Eq. (5) for a net with one tanh layer, in float64, weight by weight and window by window, with derivatives by hand.

The net of a member is ``output_o = sum_u tanh(sum_d x_d V_du + c_u) U_uo + e_o``, its loss on a window the mean over o
of ``(output_o - y_o)^2``. The weights are stacked over the m members: V (m, d, h), c (m, 1, h), U (m, h, o), e (m, 1, o).
"""

import math

import numpy as np

Weights = list[np.ndarray]


def window_gradient(weights: Weights, member: int, x: np.ndarray, y: np.ndarray) -> Weights:
    """
    :param weights: Of all members.
    :param member: Whose loss.
    :param x: One window's input, shape (d,).
    :param y: Its target, shape (o,).
    :return: dloss/dweight of that member, shapes (d, h), (1, h), (h, o), (1, o).
    """
    v, c, u, e = (weight[member] for weight in weights)
    n_in, n_hidden, n_out = v.shape[0], v.shape[1], u.shape[1]
    hidden = [math.tanh(sum(x[d] * v[d, k] for d in range(n_in)) + c[0, k]) for k in range(n_hidden)]
    dv, dc, du, de = (np.zeros(weight.shape[1:]) for weight in weights)
    for o in range(n_out):
        output = sum(hidden[k] * u[k, o] for k in range(n_hidden)) + e[0, o]
        slope = 2.0 * (output - y[o]) / n_out
        de[0, o] = slope
        for k in range(n_hidden):
            du[k, o] = slope * hidden[k]
            before_tanh = slope * u[k, o] * (1.0 - hidden[k] ** 2)
            dc[0, k] += before_tanh
            for d in range(n_in):
                dv[d, k] += before_tanh * x[d]
    return [dv, dc, du, de]


def fisher(kind: str, weights: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """
    :param kind: ``"batch"``: square of the mean gradient; ``"window"``: mean of the squared gradients.
    :param weights: Of all members.
    :param x: Inputs, shape (m, n, d).
    :param y: Targets, shape (m, n, o).
    :return: F in the shapes of the weights.
    """
    n_members, n_windows = x.shape[:2]
    result = [np.zeros(weight.shape) for weight in weights]
    for i in range(n_members):
        gradients = [window_gradient(weights, i, x[i, k], y[i, k]) for k in range(n_windows)]
        for j in range(len(weights)):
            for index in np.ndindex(*weights[j].shape[1:]):
                single = [float(gradient[j][index]) for gradient in gradients]
                if kind == "batch":
                    result[j][(i, *index)] = (math.fsum(single) / n_windows) ** 2
                else:
                    result[j][(i, *index)] = math.fsum(g**2 for g in single) / n_windows
    return result


def penalty(strength: float, fishers: Weights, weights: Weights, anchors: Weights) -> tuple[float, Weights]:
    """
    :return: ``sum lambda / 2 F (W - W*)^2`` over every weight of every member, and its derivative by each.
    """
    total, gradients = 0.0, [np.zeros(weight.shape) for weight in weights]
    for j in range(len(weights)):
        for index in np.ndindex(*weights[j].shape):
            distance = weights[j][index] - anchors[j][index]
            total += strength / 2.0 * fishers[j][index] * distance**2
            gradients[j][index] = strength * fishers[j][index] * distance
    return total, gradients
