"""Whether what a study does to some of its sites fits them."""

from __future__ import annotations

from polyclinic.audit.poisoning import PLACE, Attack
from polyclinic.data.opening.cohort import Cohort
from polyclinic.options import EntryError
from polyclinic.state import Layout, Role
from polyclinic.study.declaration import Declaration


def attack_of(declaration: Declaration, cohort: Cohort) -> Attack | None:
    """What a study does to which sites.

    Raises:
        EntryError: P103 or P104, it does not fit sites, classes, features or methods.
    """
    attack = declaration.corrupted_by
    if attack is None:
        return None
    if not any(attack.applies_to(method.method.scope) for method in declaration.study_methods):
        labels = ", ".join(method.label for method in declaration.study_methods)
        raise EntryError(
            "P104", f"{attack.name} changes what sites send to a server, and no method of this study has one: "
            f"{labels}.", "Add a federated method such as fedavg, or take `attack` out.", place=(*PLACE, attack.name),
        )  # fmt: skip
    return attack.on(cohort.sites, cohort.classes, cohort.features, declaration.all_seeds[0])


def check_reached(attack: Attack, declaration: Declaration, layout: Layout) -> None:
    """An attack needs something to change in what a method sends."""
    methods = [m for m in declaration.study_methods if attack.applies_to(m.method.scope)]
    lacking = [attack.lacks(layout, method.method.selection(layout)) for method in methods]
    if not all(lacking):
        return
    what = f"{attack.name} changes {lacking[0]}"
    if attack.lacks(layout, layout.select(set(Role))):
        message, hint = f"{what}, and the model {declaration.model_part[0]} has none.", "Give it `norm: batch`"
    else:
        labels = ", ".join(method.label for method in methods)
        message, hint = f"{what}, which no method of this study shares: {labels}.", "Add a method such as fedavg"
    raise EntryError("P104", message, f"{hint}, or choose another attack.", place=(*PLACE, attack.name))
