"""The methods of a study file: which composition of parts each entry is, and how it is trained."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

import torch
from pydantic import Field, ValidationError

from polyclinic.client.optimizers import Named, resolve_optimizer, resolve_schedule
from polyclinic.client.personal.models import PERSONAL
from polyclinic.composition import METHODS
from polyclinic.errors import PolyclinicError, StudyError, nearest
from polyclinic.limits import Patterns
from polyclinic.methods import PUBLISHED, Method, PartEntry, Share, SharedModules, ShareName
from polyclinic.options import Catalogue, EntryError, Place, check_options, first_entry_error, split_entry
from polyclinic.parts import PLACES, ServerEnd, SiteEnd, build_part, part_class
from polyclinic.parts.checks import kind_of, wrong
from polyclinic.seeds import derive_seed
from polyclinic.server.selection import PARTICIPATION, Participation
from polyclinic.study.compatibility import Local, refusal
from polyclinic.study.entries import Training, check_keys
from polyclinic.tasks import TASKS, build_task

log = logging.getLogger(__name__)

#: Letters that a label has at most.
LONGEST_LABEL = 80
#: Parts that any federated method may be given instead of its own, or besides.
COMPOSED = ("share", "personal", "channel", "server", "local", "topology", "procedure")
#: Those of them that take the place of the method's own.
_TAKING_PLACE = ("personal", "server", "topology", "procedure")


@dataclass(frozen=True)
class StudyMethod:
    """A method as the study asks for it.

    Attributes:
        label: name in all results.
        name: name in the catalogue.
        method: its parts.
        training: the study's training with the method's own changes.
        entry: the entry with every default filled in.
    """

    label: str
    name: str
    method: Method
    training: Training
    entry: dict[str, Any]

    @property
    def course(self) -> str:
        """Methods with the same text are trained in the same way, so that one training serves them all."""
        return repr((replace(self.method, tests="own"), self.training))


@dataclass(frozen=True)
class Candidate:
    """A configuration of a method that a search tries.

    Attributes:
        method: the method with these values.
        values: name of each parameter -> its value.
    """

    method: StudyMethod
    values: dict[str, Any]


@dataclass(frozen=True)
class MethodReader:
    """Reads the entries of ``methods:``.

    Attributes:
        task: of the study.
        training: of the study; a method may change any of it.
        mixed: whether the study trains in mixed precision.
        images: whether cases are images.
        subgroups: columns by whose groups results are given.
        model: name of the network.
        public: whether there is a public set.
        networks: whether sites have networks of their own.
        partial: whether some sites did not outline all structures.
    """

    task: str
    training: Training
    mixed: bool
    images: bool = True
    subgroups: Sequence[str] = ()
    model: str = ""
    public: bool = False
    networks: bool = False
    partial: bool = False

    def read(self, entry: object, place: Place) -> StudyMethod:
        """The method that an entry asks for.

        Args:
            entry: a name, or a name with options.
            place: of the entry in the study file.

        Raises:
            EntryError: with the place of what does not fit.
        """
        name, given = split_entry(entry, place, "method")
        METHODS.name(name, place)
        inner, network = (*place, name), PUBLISHED[name].network
        if network and self.model != network:
            hint = (
                f"Write `model: {{{network}: {{encoder: mlp}}}}` and `data: {{bag: COLUMN}}`, or leave the method out."
            )
            raise EntryError(
                "P104", f"{name} is for the model {network}, and the study has another.", hint, place=inner
            )
        general = ("label", *COMPOSED, "training")
        common: dict[str, Any] = {key: given.pop(key) for key in general if key in given}
        own = check_options(METHODS[name], given, inner, name)
        method = METHODS[name](**own)
        method, parts = _composed(name, method, common, inner)
        unused = _unused(name, own, method, common)
        for option in given:
            if option in unused:
                raise EntryError(
                    "P104", f"{option!r} is an option of what {name} has under `{unused[option]}`, where other parts "
                    "are named.", f"Give those parts their options, or name the part of {name} among them.",
                    place=(*inner, option),
                )  # fmt: skip
        own = {option: value for option, value in own.items() if option not in unused}
        training = self.training
        if "training" in common:
            training = _override(training, common["training"], (*inner, "training"))
            check_training(training, self.task, (*inner, "training"))
        _check_built(method, inner)
        keeps = method.keep_optimizer or training.optimizer_state == "keep"
        chosen, stops_early = bool(training.participation), training.early_stopping is not None
        besides = [*(["precision: mixed"] if self.mixed else []), *_besides(training)]
        by_loss = "highest_loss" in str(training.participation)
        local = Local(
            self.task, optimizer_of(training)[0], keeps, self.mixed, chosen, stops_early, besides, by_loss,
            training.class_weights == "balanced", self.images, self.subgroups, self.model, self.public,
            training.rounds, self.networks, self.partial,
        )  # fmt: skip
        refused = refusal(method, local)
        if refused is not None:
            raise EntryError("P104", refused.message, refused.hint, place=(*inner, *refused.place(common)))
        options = ", ".join(f"{key}={_short(value)}" for key, value in {**given, **parts}.items())
        label = common.get("label", _label(f"{name}({options})" if options else name))
        if not isinstance(label, str) or not re.fullmatch(r"[\w .,=()+\-:/\[\]*?!]{1,80}", label):
            message = (
                f"got the label {label!r}; expected up to 80 letters, digits, blanks or . , = ( ) [ ] + - : / * ? !."
            )
            hint = "" if "label" in common else "It is made of the method's options; give another with `label:`."
            raise EntryError("P102", message, hint, place=(*inner, "label"))
        filled = {"label": label, **own}
        if method.scope == "federation":
            filled |= composed_entry(method, METHODS[name](**own))
        if "training" in common:
            filled["training"] = common["training"]
        return StudyMethod(label, name, method, training, {name: filled})

    def with_options(self, method: StudyMethod, options: dict[str, Any]) -> StudyMethod:
        """A method of the study with other options (all of its entry), under the same label.

        Raises:
            EntryError: an option does not fit.
        """
        return self.read({method.name: {**options, "label": method.label}}, ("methods",))


def _composed(name: str, method: Method, common: dict[str, Any], place: Place) -> tuple[Method, dict[str, Any]]:
    """The method with other parts, and those parts for its label."""
    parts = {key: common[key] for key in COMPOSED if key in common}
    if parts and method.scope != "federation":
        key = next(iter(parts))
        hint = "Use a federated method such as fedavg."
        raise EntryError("P104", f"{name} has no server, so `{key}` means nothing.", hint, place=(*place, key))
    if "share" in parts:
        method = replace(method, share=_share(parts["share"], (*place, "share")))
    if "personal" in parts:
        taken_out = parts["personal"] is None
        if taken_out and method.personal is not None:
            parts["personal"] = "shared_model"  # as the label has it
        own = None if taken_out else PERSONAL.resolve(parts["personal"], (*place, "personal"))
        method = replace(method, personal=own)
    changed: dict[str, Any] = {}
    for key in ("local", "channel", "server"):
        if key in parts:
            if key != "server" and not isinstance(parts[key], list):
                raise EntryError("P102", f"got {parts[key]!r}; expected a list of parts.", place=(*place, key))
            found = _parts(parts[key], PLACES[key], (*place, key))
            before = () if key == "server" else getattr(method, key)
            changed[key] = [*before, *found]
    for key in ("topology", "procedure"):
        if key in parts:
            changed[key] = PLACES[key].resolve(parts[key], (*place, key))
    method = replace(method, **changed)
    if parts.get("share") == "none" and not any(part_class(one).without_weights for one, _ in method.parts):
        raise _unshared("none", (*place, "share"))
    usual: tuple[Any, ...] = ([], "all", "star", "local", None)
    return method, {k: v for k, v in parts.items() if v not in usual}


class ModulesEntry:
    """What ``share: {...}`` may say; see `SharedModules`."""

    def __init__(
        self, *, modules: Annotated[Patterns, Field(min_length=1)] | None = None,
        without: Annotated[Patterns, Field(min_length=1)] | None = None, roles: Any = "all",
    ) -> None:  # fmt: skip
        pass


def _share(entry: object, place: Place) -> Share:
    """What is shared: a name, or some modules."""
    if not isinstance(entry, dict):
        return "none" if entry == "none" else _shared_roles(entry, place)
    found = check_options(ModulesEntry, entry, place, "share")
    modules, without = tuple(found["modules"] or ()), tuple(found["without"] or ())
    if not modules and not without and "roles" not in entry:
        message, hint = "`share` names nothing.", "Name `modules`, or those that stay at the sites (`without`)."
        raise EntryError("P102", message, hint, place=place)
    roles = _shared_roles(found["roles"], (*place, "roles"))
    return SharedModules(modules, without, roles) if modules or without else roles


def _shared_roles(entry: object, place: Place) -> ShareName:
    valid: list[ShareName] = [share for share in get_args(ShareName) if share != "none"]
    if entry in valid:  # a list: what is given need not be hashable
        return valid[valid.index(entry)]
    raise _unshared(entry, place)


def _unshared(entry: object, place: Place) -> EntryError:
    valid = [share for share in get_args(ShareName) if share != "none"]
    hint = "To share nothing, use the method single." if entry == "none" else nearest(str(entry), valid)
    return EntryError("P103", f"{entry!r} can't be shared.", hint, place=place)


def _share_entry(share: Share) -> str | dict[str, Any]:
    """What is shared as an entry of a study file."""
    if not isinstance(share, SharedModules):
        return share
    lists = {"modules": list(share.modules), "without": list(share.without)}
    return {key: found for key, found in lists.items() if found} | (
        {"roles": share.roles} if share.roles != "all" else {}
    )


def _unused(name: str, own: dict[str, Any], method: Method, common: dict[str, Any]) -> dict[str, str]:
    """Options of a method whose part is not there any more, or has another value: option -> the place of the part."""
    given = [options for _, options in (*method.parts, *([method.personal] if method.personal else []))]
    others = METHODS[name].options_of_others([key for key in _TAKING_PLACE if key in common])
    return {
        option: place
        for option, place in others.items()
        if not any(option in options and options[option] == own[option] for options in given)
    }


def _check_built(method: Method, place: Place) -> None:
    """Whether the parts can be made with their options: a part may look at several of them together.

    Raises:
        EntryError: P102 with what the part says, or P304 if it has not the ends that a part has.
    """
    for name, options in method.parts:
        try:
            part = build_part(name, options)
            ends = (part.at_site(), part.at_server())
        except StudyError as error:
            raise EntryError(error.code, error.message, error.hint, place=place) from None
        except (TypeError, ValueError) as error:
            raise EntryError("P102", f"{name} can't be made with these options: {error}.", place=place) from None
        for hook, end, kind in zip(("at_site", "at_server"), ends, (SiteEnd, ServerEnd), strict=True):
            if not isinstance(end, kind):
                error = wrong(name, hook, kind_of(end), f"a `{kind.__name__}`")
                raise EntryError(error.code, error.message, error.hint, place=place)
    if method.personal is not None:
        name, options = method.personal
        try:
            PERSONAL[name](**options)
        except (TypeError, ValueError) as error:
            raise EntryError("P102", f"{name} can't be made with these options: {error}.", place=place) from None


def composed_entry(method: Method, plain: Method) -> dict[str, Any]:
    """The parts of a method as entries of a study file; of lists that a method adds to, those that ``plain`` lacks."""

    def entry(part: PartEntry) -> str | dict[str, Any]:
        return {part[0]: dict(part[1])} if part[1] else part[0]

    def each(parts: Sequence[PartEntry]) -> list[dict[str, Any]]:
        return [{name: dict(options)} for name, options in parts]

    return {
        "share": _share_entry(method.share),
        "personal": None if method.personal is None else {method.personal[0]: dict(method.personal[1])},
        "channel": each(method.channel[len(plain.channel) :]),
        "server": each(method.server),
        "local": each(method.local[len(plain.local) :]),
        "topology": entry(method.topology),
        "procedure": entry(method.procedure),
    }


def _parts(entry: object, catalogue: Catalogue[Any], place: Place) -> list[Named]:
    """An entry, or a list of entries, of a catalogue."""
    entries = [(one, (*place, i)) for i, one in enumerate(entry)] if isinstance(entry, list) else [(entry, place)]
    for one, where in entries:
        name, _ = split_entry(one, where, catalogue.kind)
        if name not in catalogue and name in PUBLISHED:
            raise EntryError("P103", f"{name!r} is no {catalogue.kind}: it is a method.", _made_of(name), place=where)
    return [catalogue.resolve(one, where) for one, where in entries]


def _made_of(name: str) -> str:
    """What to name instead of a method where a part is wanted."""
    method = PUBLISHED[name].method
    places = {"local": method.local, "channel": method.channel, "server": method.server}
    parts = [f"`{key}: [{part}]`" for key, entries in places.items() for part, _ in entries if part != "mean"]
    return f"Its parts are {' and '.join(parts)}." if parts else "Name a part, or use the method by itself."


def check_training(training: Training, task: str, place: Place) -> None:
    """Check what a training says against the task.

    Raises:
        EntryError: with the place of what does not fit.
    """
    if training.local_epochs and isinstance(training.local_steps, int):
        message = "`local_epochs` and `local_steps` exclude each other; give one."
        raise EntryError("P102", message, place=(*place, "local_steps"))
    if isinstance(training.local_epochs, dict) and isinstance(training.local_steps, dict):
        both = [site for site in training.local_steps if site in training.local_epochs]
        if both:
            message = f"{both[0]} has both `local_epochs` and `local_steps`; give one."
            raise EntryError("P102", message, place=(*place, "local_steps", both[0]))
    _check_loss(loss_of(training, task, place), task, place)
    if training.class_weights != "none" and TASKS[task].target != "labels":
        raise EntryError("P104", f"{task} has no class weights.", place=(*place, "class_weights"))
    if training.batch_size == 1 and build_task(task, 2, loss_of(training, task, place)).compares_cases:
        raise EntryError(
            "P104", "a batch of one case teaches nothing: this loss compares the cases of a batch with each other.",
            "Use a larger `batch_size`; with one above the cases of a site all of them are compared.",
            place=(*place, "batch_size"),
        )  # fmt: skip
    _check_participation(training, place)
    optimizer = resolve_optimizer(training.optimizer, (*place, "optimizer"))
    if training.schedule is not None:
        resolve_schedule(training.schedule, optimizer, (*place, "schedule"), training.rounds)


def loss_of(training: Training, task: str, place: Place = ("training",)) -> Named:
    """Name and complete options of the loss of a training.

    Raises:
        EntryError: P102 or P103, there is no such loss, or an option does not fit.
    """
    losses = TASKS[task].losses
    return losses.resolve(next(iter(losses)) if training.loss is None else training.loss, (*place, "loss"))


def _check_loss(loss: Named, task: str, place: Place) -> None:
    """Try a loss that is not of this package on made-up cases."""
    name, _ = loss
    if TASKS[task].losses[name].__module__.partition(".")[0] == "polyclinic":
        return
    kind = build_task(task, 2, loss)
    example = kind.example()
    if example is None:
        return
    outputs, targets = example
    try:
        found = kind.loss(outputs, targets)
        alone = torch.cat([kind.loss(outputs[place : place + 1], targets[place : place + 1])
                           for place in range(len(outputs))])  # fmt: skip
    except PolyclinicError as error:
        raise EntryError("P102", error.message, error.hint, place=(*place, "loss")) from None
    except Exception:  # options may suit the study's classes and not two; then it is told where it fails
        log.debug("trying the loss %s", name, exc_info=True)
        return
    if not kind.compares_cases and not torch.allclose(found, alone, rtol=1e-3, atol=1e-5):
        raise EntryError(
            "P102", f"{name} gives a case another loss beside other cases than alone, and does not say so.",
            f"Write `{TASKS[task].losses[name].__name__}.compares_cases = True` below the function, or let the loss of "
            "a case depend on that case alone.", place=(*place, "loss"),
        )  # fmt: skip


def _check_participation(training: Training, place: Place) -> None:
    most = [part.most for part in build_participation(training, place) if part.most is not None]
    if most and training.quorum is not None and training.quorum > min(most):
        raise EntryError(
            "P104", f"`participation` leaves {min(most)} sites and `quorum` wants {training.quorum}, so every round "
            "would be skipped.", "Lower the quorum, or let more sites take part.", place=(*place, "quorum"),
        )  # fmt: skip


def optimizer_of(training: Training) -> Named:
    """Name and options of the local optimiser."""
    return resolve_optimizer(training.optimizer, ("training", "optimizer"))


def build_participation(training: Training, place: Place = ("training",)) -> list[Participation]:
    """Who takes part in a round."""
    place = (*place, "participation")
    entries = [] if training.participation is None else _parts(training.participation, PARTICIPATION, place)
    try:
        return [PARTICIPATION[name](**options) for name, options in entries]
    except StudyError as error:
        raise EntryError(error.code, error.message, error.hint, place=place) from None


def _besides(training: Training) -> list[str]:
    """Entries that change how a site trains by itself, besides its optimiser and batches."""
    budget = training.time_budget is not None and training.step_seconds is None
    given = {
        "clip": training.clip is not None, "class_weights": training.class_weights != "none", "time_budget": budget,
    }  # fmt: skip
    return [name for name, there in given.items() if there]


def schedule_of(training: Training) -> Named | None:
    """Name and options of the schedule, if there is one."""
    if training.schedule is None:
        return None
    return resolve_schedule(training.schedule, optimizer_of(training), ("training", "schedule"))


def _override(training: Training, changes: object, place: Place) -> Training:
    if not isinstance(changes, dict):
        raise EntryError("P102", f"got {changes!r}; expected entries of `training`.", place=place)
    check_keys(Training, changes, place)
    content = training.model_dump()
    if changes.keys() & {"local_epochs", "local_steps"}:
        content |= {"local_epochs": None, "local_steps": None}
    try:
        return Training.model_validate({**content, **changes})
    except ValidationError as error:
        raise first_entry_error(error, changes, place) from None


def filled_training(training: Training, task: str) -> dict[str, Any]:
    """Entries of a training whose defaults depend on others, or on the task."""
    epochs = None if isinstance(training.local_steps, int) else training.local_epochs or 1
    name, options = optimizer_of(training)
    loss, given = loss_of(training, task)
    return {"local_epochs": epochs, "loss": {loss: given} if given else loss, "optimizer": {name: options}}


def _label(text: str) -> str:
    """A label that is not too long: of a longer one the beginning, with letters that stand for all of it."""
    if len(text) <= LONGEST_LABEL:
        return text
    ending = f"... {derive_seed(text) % 16**6:06x})"
    return text[: LONGEST_LABEL - len(ending)] + ending


def _short(value: object) -> str:
    """A part with its options, or the value of an option, as labels have it."""
    if isinstance(value, dict):
        name, options = next(iter(value.items()), ("", None))
        if len(value) == 1 and (options is None or isinstance(options, dict)):
            return f"{name}({', '.join(f'{k}={_short(v)}' for k, v in options.items())})" if options else f"{name}"
        return f"({', '.join(f'{k}: {_short(v)}' for k, v in value.items())})"
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return str(value)
