"""Whether a study fits its data: names and numbers of sites and classes that only the data tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from polyclinic.audit.poisoning import PLACE, Attack
from polyclinic.data.opening.cohort import Cohort
from polyclinic.errors import StudyError, nearest
from polyclinic.methods import SHARES, SharedModules
from polyclinic.models import build_model
from polyclinic.models.slices import Slice
from polyclinic.models.trial import try_network
from polyclinic.options import EntryError
from polyclinic.parts import Hiding, Part, ServerEnd, build_chain, build_part, pretraining_of
from polyclinic.paths import containing
from polyclinic.secure.sums import check_enough
from polyclinic.state import NORMALISATION, FlatModule, Layout, Role
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.compatibility import models_per_network
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold
from polyclinic.study.method_entries import StudyMethod, build_participation
from polyclinic.study.planning import variants_at
from polyclinic.study.reading import located
from polyclinic.study.times_entry import check_times_fit
from polyclinic.study.without_labels import why_left_out
from polyclinic.tasks import TASKS, build_task

#: Names of modules that a message lists.
_LISTED = 20


def check_fit(study: CheckedStudy, cohort: Cohort) -> Attack | None:
    """Check what a study says of sites, classes and its network against its data; trains nothing.

    Returns:
        What the study does to which sites.

    Raises:
        StudyError: P102, P103 or P104 with what does not fit.
        TrainingError: P302, the network can't work on the inputs, P503, it needs a package that is missing.
    """
    declaration, sites = study.declaration, cohort.sites
    if declaration.data.labels is not None:
        _check_named("data: {labels: {sites: ...}}", declaration.data.labels.sites or (), sites)
    _check_named("evaluation: {voters: ...}", declaration.evaluation.voters, sites)
    _check_named("networks: ...", declaration.networks, sites)
    voters, training = declaration.evaluation.voters, [s for s in sites if s not in declaration.evaluation.voters]
    if not training:
        text = "`evaluation: {voters: ...}` names all sites, and none is left to train."
        raise StudyError("P104", text, "Leave out those that can train.")
    idle = [site for site in declaration.networks if site in voters]
    if idle:
        text = f"`networks` names {idle[0]}, which trains nothing by `evaluation: {{voters: ...}}`."
        raise StudyError("P104", text, "Take it out of one of the two.")
    for method in configurations(declaration):
        _check_class_weights(method, cohort.classes)
        _check_sites(method, sites, voters)
        check_public(method, cohort)
        _check_parts(method, declaration, cohort)
    try:
        check_times_fit(declaration.grid, cohort, declaration.data.time_unit)
        attack = attack_of(declaration, cohort)
    except EntryError as error:
        raise located(error, study.name, study.text) from None
    name, options = declaration.model_part
    outputs = network_outputs(declaration, cohort.classes)
    masks = declaration.target in ("masks", "images")
    shape = input_shape(declaration, cohort)
    network = try_network(name, options, shape, outputs, masks=masks)
    for further in declaration.all_networks[1:]:
        try_network(*further, shape, outputs, masks=masks)
    for method in configurations(declaration):
        if method.method.scope == "federation":
            check_share(method, network, name)
    for method in configurations(declaration):
        if _has_variants(method):
            network = build_model(name, options, shape, outputs)  # the other one may have shapes alone
            learning = _learning(method, cohort, declaration, training)
            check_variants(method, network, learning, unseen=declaration.is_unseen(method))
            if attack is not None and attack.changes_updates and attack.applies_to(method.method.scope):
                raise StudyError(
                    "P104", f"{method.label} has sites train other networks than the study's, and {attack.name} forges "
                    "updates of that one.", "Leave out one of the two.",
                )  # fmt: skip
        forging = attack is not None and attack.changes_updates and attack.applies_to(method.method.scope)
        if declaration.own_networks and models_per_network(method.method) and attack is not None and forging:
            raise StudyError(
                "P104", f"{method.label} has a model for each network of the sites (`networks: ...`), and "
                f"{attack.name} forges updates of one network.", "Leave out one of the two.",
            )  # fmt: skip
    if attack is not None:
        try:
            _check_reached(attack, declaration, network.layout)
        except EntryError as error:
            raise located(error, study.name, study.text) from None
    return attack


def network_outputs(declaration: Declaration, classes: Sequence[str]) -> int:
    """How many outputs the study's network has: all methods train the same network.

    Raises:
        StudyError: P104, a loss is not for so many classes, or losses of several methods want different networks.
    """
    kind, wanted = TASKS[declaration.task], dict[int, tuple[str, str]]()
    for method in configurations(declaration):
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


def configurations(declaration: Declaration) -> list[StudyMethod]:
    """Everything that may be trained: the methods, and what a search tries of them."""
    return [one.method for method in declaration.study_methods for one in declaration.candidates(method)]


def check_public(method: StudyMethod, cohort: Cohort) -> None:
    """Whether the public set has as many cases as a part wants.

    Raises:
        StudyError: P104, it has not.
    """
    for name, options in method.method.parts:
        wanted = getattr(build_part(name, options), "cases", None)
        if cohort.public is not None and build_part(name, options).needs_public and (wanted or 0) > cohort.public.used:
            raise StudyError("P104", f"{method.label} draws {wanted} cases of the public set in each round, and it has "
                             f"{cohort.public.used}.", "Give a lower number of `cases`.")  # fmt: skip


def _check_parts(method: StudyMethod, declaration: Declaration, cohort: Cohort) -> None:
    """Whether parts are for so many classes, and the groups of patients and the sites that they look at are there.

    Raises:
        StudyError: P104, one is not.
    """
    intervals = {one.column: one.intervals for one in declaration.evaluation.grouped_by}
    for part in _chain(method):
        if part.classes and part.classes != len(cohort.classes):
            raise StudyError(
                "P104", f"{part.name} ({method.label}) is for {part.classes} classes, and there are "
                f"{len(cohort.classes)}.", "Leave it out, or name one class in `data: {positive: ...}`.",
            )  # fmt: skip
        names = intervals.get(part.subgroup) or cohort.groups.get(part.subgroup, [])
        if part.group and part.group not in names:
            raise StudyError(
                "P104", f"{method.label} looks at the group {part.group!r} of the subgroup {part.subgroup!r}, whose "
                f"groups are {', '.join(map(repr, names))}.", "Write `group` as it is written there.",
            )  # fmt: skip
        end = part.at_server()
        if end.needs_named and end.named and declaration.is_unseen(method):
            raise StudyError(
                "P104", f"{part.name} ({method.label}) needs {end.named[0]} in every training, and `evaluation: "
                "{unseen_sites: ...}` leaves each site out of one.", "Name no site there, or leave out `unseen_sites`.",
            )  # fmt: skip


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
    return any(type(part).variant is not Part.variant for part in _chain(method))


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


def check_left_cases(attack: Attack | None, folds: Mapping[int, Fold]) -> None:
    """A corrupt site must have cases to train on.

    Raises:
        StudyError: P104 with the site that has none.
    """
    if attack is None or attack.changes_updates:
        return
    for fold in folds.values():
        left = fold.corrupted(attack).train
        empty = [site for site in fold.training_sites if not left[site]]
        if empty:
            raise StudyError(
                "P104", f"`attack: {{{attack.name}: ...}}` leaves {empty[0]} without training cases.",
                "Choose another site or class.",
            )  # fmt: skip
        bare = [site for site in fold.sites_without_labels if site in attack.names]
        if bare and attack.corruption().of_labels:
            raise StudyError(
                "P104", f"`attack: {{{attack.name}: ...}}` changes labels, and {bare[0]} has none to train on.",
                "Choose another site or attack.",
            )  # fmt: skip


def check_enough_sites(declaration: Declaration, folds: Mapping[int, Fold]) -> None:
    """Rules that must outvote some sites need enough of them: better said now than in the middle of a study.

    Raises:
        StudyError: P104 with the method and the sites that it needs.
        SiteError: P402, there are too few for sums that hide what a site has.
    """

    def there(method: StudyMethod) -> int:
        return min(len(fold.trains(method.method)) for fold in folds.values())

    for method in configurations(declaration):
        if declaration.hides_of(method.method):
            check_enough(there(method) - 1 if declaration.is_unseen(method) else there(method))
    for method in configurations(declaration):
        if method.method.scope != "federation":
            continue
        trained = there(method)
        sites = trained - 1 if declaration.is_unseen(method) else trained
        sites = min(sites, *(part.most or sites for part in build_participation(method.training)), sites)
        same = _with_the_same_network(method, declaration, folds)
        chain = build_chain(method.method.channel, method.method.local, method.method.server)
        ends = {name: part.at_server() for name, part in chain.items()}
        hiding = next((end for end in ends.values() if isinstance(end, Hiding)), None)
        if hiding is not None:
            _check_sums(method, ends, hiding.sums(sites), sites)
        for name, end in ends.items():
            if end.least > same:
                raise StudyError(
                    "P104", f"{method.label} needs the answers of {end.least} sites with the same network "
                    f"({name}), and of one there {'is' if same == 1 else 'are'} {same} (`networks: ...`).",
                    "Give its rule smaller numbers, or leave it out.",
                )  # fmt: skip
            if end.least > sites:
                hint = "Give its rule smaller numbers, or choose `median`, `geometric_median` or `dos`."
                if isinstance(end, Hiding):
                    hint = (
                        "A sum of few tells of single sites (of two, each knows the other's update): let more take part"
                    )
                    hint += f", or allow it: `{name}: {{least: {sites}}}`." if sites > 1 else "."
                raise StudyError(
                    "P104", f"{method.label} needs the answers of {end.least} sites in each round, and {sites} "
                    "take part" + (" where one is left out." if sites < trained else "."), hint,
                )  # fmt: skip


def _with_the_same_network(method: StudyMethod, declaration: Declaration, folds: Mapping[int, Fold]) -> float:
    """How many sites there are at least of a network, where those with the same one share a model."""
    if not (declaration.own_networks and models_per_network(method.method)):
        return math.inf
    named = [[str(declaration.own_networks.get(s)) for s in fold.trains(method.method)] for fold in folds.values()]
    least = min(count for names in named for count in Counter(names).values())
    return least - 1 if declaration.is_unseen(method) and least > 1 else least


def _check_sums(method: StudyMethod, ends: Mapping[str, ServerEnd], sums: int, sites: int) -> None:
    """Rules that compare updates see sums of groups where single ones are hidden: of one sum there is nothing to
    compare, and the rule would be the mean under another name."""
    for name, end in ends.items():
        needed = 0 if isinstance(end, Hiding) else max(end.least, 2 if end.needs_each else 0)
        if needed > sums:
            raise StudyError(
                "P104", f"{method.label} needs {needed} updates to compare ({name}), and `group_size` makes {sums} "
                f"group{'s' * (sums > 1)} of {sites} sites, with a sum of each.",
                "Give a smaller `group_size` (it is never below `least`), or the rule smaller numbers.",
            )  # fmt: skip


def check_delta(declaration: Declaration, folds: Mapping[int, Fold]) -> None:
    """With a δ of 1/n or more, a guarantee allows that one of n patients is told of in full.

    Raises:
        StudyError: P102 with the number of patients or sites.
    """
    units = {part.private for method in configurations(declaration) for part in _chain(method)}
    delta, found = declaration.privacy.delta, list[tuple[int, str]]()
    for fold in folds.values():
        for site in fold.training_sites if "a patient" in units else ():
            found.append((fold.counted[site].patients[0], f"training patients of site {site}"))
        if "a site" in units:
            trained = max(len(fold.trains(method.method)) for method in configurations(declaration))
            found.append((trained, "sites"))
    most, who = max(found, default=(0, ""))
    if delta * most >= 1:
        raise StudyError(
            "P102", f"`privacy: {{delta: {delta:g}}}` is not below 1/{most}, one by the number of {who}: all of one of "
            "them could be told.", "Give a lower one: 1e-5, or what is far below.",
        )  # fmt: skip


def _check_class_weights(method: StudyMethod, classes: list[str]) -> None:
    weights = method.training.class_weights
    if not isinstance(weights, str) and len(weights) != len(classes):
        raise StudyError(
            "P102", f"`training: {{class_weights: ...}}` has {len(weights)} numbers, but there are "
            f"{len(classes)} classes: {', '.join(classes)}.", "Give one number for each class, in this order.",
        )  # fmt: skip


def _check_sites(method: StudyMethod, sites: list[str], voters: Sequence[str] = ()) -> None:
    """Options that differ between sites, trust one, or choose some, must name and count sites that there are, and that
    train: ``voters`` don't."""
    training, trained = method.training, [site for site in sites if site not in voters]
    for key in ("local_epochs", "local_steps", "time_budget", "step_seconds"):
        named = getattr(training, key)
        _check_named(f"training: {{{key}: ...}}", named if isinstance(named, dict) else (), sites)
    for part in build_participation(training):
        _check_named("training: {participation: ...}", part.named, sites)
        if part.wanted is not None and part.wanted > len(trained):
            raise StudyError(
                "P104", f"`training: {{participation: ...}}` chooses among {part.wanted} sites in each round, "
                f"and there are {len(trained)}: {', '.join(trained)}.", f"Give a number of at most {len(trained)}.",
            )  # fmt: skip
    for server_part in _chain(method):
        named = server_part.at_server().named
        _check_named(method.label, named, sites)
        idle = [site for site in named if site in voters]
        if idle:
            text = f"{method.label} names {idle[0]}, which trains nothing by `evaluation: {{voters: ...}}`."
            raise StudyError("P104", text, "Take it out of one of the two.")
    if training.quorum is not None and training.quorum > len(trained):
        raise StudyError(
            "P104", f"`training: {{quorum: {training.quorum}}}` wants more sites than the {len(trained)} there are.",
            "Lower the quorum.",
        )  # fmt: skip


def _check_named(what: str, named: Iterable[str], sites: list[str]) -> None:
    for site in named:
        if site not in sites:
            raise StudyError("P103", f"`{what}` names the site {site!r}, which is not there.", nearest(site, sites))


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


def _chain(method: StudyMethod) -> list[Part]:
    """The parts whose ends at the server make a step."""
    return list(build_chain(method.method.channel, method.method.local, method.method.server).values())
