"""Names that people type: what is unknown is refused with the nearest name that is known."""

import difflib
from collections.abc import Iterable

import gymnasium as gym


def check_known(name: str, known: Iterable[str], what: str) -> None:
    """
    :param name: A name that somebody gave.
    :param known: The names there are.
    :param what: What they name, for the message.
    :raises ValueError: If it is not among them, with those that are near.
    """
    names = sorted(known)
    if name not in names:
        lowered = {other.lower(): other for other in names}
        near = [lowered[other] for other in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)]
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(names[:20])}"
        raise ValueError(f"There is no {what} {name!r}; {hint}")


def check_environment(env_id: str) -> None:
    """
    :param env_id: Environment id.
    :raises ValueError: If there is none of that name, or it cannot be made.
    """
    check_known(env_id, gym.registry, "environment")
    try:
        gym.make(env_id).close()
    except Exception as error:  # what an environment raises is its own choice
        raise ValueError(f"{env_id} cannot be made: {error}") from error
