"""
Eq. (4) as it is printed, in float64 and plain loops: slow, and too simple to be wrong.

Nothing here comes from ``sb3_rgrl``. A window that is not in the dictionary is absent.
"""


def priority(error: float, exponent: float, epsilon: float) -> float:
    """
    :return: The numerator of Eq. (4), ``(|delta| + eps)^exponent``.
    """
    return (abs(error) + epsilon) ** exponent


def probabilities(errors: dict[int, float], capacity: int, exponent: float, epsilon: float) -> list[float]:
    """
    :param errors: ``delta`` of one member on each of its windows.
    :return: ``P(k)`` of Eq. (4) for ``k = 0 .. capacity - 1``; 0 where there is no window, and everywhere when there is
        none at all.
    """
    total = 0.0
    for error in errors.values():
        total += priority(error, exponent, epsilon)
    result = []
    for k in range(capacity):
        if k in errors:
            result.append(priority(errors[k], exponent, epsilon) / total)
        else:
            result.append(0.0)
    return result


class SlowPriorities:
    """
    A dictionary of errors per member that is changed as a ``PrioritizedSampler`` is.

    :param capacity: Number of window indices.
    :param n_members: Number of members.
    :param exponent: Exponent of Eq. (4).
    :param epsilon: eps of Eq. (4).
    """

    def __init__(self, capacity: int, n_members: int, exponent: float, epsilon: float) -> None:
        self.capacity, self.exponent, self.epsilon = capacity, exponent, epsilon
        self.errors: list[dict[int, float]] = [{} for _ in range(n_members)]

    def add(self, windows: list[int], errors: list[list[float]]) -> None:
        """All members get the same windows, ``errors[member][j]`` belongs to ``windows[j]``."""
        for member in range(len(self.errors)):
            for j in range(len(windows)):
                self.errors[member][windows[j]] = errors[member][j]

    def update(self, windows: list[list[int]], errors: list[list[float]]) -> None:
        """Every member has windows of its own: ``errors[member][j]`` belongs to ``windows[member][j]``."""
        for member in range(len(self.errors)):
            for j in range(len(windows[member])):
                self.errors[member][windows[member][j]] = errors[member][j]

    def remove(self, windows: list[int]) -> None:
        """All members lose the same windows; those that are not there stay away."""
        for member in range(len(self.errors)):
            for window in windows:
                if window in self.errors[member]:
                    del self.errors[member][window]

    def probabilities(self, member: int) -> list[float]:
        """
        :return: ``P_i(k)`` of Eq. (4) of this member.
        """
        return probabilities(self.errors[member], self.capacity, self.exponent, self.epsilon)


def window_at(share: float, errors: dict[int, float], exponent: float, epsilon: float) -> tuple[int, float]:
    """
    Draw by hand: walk along the windows in the order of their indices until ``share`` of the sum of Eq. (4) is used up.

    :param share: A number within [0, 1).
    :return: The window, and how far ``share`` is from the nearer end of the window's stretch of [0, 1]: a draw with
        another rounding may take the neighbour if that is tiny.
    """
    total = 0.0
    for error in errors.values():
        total += priority(error, exponent, epsilon)
    passed = 0.0
    for k in sorted(errors):
        before, passed = passed, passed + priority(errors[k], exponent, epsilon)
        if share * total < passed:
            break
    return k, min(share - before / total, passed / total - share)
