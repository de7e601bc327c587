"""Whether a study fits its data: names and numbers of sites and classes that only the data tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from polyclinic.audit.poisoning import PLACE, Attack
from polyclinic.errors import StudyError, nearest
from polyclinic.models import build_model
from polyclinic.models.trial import try_network
from polyclinic.options import EntryError
from polyclinic.server import build_server
from polyclinic.state import Layout, Role
from polyclinic.study.declaration import Declaration, StudyMethod, build_participation
from polyclinic.study.reading import located
from polyclinic.tasks import TASKS, build_task

if TYPE_CHECKING:
    from polyclinic.data.cases import Opened
    from polyclinic.study.study import Study


def check_fit(study: Study, opened: Opened) -> Attack | None:
    """Check what a study says of sites, classes and its network against its data; trains nothing.

    Returns:
        What the study does to which sites.

    Raises:
        StudyError: P102, P103 or P104 with what does not fit.
        TrainingError: P302, the network can't work on the inputs, P503, it needs a package that is missing.
    """
    declaration, sites = study.declaration, list(opened.sites)
    for method in configurations(declaration):
        _check_class_weights(method, opened.classes)
        _check_sites(method, sites)
    try:
        attack = _attack(declaration, opened)
    except EntryError as error:
        raise located(error, study.name, study.text) from None
    name, options = declaration.model_part
    task = build_task(declaration.task, len(opened.classes), TASKS[declaration.task].losses[0])
    masks = declaration.task == "segmentation"
    shape = input_shape(declaration, opened)
    try_network(name, options, shape, task.outputs, masks=masks)
    if attack is not None:
        try:
            _check_reached(attack, declaration, build_model(name, options, shape, task.outputs).layout)
        except EntryError as error:
            raise located(error, study.name, study.text) from None
    return attack


def input_shape(declaration: Declaration, opened: Opened) -> tuple[int, ...]:
    """Shape of one input as the network is trained on it."""
    shape, patch = next(iter(opened.sites.values())).inputs.shape[1:], declaration.data.box
    return tuple(shape) if patch is None else (shape[0], *patch.size)


def configurations(declaration: Declaration) -> list[StudyMethod]:
    """Everything that may be trained: the methods, and what a search tries of them."""
    return [one.method for method in declaration.study_methods for one in declaration.candidates(method)]


def _check_class_weights(method: StudyMethod, classes: list[str]) -> None:
    weights = method.training.class_weights
    if not isinstance(weights, str) and len(weights) != len(classes):
        raise StudyError(
            "P102", f"`training: {{class_weights: ...}}` has {len(weights)} numbers, but there are "
            f"{len(classes)} classes: {', '.join(classes)}.", "Give one number for each class, in this order.",
        )  # fmt: skip


def _check_sites(method: StudyMethod, sites: list[str]) -> None:
    """Options that differ between sites, trust one, or choose some, must name and count sites that there are."""
    training = method.training
    for key in ("local_epochs", "local_steps", "time_budget", "step_seconds"):
        named = getattr(training, key)
        _check_named(f"training: {{{key}: ...}}", named if isinstance(named, dict) else (), sites)
    for part in build_participation(training):
        _check_named("training: {participation: ...}", part.named, sites)
        if part.wanted is not None and part.wanted > len(sites):
            raise StudyError(
                "P104", f"`training: {{participation: ...}}` chooses among {part.wanted} sites in each round, "
                f"and there are {len(sites)}: {', '.join(sites)}.", f"Give a number of at most {len(sites)}.",
            )  # fmt: skip
    for server_part in build_server(method.method.server).parts:
        _check_named(method.label, server_part.named, sites)
    if training.quorum is not None and training.quorum > len(sites):
        raise StudyError(
            "P104", f"`training: {{quorum: {training.quorum}}}` wants more sites than the {len(sites)} there are.",
            "Lower the quorum.",
        )  # fmt: skip


def _check_named(what: str, named: Iterable[str], sites: list[str]) -> None:
    for site in named:
        if site not in sites:
            raise StudyError("P103", f"`{what}` names the site {site!r}, which is not there.", nearest(site, sites))


def _attack(declaration: Declaration, opened: Opened) -> Attack | None:
    attack = declaration.corrupted_by
    if attack is None:
        return None
    if not any(attack.applies_to(method.method.scope) for method in declaration.study_methods):
        labels = ", ".join(method.label for method in declaration.study_methods)
        raise EntryError(
            "P104", f"{attack.name} changes what sites send to a server, and no method of this study has one: "
            f"{labels}.", "Add a federated method such as fedavg, or take `attack` out.", place=(*PLACE, attack.name),
        )  # fmt: skip
    return attack.on(list(opened.sites), opened.classes, opened.features, declaration.all_seeds[0])


def _check_reached(attack: Attack, declaration: Declaration, layout: Layout) -> None:
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
