"""Opening a study's data by messages: sites say what they have, all are told what is agreed, and cases are opened."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from polyclinic.communication.message import Message
from polyclinic.data.opening.agreement import Agreement, agree
from polyclinic.data.opening.census import Census
from polyclinic.data.opening.cohort import Cohort
from polyclinic.data.opening.facts import SiteFacts
from polyclinic.data.opening.holder import Progress
from polyclinic.data.opening.public import PublicCases, open_public
from polyclinic.data.opening.source import Source
from polyclinic.data.tables.table import PACKAGE
from polyclinic.engine import CheckedEngine, Engine, LocalEngine
from polyclinic.errors import DataError, PolyclinicError, StudyError
from polyclinic.notes import Note
from polyclinic.site.messages import Agree, Open
from polyclinic.site.schema import Known
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.public import inside, public_at_server


def local_engine(study: CheckedStudy, progress: Progress | None = None, *, serialise: bool = False) -> LocalEngine:
    """The sites of a study whose data are all on this machine; they open their cases when they are asked to.

    Raises:
        DataError: what is wrong with the tables.
    """
    declaration = study.declaration
    source = Source(study.folder, progress=progress)
    split, groups = declaration.evaluation.split, declaration.evaluation.grouped_by
    names = source.holder(declaration.data, declaration.target, split, groups, declaration.until).sites
    corruptible = declaration.corrupted_by is not None
    return LocalEngine(names, source=source, corruptible=corruptible, serialise=serialise)


def check_privileges(study: CheckedStudy, engine: Engine) -> None:
    """What needs all cases in one place is refused where they are not.

    Raises:
        StudyError: P104 with the entry.
    """
    if engine.holds_all:
        return
    declaration = study.declaration
    where = "the sites' cases are not in one place."
    if declaration.data.partition is not None:
        raise StudyError("P104", f"`data: {{partition: ...}}` shares patients out among simulated sites, and {where}",
                         "Take `partition` out, or run the study where all data are on one machine.")  # fmt: skip
    pooled = [method.label for method in declaration.study_methods if method.method.scope == "pool"]
    if pooled:
        raise StudyError("P104", f"{pooled[0]} trains on the pooled cases of all sites, and {where}",
                         "Take it out of `methods`, or run the study where all data are on one machine.")  # fmt: skip
    public = declaration.data.public
    if public is not None and public.sites is not None:
        raise StudyError("P104", f"`public: {{sites: ...}}` gives all parties the cases of a site, and {where}",
                         "Name a file of which each has a copy: `public: {table: ...}`.")  # fmt: skip
    if declaration.corrupted_by is not None:
        raise StudyError("P104", f"`attack` is a simulation, in which sites do as they are told, and {where}",
                         "Take `attack` out, or run the study where all data are on one machine.")  # fmt: skip


class Answered(NamedTuple):
    """What sites answered when they were asked to open their data.

    Attributes:
        study: with everything that said ``auto`` planned.
        agreement: what the sites agree on.
        censuses: what each said.
    """

    study: CheckedStudy
    agreement: Agreement
    censuses: dict[str, Census]


def ask_open(study: CheckedStudy, engine: Engine) -> Answered:
    """Ask all sites what they have, and make of it what they agree on.

    Raises:
        PolyclinicError: a site can't open its tables, or sites do not go together.
    """
    check_privileges(study, engine)
    declaration = study.declaration
    asked = Open(
        data=declaration.data, target=declaration.target, split=declaration.evaluation.split,
        plan=declaration.wants_plan, subgroups=declaration.evaluation.subgroups, until=declaration.until,
    )  # fmt: skip
    checked = CheckedEngine(engine, Known())
    replies = _ask(checked, "open", Message(asked.fields()))
    censuses = {site: Census.model_validate(reply.fields) for site, reply in replies.items()}
    agreement = agree(censuses, declaration.data, declaration.target, declaration.evaluation.grouped_by)
    study = study.planned_from([census.volumes for census in censuses.values() if census.volumes is not None])
    return Answered(study, agreement.planned(study.declaration.data), censuses)


def _ask(engine: Engine, function: str, asked: Message) -> dict[str, Message]:
    """The answers of all sites.

    Raises:
        PolyclinicError: the first failure; one that a site elsewhere finds in its own data says which site that is.
    """
    answers = {}
    for site, reply in engine.call(function, dict.fromkeys(engine.sites, asked)):
        if isinstance(reply, PolyclinicError):
            if engine.holds_all or site in reply.message:
                raise reply
            raise type(reply)(reply.code, f"Site {site}: {reply.message}", reply.hint)
        answers[site] = reply
    return answers


def ask_agree(answered: Answered, engine: Engine, *, described: bool = False) -> Cohort:
    """Tell all sites what is agreed, and put together what they say of their opened cases.

    Sites without a case that can be used leave the engine.

    Args:
        answered: what sites have.
        engine: who runs them.
        described: whether sites also say which values are usual there, as they do where nobody holds the data of all.

    Raises:
        PolyclinicError: a site can't open its cases, or none has any.
    """
    study, agreement, censuses = answered
    declaration = study.declaration
    notes = described or not engine.holds_all
    asked = Agree(agreement=agreement, notes=notes, usual=notes and declaration.privacy.summaries is None)
    replies = _ask(CheckedEngine(engine, Known()), "agree", Message(asked.fields()))
    facts = {site: SiteFacts.model_validate(reply.fields) for site, reply in replies.items()}
    own = None if engine.holds_all else _own_copy(study, agreement, engine)
    cohort = Cohort.of(
        facts,
        agreement,
        declaration.data,
        declaration.target,
        engine.compared(),
        censuses,
        None if own is None else own.facts,
    )
    cohort = replace(cohort, public_inputs=engine.public() if own is None else own.inputs)
    if not engine.holds_all:
        text = "The sites' cases were not compared with each other, since they are not in one place: "
        cohort.notes.append(Note("N108", text + "the same patient may be at two sites."))
    engine.keep(cohort.sites)
    return cohort


def _own_copy(study: CheckedStudy, agreement: Agreement, engine: Engine) -> PublicCases | None:
    """The coordinator's copy of the public set, if something is computed on it there.

    Raises:
        DataError: P211, it has none, or it lies outside its folder.
    """
    public, folder = study.declaration.data.public, engine.folder_here or study.folder
    if public is None or not public_at_server(study.declaration):
        return None
    hint = f"Put a copy into the folder {folder.name!r} of the coordinator's kit, under the name that the study has."
    for name, path in (("table", public.table), ("root", public.root)):
        if path is not None and not path.startswith(PACKAGE) and not inside(path):
            raise DataError("P211", f"`public: {{{name}: ...}}` names a place outside the coordinator's folder.", hint)
    try:
        return open_public(study.declaration.data, folder, agreement)
    except DataError as error:
        raise DataError(
            "P211", f"The coordinator has no copy of the public set that fits. {error.message}", hint
        ) from None
