"""From names to ensembles."""

from collections.abc import Mapping, Sequence
from typing import Any

from sb3_rgrl.ensemble.attention import AttentionEnsemble
from sb3_rgrl.ensemble.base import Ensemble
from sb3_rgrl.ensemble.mixed import MixedEnsemble
from sb3_rgrl.ensemble.mlp import MlpEnsemble
from sb3_rgrl.ensemble.recurrent import GruEnsemble, LstmEnsemble, RnnEnsemble

MEMBER_KINDS: dict[str, type[Ensemble]] = {
    "mlp": MlpEnsemble,
    "gru": GruEnsemble,
    "lstm": LstmEnsemble,
    "rnn": RnnEnsemble,
    "attention": AttentionEnsemble,
}


def make_ensemble(
    kind: str, n_members: int, groups: Sequence[Mapping[str, Any]] | None, **kwargs: Any
) -> Ensemble | MixedEnsemble:
    """
    :param kind: Kind of the members, a key of ``MEMBER_KINDS``.
    :param n_members: Size m of the ensemble.
    :param groups: None: all members are alike. Else one mapping for each group of equal members: its ``n_members``, and
        what is different in it, such as ``kind``, ``net_arch`` or ``activation_fn``. The groups add up to m.
    :param kwargs: What all members share, see their classes.
    :return: The ensemble.
    :raises ValueError: If a kind is unknown, a setting does not fit it, or the groups do not add up to m.
    """
    if groups is None:
        return _made(kind, {"n_members": n_members, **kwargs}, "A setting of the members")
    sizes: list[Any] = [group.get("n_members") for group in groups]
    if not all(isinstance(size, int) and size >= 1 for size in sizes) or sum(sizes) != n_members:
        raise ValueError(
            f"Each of the member_groups needs its n_members, and they must add up to ensemble_size {n_members}, got {sizes}"
        )
    kinds = [group.get("kind", kind) for group in groups]
    if len({_class_of(name) is MlpEnsemble for name in kinds}) > 1:
        # Left alone, perceptrons tell states at the end of the window only; all members have to tell the same.
        kwargs.setdefault("n_milestones", 1)
    members = []
    for group, name in zip(groups, kinds, strict=True):
        settings = {**kwargs, **{key: value for key, value in group.items() if key != "kind"}}
        members.append(_made(name, settings, f"The member_groups entry {dict(group)}"))
    return MixedEnsemble(members)


def _made(kind: str, settings: Mapping[str, Any], what: str) -> Ensemble:
    try:
        return _class_of(kind)(**settings)
    except TypeError as error:
        raise ValueError(f"{what} does not fit {kind!r} members: {error}") from error


def _class_of(kind: str) -> type[Ensemble]:
    if kind not in MEMBER_KINDS:
        raise ValueError(f"Members must be of one of the kinds {sorted(MEMBER_KINDS)}, got {kind!r}")
    return MEMBER_KINDS[kind]
