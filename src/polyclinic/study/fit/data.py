"""Whether a study fits its data: names and numbers of sites and classes that only the data tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polyclinic.audit.poisoning import Attack
from polyclinic.data.opening.cohort import Cohort
from polyclinic.errors import StudyError, nearest
from polyclinic.options import EntryError
from polyclinic.parts import build_part
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.declaration import Declaration
from polyclinic.study.fit.attacks import attack_of, check_reached
from polyclinic.study.fit.networks import check_networks
from polyclinic.study.method_entries import StudyMethod, build_participation
from polyclinic.study.planning import built
from polyclinic.study.reading import located
from polyclinic.study.times_entry import check_times_fit


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
    for method in declaration.configurations:
        _check_class_weights(method, cohort.classes)
        _check_sites(method, sites, voters)
        check_public(method, cohort)
        _check_parts(method, declaration, cohort)
    try:
        check_times_fit(declaration.grid, cohort, declaration.data.time_unit)
        attack = attack_of(declaration, cohort)
        network = check_networks(declaration, cohort, training, attack)
        if attack is not None:
            check_reached(attack, declaration, network.layout)
    except EntryError as error:
        raise located(error, study.name, study.text) from None
    return attack


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
    for part in built(method.method).values():
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
    for server_part in built(method.method).values():
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
