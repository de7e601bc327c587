"""Whether methods fit the study's network: what they share of it, and what sites train in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from polyclinic.audit.poisoning import Attack
from polyclinic.data.opening.cohort import Cohort
from polyclinic.errors import StudyError
from polyclinic.methods import SHARES, SharedModules
from polyclinic.models import build_model
from polyclinic.models.slices import Slice
from polyclinic.models.trial import try_network
from polyclinic.parts import Part, build_part, pretraining_of
from polyclinic.paths import containing
from polyclinic.state import NORMALISATION, FlatModule, Layout
from polyclinic.study.compatibility import models_per_network
from polyclinic.study.declaration import Declaration
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.planning import built, variants_at
from polyclinic.study.without_labels import why_left_out
from polyclinic.tasks import TASKS, build_task

#: Names of modules that a message lists.
_LISTED = 20


def check_networks(
    declaration: Declaration, cohort: Cohort, training: Sequence[str], attack: Attack | None
) -> FlatModule:
    """Try the networks, and see whether methods and the attack have in them what they work on.

    Args:
        declaration: of the study.
        cohort: its data.
        training: sites that train.
        attack: what is done to some sites.

    Returns:
        The study's network.

    Raises:
        StudyError: P103 or P104 with what does not fit.
        TrainingError: P302, a network can't work on the inputs, P503, it needs a package that is missing.
    """
    name, options = declaration.model_part
    outputs = network_outputs(declaration, cohort.classes)
    masks = declaration.target in ("masks", "images")
    shape = input_shape(declaration, cohort)
    network = try_network(name, options, shape, outputs, masks=masks)
    for further in declaration.all_networks[1:]:
        try_network(*further, shape, outputs, masks=masks)
    for method in declaration.configurations:
        if method.method.scope == "federation":
            check_share(method, network, name)
    for method in declaration.configurations:
        if _has_variants(method):
            network = build_model(name, options, shape, outputs)  # the other one may have shapes alone
            learning = _learning(method, cohort, declaration, training)
            check_variants(method, network, learning, unseen=declaration.is_unseen(method))
        if attack is not None and attack.changes_updates and attack.applies_to(method.method.scope):
            _check_one_network(method, attack, declaration)
    return network


def _check_one_network(method: StudyMethod, attack: Attack, declaration: Declaration) -> None:
    """Updates are forged of the study's network, and of no other.

    Raises:
        StudyError: P104, sites have others.
    """
    if _has_variants(method):
        raise StudyError(
            "P104", f"{method.label} has sites train other networks than the study's, and {attack.name} forges "
            "updates of that one.", "Leave out one of the two.",
        )  # fmt: skip
    if declaration.own_networks and models_per_network(method.method):
        raise StudyError(
            "P104", f"{method.label} has a model for each network of the sites (`networks: ...`), and "
            f"{attack.name} forges updates of one network.", "Leave out one of the two.",
        )  # fmt: skip


def network_outputs(declaration: Declaration, classes: Sequence[str]) -> int:
    """How many outputs the study's network has: all methods train the same network.

    Raises:
        StudyError: P104, a loss is not for so many classes, or losses of several methods want different networks.
    """
    kind, wanted = TASKS[declaration.task], dict[int, tuple[str, str]]()
    for method in declaration.configurations:
        loss = declaration.loss_of(method.training)
        unfit = kind.unfit(loss[0], len(classes))
        if unfit:
            raise StudyError("P104", f"{method.label}: {unfit}.", "Choose another `training: {loss: ...}`.")
        outputs = build_task(
            declaration.task, len(classes), loss, grid=declaration.grid, heads=declaration.heads
        ).outputs
        wanted.setdefault(outputs, (loss[0], method.label))
    if len(wanted) > 1:
        (some, (first, label)), (others, (other, its)) = list(wanted.items())[:2]
        raise StudyError(
            "P104", f"All methods of a study train the same network, and `{first}` ({label}) wants one with {some} "
            f"output{'s' * (some != 1)}, `{other}` ({its}) one with {others}.",
            "Give all methods losses that go together, or compare them in two studies.",
        )  # fmt: skip
    return next(iter(wanted))


def input_shape(declaration: Declaration, cohort: Cohort) -> tuple[int, ...]:
    """Shape of one input as the network is trained on it."""
    shape, patch = cohort.shape, declaration.data.planned_patch
    return shape if patch is None else (shape[0], *patch.size)


def check_share(method: StudyMethod, network: FlatModule, name: str) -> None:
    """A method that shares a part which the network has not would be training alone under another name.

    Args:
        method: of the study.
        network: of the study.
        name: of the network.

    Raises:
        StudyError: P103, a pattern names nothing of the network, P104, no weights are shared, or some statistics that
            are averaged over all batches.
    """
    shared, layout = method.method.shared, network.layout
    owner = pretraining_of(build_part(one, options) for one, options in method.method.parts)
    if owner is not None and not (network.head and layout.select(SHARES["body"]).trainable):
        raise StudyError(
            "P104", f"{method.label} pretrains what comes before the head of a network, and {name} has nothing there.",
            "Use a model with a body and a head.",
        )  # fmt: skip
    missing = layout.unnamed([*shared.modules, *shared.without])
    if missing:
        hint = _named_like(missing[0], layout)
        raise StudyError("P103", f"{method.label} names the module {missing[0]!r}, and {name} has none.", hint)
    selection = method.method.selection(layout)
    if not selection.size and any(build_part(name, options).without_weights for name, options in method.method.parts):
        return  # sites learn from each other by something else
    if not selection.trainable:
        shares, hint = f"the {shared.roles} of the model", "Use a model with a body and a head."
        if isinstance(method.method.share, SharedModules):
            shares, hint = f"{shared} of the model", "Name other modules; to share nothing, use the method single."
        raise StudyError("P104", f"{method.label} shares {shares}, and there are no weights of it in {name}.", hint)
    counting = _counting(network)
    if counting and 0 < len(counting & {entry.name for entry in layout.inside(selection)}) < len(counting):
        raise StudyError(
            "P104", f"{method.label} shares some normalisation layers with `momentum: null` and keeps others: a "
            "network counts the batches of all of them together.",
            "Share all of them or none (`share: {roles: no_norm_statistics, ...}`).",
        )  # fmt: skip


def _has_variants(method: StudyMethod) -> bool:
    """Whether a part has sites train another network than the study's."""
    return any(type(part).variant is not Part.variant for part in built(method.method).values())


def _learning(method: StudyMethod, cohort: Cohort, declaration: Declaration, sites: Sequence[str]) -> list[str]:
    """Of the sites that train those that take part in a method: without any label some have no part."""
    if not why_left_out(method.method):
        return list(sites)
    labels = declaration.data.labels
    hidden = (labels.sites or cohort.sites) if labels is not None and not labels.share else ()
    return [site for site in sites if cohort.facts[site].labelled and site not in hidden]


def check_variants(method: StudyMethod, network: FlatModule, sites: Sequence[str], *, unseen: bool) -> None:
    """Whether there are the networks that sites train in place of the study's, and together they train all of it.

    Args:
        method: of the study.
        network: of the study.
        sites: that train.
        unseen: whether each site is left out once.

    Raises:
        TrainingError: P302, the network is not of a kind of which there are such.
        StudyError: P104, no site trains some of the weights, or a smaller network is the same.
    """
    found = variants_at(method.method, sites, network, 0, 0)
    cut = {site: one for site, one in found.items() if isinstance(one, Slice)}
    for site, one in cut.items():
        if len(one.places) == network.layout.size:
            raise StudyError(
                "P104", f"{method.label} gives {site} {one.share:g} of the width, and the network has no hidden layer "
                "that could be narrower.", "Use a network with hidden layers, or leave the width at 1.",
            )  # fmt: skip
    for without in (None, *sites) if unseen and len(sites) > 1 else (None,):
        there = [site for site in sites if site != without]
        if there and all(site in cut for site in there):
            widest, when = max(cut[site].share for site in there), f" where {without} is left out" if without else ""
            raise StudyError(
                "P104", f"{method.label} has nobody train the whole network{when}: the largest width is {widest:g}, "
                "and the network that is tested would have weights that were never trained.",
                "Give a site that trains the width 1, or choose a smaller network.",
            )  # fmt: skip


def _counting(network: FlatModule) -> set[str]:
    """Statistics that are averaged over all batches so far (``momentum: null``)."""
    return {
        f"{path}.running_mean"
        for path, layer in network.module.named_modules()
        if isinstance(layer, NORMALISATION) and getattr(layer, "momentum", 0.0) is None
    }


def _named_like(pattern: str, layout: Layout) -> str:
    """Which modules there are, for somebody who named one that is not."""
    known = list(dict.fromkeys(path for entry in layout.entries for own in entry.paths for path in containing(own)))
    parent = max((path for path in known if pattern.startswith(f"{path}.")), key=len, default="")
    found = _children(parent, known)
    while len(found) == 1 and (further := _children(found[0], known)):
        found = further
    close = get_close_matches(pattern, known, n=3)
    told = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    listed = ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")
    return f"{told}{f'In {parent}' if parent else 'In the network'} there are: {listed}."


def _children(parent: str, known: Iterable[str]) -> list[str]:
    start = f"{parent}." if parent else ""
    return [path for path in known if path.startswith(start) and "." not in path[len(start) :]]
