"""What the ablations change: groups of variants, each of which changes one factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments import Settings, with_changes

from sb3_rgrl.benchmark.names import check_known

BASELINE = "baseline"


@dataclass(frozen=True)
class Group:
    """
    One factor.

    :param title: What it is.
    :param variants: Label of each value, and what it changes.
    :param common: What all of the group change. If it changes anything, the group has a reference of its own.
    """

    title: str
    variants: dict[str, Settings]
    common: Settings = field(default_factory=dict)


GROUPS = {
    # The default of 50 plans is no multiple of 3: with 60 every size has the same number of plans, and each member an
    # equal share of them.
    "m": Group(
        "size m of the ensemble, 60 plans in all",
        {f"m={m}": {"ensemble_size": m} for m in (1, 3, 5, 10)},
        {"n_candidates": 60},
    ),
    "member_choice": Group(
        "member that judges a plan at an iteration",
        {f"choice={c}": {"policy_kwargs.member_choice": c} for c in ("random", "cyclic", "mean")},
    ),
    "dropout": Group("dropout", {f"dropout={p:g}": {"dropout": p} for p in (0.0, 1e-3, 0.1)}),
    "per": Group(
        "exponent of prioritized replay, 0: uniform draws", {f"per={g:g}": {"per_exponent": g} for g in (0.0, 0.6, 1.0)}
    ),
    "ewc": Group(
        "elastic weight consolidation",
        {
            "ewc=0": {"ewc_lambda": 0.0},
            "ewc=1-batch": {"ewc_lambda": 1.0, "ewc_fisher": "batch"},
            "ewc=100-window": {"ewc_lambda": 100.0, "ewc_fisher": "window"},
        },
    ),
    "warm_start": Group(
        "plans that go on from the last decision",
        {"warm_start=on": {"policy_kwargs.warm_start": True}, "warm_start=off": {"policy_kwargs.warm_start": False}},
    ),
    "candidates": Group("number of plans", {f"candidates={n}": {"n_candidates": n} for n in (5, 20, 50, 100)}),
    # What the paper has not
    "exploration": Group(
        "how many plans are considered while training",
        {f"exploration={n}": {"exploration_candidates": n} for n in (1, 5, 50)},
    ),
    "recency": Group(
        "how fast observed returns lose weight with age",
        {"recency=0": {"replay_buffer_kwargs.return_recency": 0.0}},
    ),
    "expectile": Group(
        "expectile of the returns that members predict",
        {"expectile=0.5": {"policy_kwargs.return_expectile": 0.5}},
    ),
    "gain": Group(
        "how steep members begin in the state",
        {f"gain={gain}": {"policy_kwargs.member_kwargs": {"state_gain": gain}} for gain in (None, 2.0, 7.0)},
    ),
    "decay": Group(
        "decay of the members' weights",
        {f"decay={d:g}": {"policy_kwargs.optimizer_kwargs": {"weight_decay": d, "fused": True}} for d in (0.0, 0.3)},
    ),
    "noise": Group(
        "correlation of the noise that plans begin with",
        {f"noise={c:g}": {"action_noise_correlation": c} for c in (0.0, 0.9)},
    ),
    "trust": Group(
        "how much of the expected return-to-go counts in plans; by default as large a share as was foretold so far",
        {f"trust={share:g}": {"policy_kwargs.return_trust": share} for share in (0.0, 0.3, 1.0)},
    ),
    "lambda": Group(
        "how much beginnings of plans count with what follows them; 1: nothing",
        {f"lambda={share:g}": {"policy_kwargs.return_lambda": share} for share in (0.8, 0.95)},
    ),
    "execute": Group(
        "for how many steps a plan is followed", {f"execute={k}": {"policy_kwargs.execute_steps": k} for k in (1, 5)}
    ),
    "window": Group("how many actions members take in one pass", {f"window={t}": {"sequence_length": t} for t in (2, 5)}),
    "repeat": Group("how many steps an action of a plan lasts", {f"repeat={k}": {"action_repeat": k} for k in (1, 2, 4)}),
    "venture": Group("plans that lead far away as long as there is no goal", {"venture=off": {"venture": False}}),
    "hold": Group("probability that a random action is held", {f"hold={p:g}": {"random_action_hold": p} for p in (0.0, 0.9)}),
}


@dataclass(frozen=True)
class Variant:
    """
    What is run with every seed.

    :param group: Name of its group.
    :param label: Its own name.
    :param reference: Label of the variant that it is compared with; its own if it is one.
    :param changes: What it changes in the reference.
    :param hyperparams: All arguments of the constructor.
    """

    group: str
    label: str
    reference: str
    changes: Settings
    hyperparams: Settings


def variants_of(policy: str, baseline: Settings, only: Sequence[str]) -> list[Variant]:
    """
    :param policy: Name of the policy.
    :param baseline: Arguments of the constructor.
    :param only: Names of the groups.
    :return: The baseline and the variants; a value that a reference has anyway is run once, as that reference.
    :raises ValueError: If there is no such group.
    """
    variants = [Variant(BASELINE, BASELINE, BASELINE, {}, baseline)]
    for name in only:
        check_known(name, GROUPS, "group")
        group = GROUPS[name]
        reference = with_changes(baseline, group.common, policy)
        values = {label: with_changes(reference, changes, policy) for label, changes in group.variants.items()}
        reference_label = BASELINE
        if reference != baseline:
            reference_label = next((label for label, value in values.items() if value == reference), f"{name}-reference")
            variants.append(Variant(name, reference_label, reference_label, {}, reference))
        for label, value in values.items():
            if value != reference:
                variants.append(Variant(name, label, reference_label, group.variants[label], value))
    return variants
