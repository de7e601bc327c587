"""What a message of each function must be, for both ends: a site reads what it is asked and the coordinator what is
answered by the same rules.

Named dimensions: P coordinates of the model, W of them weights; Q that are shared, T weights and S statistics among
these; C classes; N cases; F features or channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, TypeVar

import torch
from pydantic import ValidationError, create_model
from pydantic_core import ErrorDetails
from torch import Tensor

from polyclinic.client.work import NOT_FINITE
from polyclinic.communication.message import Message
from polyclinic.data.opening.census import Census
from polyclinic.data.opening.facts import SiteFacts
from polyclinic.data.preparation import SharedStep
from polyclinic.errors import PolyclinicError, SiteError, TrainingError
from polyclinic.limits import Body, Nothing
from polyclinic.models import ATTENDING
from polyclinic.models.variant import Variant
from polyclinic.parts import Part, ServerEnd, build_parts
from polyclinic.parts.site_end import overrides
from polyclinic.shapes import MOST_NUMBERS, Misfit, NotFinite, Shaped, finite
from polyclinic.site.messages import (
    Agree,
    Applied,
    AskGroups,
    AskSurvival,
    Checkpointed,
    Compare,
    Compared,
    During,
    Evaluate,
    Evaluated,
    Groups,
    Open,
    Pictured,
    Predict,
    Predicted,
    Prepare,
    Prepared,
    Question,
    Retain,
    Retained,
    Spends,
    Spread,
    Spreads,
    Start,
    Started,
    Survival,
    Test,
    Tested,
    Train,
    Trained,
)
from polyclinic.site.sums import BOXES, MASKED, PHASES
from polyclinic.state import FlatModule
from polyclinic.statistics.calibration import THRESHOLDS
from polyclinic.statistics.survival import CURVE
from polyclinic.tasks import Task, build_task
from polyclinic.tasks.base import Asked

B = TypeVar("B", bound=Body)
Shapes = Mapping[str, Shaped]
#: Tensor -> type, shape, and what its numbers must be.
Exact = Mapping[str, tuple[torch.dtype, tuple[int, ...], Shaped]]
#: Lengths of dimensions, by their names.
Sizes = MutableMapping[str, int]

#: A tensor of a part that does not say what it is.
ANYTHING = Shaped("", None)
_SAME = "Let all sites and the server run the same version of Polyclinic."
#: Dimensions that each site has its own of: cases, and places in pictures.
_OWN = ("N", "H", "W")
_NO_METRICS = Asked((), (), 0.0)


@dataclass(frozen=True)
class Known:
    """What both ends know of the messages to come.

    Attributes:
        sizes: lengths of dimensions.
        parts: part of the method -> what its ends may send each other.
        given: part that closes updates -> what it is given of one at a site; None where only the part before it knows.
        leaving: an update as it leaves a site, likewise.
        may_be_quiet: whether a site may answer ``train`` without an update, since a part may keep it back.
        task: what is learned.
        asked: what is measured on test cases.
        step: the step of the preparation that needs all sites.
        hides: whether what sites share for it is told in sums alone.
        attends: whether the network says how much each instance of a bag counts.
        variants: site that does not train the study's network -> the same for messages about its training.
        beside: what parts may add to a question for predictions: ``part/name*``, perhaps with a number.
        networks: how many networks there are, where sites have different ones; else 0.
        others: site with a network of its own -> what is known of all messages to it.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, Shapes] = field(default_factory=dict)
    given: Mapping[str, Shapes | None] = field(default_factory=dict)
    leaving: Shapes | None = None
    may_be_quiet: bool = False
    task: Task | None = None
    asked: Asked = _NO_METRICS
    step: SharedStep | None = None
    hides: bool = False
    attends: bool = False
    variants: Mapping[str, Known] = field(default_factory=dict)
    beside: Shapes = field(default_factory=dict)
    networks: int = 0
    others: Mapping[str, Known] = field(default_factory=dict)

    @classmethod
    def of(cls, start: Start, model: FlatModule, variants: Mapping[str, Variant] | None = None) -> Known:
        """In a training that ``start`` declares, of a ``model``, and of ``variants`` at some sites."""
        layout = model.layout
        shared = layout.select(start.share, start.modules, start.without)
        sizes = {"P": layout.size, "Q": shared.size, "T": shared.trainable, "S": shared.size - shared.trainable}
        sizes["W"] = layout.trainable  # weights, whether shared or not
        if start.classes:
            sizes["C"] = start.classes
        if start.public is not None:
            sizes["U"], sizes["V"] = start.public
        sizes |= {f"P{number}": one.size for number, one in enumerate(start.networks)}
        loss, metrics = (start.loss, start.loss_options), start.metrics
        task = build_task(start.task, start.classes, loss, grid=start.grid, heads=start.heads)
        sizes["heads"] = len(task.heads)
        sizes["metrics"] = len(task.result_metrics(metrics.names, metrics.classes))
        built = build_parts(start.parts)
        parts = {name: _shapes(part, model) for name, part in built.items()}
        asked = Asked(metrics.names, metrics.classes, metrics.tolerance, space=metrics.space)
        beside = {
            f"{name}/{key}*": _of_part(shaped, f"{name}/{key}", "")
            for name, part in built.items()
            if type(part.at_server()).predicting is not ServerEnd.predicting
            for key, shaped in parts[name].items()
        }
        quiet = any(overrides(part.at_site(), "sends") for part in built.values())

        def known(sizes: Mapping[str, int]) -> Known:
            return cls(
                sizes,
                parts,
                *_levels(built, cls(parts=parts).sent("train"), sizes),
                quiet,
                task,
                asked,
                attends=start.model[0] in ATTENDING,
                beside=beside,
                networks=len(start.networks),
            )

        others = {id(variant): known({**sizes, **variant.sizes}) for variant in (variants or {}).values()}
        return replace(known(sizes), variants={site: others[id(one)] for site, one in (variants or {}).items()})

    def at(self, site: str, function: str) -> Known:
        """What is known of a function's messages to a site."""
        own = self.others.get(site, self)
        return own.variants.get(site, own) if function == "train" or "/" in function else own

    def sent(self, answered: str = "") -> dict[str, Shaped]:
        """What parts may add to a message: ``part/name``.

        Args:
            answered: name of the function, in whose answers some must be, and values must be finite; "" for questions.
        """
        return {
            f"{part}/{name}": _of_part(shaped, f"{part}/{name}", answered)
            for part, shapes in self.parts.items()
            for name, shaped in shapes.items()
        }

    @cached_property
    def _questions(self) -> dict[str, tuple[Shapes, Exact | None]]:
        return {}

    def question(self, name: str, function: Function) -> tuple[Shapes, Exact | None]:
        """The tensors of a question, and the quick way to check them."""
        if name not in self._questions:
            shapes = _found(function.asked_tensors, self, Message())
            self._questions[name] = shapes, _exact(shapes, self.sizes)
        return self._questions[name]


def _levels(
    parts: Mapping[str, Part], sent: Shapes, sizes: Mapping[str, int]
) -> tuple[dict[str, Shapes | None], Shapes | None]:
    """See `Known.given` and `Known.leaving`; ``sent`` is what parts add."""
    level: Shapes | None = {"change": Shaped("float32", "T"), "statistics": Shaped("float32", "S"), **sent}
    given = dict[str, Shapes | None]()
    for name, part in parts.items():
        if overrides(part.at_site(), "close"):
            given[name] = level
            level = None if level is None else part.leaves(level, sizes)
    return given, level


def _shapes(part: Part, model: FlatModule) -> dict[str, Shaped]:
    shapes = part.shapes_for(model)
    return {name: shapes.get(name, ANYTHING) for name in part.reveals}


def _of_part(shaped: Shaped, name: str, answered: str) -> Shaped:
    # What the server sends is not finite where a simulated attack has broken the model down: sites see that themselves.
    group = "" if answered and shaped.always == answered else name
    shape = (None,) if shaped.shape is None else shaped.shape
    answer = answered != ""
    least, most = (shaped.least, shaped.most) if answer else (None, None)
    return Shaped(
        "|".join(shaped.kinds), *shape, group=group, finite=shaped.finite and answer, least=least, most=most,
        filled=shaped.filled and answer,
    )  # fmt: skip


#: ``(known, what was asked)`` -> the tensors of a message.
Find = Callable[[Known, Message], Shapes]


@dataclass(frozen=True)
class Function:
    """What a site is asked, and what it answers.

    Attributes:
        asked: fields of the question.
        answered: fields of the answer.
        asked_tensors: its tensors, or how they follow from what is known; a name may be a pattern that ends in ``*``.
        answered_tensors: likewise; they may depend on what was asked, too.
        lists: fields of the answer that have as many values as a dimension is long.
    """

    asked: type[Body] = Nothing
    answered: type[Body] | Callable[[Known], type[Body]] = Nothing
    asked_tensors: Shapes | Find = field(default_factory=dict)
    answered_tensors: Shapes | Find = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)


# Tensors that depend on something -------------------------------------------------------------------------------------


def _trained(known: Known, asked: Message) -> Shapes:
    if known.leaving is not None:
        return known.leaving
    anything = {name: Shaped("", None, group=name) for name in ("change", "statistics")}
    return {**anything, **known.sent("train")}


def _evidence(known: Known, asked: Message) -> Shapes:
    return {} if known.task is None or known.task.counts is None else {"counts": known.task.counts}


def _sums(known: Known, asked: Message) -> Shapes:
    task = known.task
    return {} if task is None or task.summed is None or not task.needs_sums else {"sums": task.summed}


def _rows(known: Known, asked: Message) -> Shapes:
    if known.task is None:
        return {}
    return {**known.task.sends, **(_ATTENTION if known.attends else {})}


#: How many instances each case has, and how much each of them counts, one case after another.
_ATTENTION = {
    "instances": Shaped("int64", "N", least=1, group="attention"),
    "attention": Shaped("float32", "N instances", finite=False, group="attention"),
}


def _tested(known: Known, asked: Message) -> Shapes:
    """Values of the metrics and totals, of no single case; both are missing where there are too few patients."""
    if known.task is None or "mark" in asked.fields:
        return {}
    values = Shaped("float64", "metrics", finite=False, group="tested")
    return {"values": values} | {
        name: Shaped("|".join(one.kinds), *(one.shape or (None,)), finite=one.finite, least=one.least, group="tested")
        for name, one in known.task.totalled.items()
    }


def _evident(*shape: str | int, kind: str = "float64", group: str = "compared") -> Shaped:
    return Shaped(kind, *shape, finite=False, group=group)


#: Of M methods and S seeds by K metrics, each of which may be others at each site; of L methods trust in them.
_COMPARED = {
    "values": _evident("N metrics", "N methods"),
    "differences": _evident("N metrics", "N seeds", "N methods", "N methods"),
    "variances": _evident("N metrics", "N methods", "N methods"),
    "patients": _evident("N metrics", "N methods"),
    "counts": _evident("N trusted", 2, kind="int64", group="trust"),
    "lines": _evident("N trusted", 4, group="trust"),
    "benefit": _evident("N trusted", len(THRESHOLDS), group="trust"),
    "everybody": _evident("N trusted", len(THRESHOLDS), group="trust"),
}


_SPREAD = {
    "covariance": _evident("N metrics", "N methods", "N methods"),
    "counted": _evident("N metrics", "N methods"),
}


#: Of E groups, the group, the rest, and the group as it is compared with it: patients and cases; K metrics; value and
#: variance of intercept and slope.
_GROUPS = {
    "counts": _evident("N places", 3, 2, kind="int64", group="groups"),
    "values": _evident("N places", 3, "N metrics", group="groups"),
    "variances": _evident("N places", 3, "N metrics", group="groups"),
    "counted": _evident("N places", 3, "N metrics", group="groups"),
    "gaps": _evident("N places", "N metrics", group="groups"),
    "lines": _evident("N places", 3, 4, group="groups"),
}


#: Rows of a curve by its columns; of M methods cases and how many have a higher risk, sums, and rows of both groups.
_SURVIVAL = {
    "curve": _evident("N times", len(CURVE), group="survival"),
    "counts": _evident("N methods", 2, kind="int64", group="survival"),
    "sums": _evident("N methods", 3, group="survival"),
    "curves": _evident("N told", 2, len(CURVE) + 1, group="survival"),
}


def _described(known: Known, asked: Message) -> Shapes:
    numbers = {name: Shaped("float64", "F") for name in ("count", "mean", "m2")}
    ranks = {"rank": Shaped("float64", "F", "E", finite=False)}
    found = ranks if asked.tensors else numbers
    return {f"{stage}/{name}": shaped for stage in ("before", "after") for name, shaped in found.items()}


def _pictures(known: Known, asked: Message) -> Shapes:
    found = dict[str, Shaped]()
    for rank in ("worst", "median", "best"):
        if known.task is not None and known.task.target == "images":
            for name in ("zero_filled", "reconstruction", "reference", "zero_filled_error", "error"):
                found[f"{rank}/{name}"] = Shaped("uint8", f"H {rank}", f"W {rank}", group="pictures")
            found[f"{rank}/span"] = Shaped("float64", 1, least=0, group="pictures")
            continue
        found[f"{rank}/image"] = Shaped("uint8", "channels", f"H {rank}", f"W {rank}", group="pictures")
        for name in ("mask", "prediction"):
            found[f"{rank}/{name}"] = Shaped("uint8", f"H {rank}", f"W {rank}", group="pictures")
        found[f"{rank}/planes"] = Shaped("int32", 3, group="planes")
    return found


@cache
def predicted(task: type[Task]) -> type[Predicted]:
    """The fields of the answer to ``predict``, with those that a task adds."""
    says: dict[str, Any] = {name: (kind, ...) for name, kind in task.says.items()}
    return create_model("Predicted", __base__=Predicted, **says) if says else Predicted


#: The shared state; as it is where a simulated attack has broken the model down, so its values may be any.
_STATE = {"state": Shaped("float32", "Q", finite=False)}
#: The same, where other tensors may come instead.
_OR_STATE = {"state": Shaped("float32", "Q", finite=False, group="state")}
_NUMBER = Shaped("float64", 1, group="target")
#: A text, see `polyclinic.channel.said`.
_SAID = Shaped("uint8", "N")
#: An answer that is summed: words of whole numbers under masks.
_MASKED = {MASKED: Shaped("int64", "N")}


def _states(known: Known, asked: Message) -> Shapes:
    """The shared state, and what parts send beside it."""
    return {**_STATE, **known.beside}


def _models(known: Known, asked: Message) -> Shapes:
    """The shared state, or whole models, and what parts send beside them; where sites have different networks, models
    have the numbers of theirs."""
    names = {f"network{number}_model*": f"P{number}" for number in range(known.networks)} or {"model*": "P"}
    models = {name: Shaped("float32", size, finite=False, group="model") for name, size in names.items()}
    return {**_OR_STATE, **models, **known.beside}


def _centre(known: Known, asked: Message) -> Shapes:
    centres = known.step.centres if known.step else {}
    return {name: Shaped("|".join(one.kinds), *(one.shape or ()), group="centre") for name, one in centres.items()}


def _shared(known: Known, asked: Message) -> Shapes:
    """What a site shares, or adds to a sum, at first or about a common centre."""
    if known.step is None:
        return {}
    if not known.hides:
        return known.step.shares
    return known.step.about if asked.tensors else known.step.summed


FUNCTIONS: dict[str, Function] = {
    "open": Function(Open, Census),
    "agree": Function(Agree, SiteFacts),
    "prepare": Function(
        Prepare, Prepared, answered_tensors={f"target_{name}": _NUMBER for name in ("count", "mean", "m2")}
    ),
    "share": Function(asked_tensors=_centre, answered_tensors=_shared),
    "apply": Function(
        answered=Applied, asked_tensors=lambda known, asked: known.step.merges if known.step else {}
    ),
    "describe": Function(
        asked_tensors={
            name: Shaped("float64", "F", "E", finite=False, group="grid") for name in ("before", "after")
        },
        answered_tensors=_described,
    ),
    "start": Function(
        Start, Started, {"initial": Shaped("float32", "P"), "own": Shaped("float32", "own P", group="own")},
        lambda known, asked: known.sent("start"),
    ),
    "train": Function(Train, Trained, lambda known, asked: {**_STATE, **known.sent()}, _trained),
    "evaluate": Function(Evaluate, Evaluated, _states),
    "try": Function(Nothing, Nothing, _STATE),
    "keep": Function(During),
    "threshold": Function(During, asked_tensors=_models, answered_tensors=_evidence),
    "sums": Function(During, asked_tensors=_models, answered_tensors=_sums),
    "predict": Function(
        Predict, lambda known: Predicted if known.task is None else predicted(type(known.task)), _models, _rows,
        {"subject": "N", "case": "N"},
    ),
    "test": Function(Test, Tested, _models, _tested),
    "compare": Function(
        Compare, Compared, answered_tensors=_COMPARED,
        lists={"metrics": "N metrics", "methods": "N methods", "seeds": "N seeds", "trusted": "N trusted"},
    ),
    "spread": Function(
        Spread, Spreads,
        {"shares": Shaped("float64", "trials", "metrics", least=0.0), "totals*": Shaped("float64", None)},
        _SPREAD, {"methods": "N methods"},
    ),
    "groups": Function(
        AskGroups, Groups, answered_tensors=_GROUPS, lists={"metrics": "N metrics", "places": "N places"}
    ),
    "survival": Function(AskSurvival, Survival, answered_tensors=_SURVIVAL, lists={"methods": "N methods"}),
    "model": Function(During, Nothing, _STATE, {"model": Shaped("float32", "P", finite=False)}),
    "overlays": Function(Predict, Pictured, _models, _pictures),
    "retain": Function(Retain, Retained, _OR_STATE),
    "spent": Function(During, Spends),
    **dict.fromkeys(PHASES, Function(asked_tensors={"told": _SAID}, answered_tensors={"said": _SAID})),
    "save": Function(Checkpointed),
    "restore": Function(Checkpointed),
}  # fmt: skip


def function_of(name: str) -> Function:
    """A function by its name; a part's own question is called ``part/verb``.

    Raises:
        SiteError: P401, there is no such function.
    """
    part, question, _ = name.partition("/")
    if question:
        return _question(part)
    if name not in FUNCTIONS:
        raise SiteError("P401", f"A message asks for {name[:80]!r}, which no site does.", _SAME)
    return FUNCTIONS[name]


def _question(part: str) -> Function:
    def tensors(known: Known, answered: str, *, finite: bool) -> Shapes:
        state = Shaped("float32", "Q", finite=finite, group="state")
        parts = known.parts.get(part, {})
        return {"state": state, **{name: _of_part(shaped, name, answered) for name, shaped in parts.items()}}

    return Function(
        Question, Nothing,
        asked_tensors=lambda known, asked: tensors(known, "", finite=False),
        answered_tensors=lambda known, asked: tensors(known, "part", finite=True),
    )  # fmt: skip


# Checking -------------------------------------------------------------------------------------------------------------


def check_opened(known: Known, part: str, tensors: Mapping[str, Tensor]) -> None:
    """Whether an update that a part has opened is what that part at a site was given.

    Raises:
        Misfit: it is not.
    """
    level = known.given.get(part)
    if level is not None and not _is_exact(_exact(level, known.sizes), tensors):
        _check_tensors(level, tensors, dict(known.sizes), known)


def read_asked(name: str, request: Message, known: Known, site: str) -> Body:
    """The fields of what a site is asked; its tensors are checked, too.

    Raises:
        SiteError: P401 with the first thing that is not as it should be.
    """
    function = function_of(name)
    shapes, exact = known.question(name, function)
    try:
        body = _read(function.asked, request.fields)
        if not _is_exact(exact, request.tensors):
            _check_tensors(shapes, request.tensors, dict(known.sizes), known)
    except Misfit as misfit:
        raise SiteError(
            "P401", f"A message {name!r} to site {site} is not as it should be: {misfit}.", _SAME, site=site
        ) from None
    return body


def read_body(kind: type[B], function: str, request: Message, site: str) -> B:
    """The fields of a message as its body.

    Raises:
        SiteError: P401 with the first thing that is not as it should be.
    """
    try:
        return kind.model_validate(_read(kind, request.fields))
    except Misfit as misfit:
        text = f"A message {function!r} to site {site} is not as it should be: {misfit}."
        raise SiteError("P401", text, _SAME, site=site) from None


class Answers:
    """Checks the answers to one question that several sites are asked.

    Args:
        name: of the function.
        known: what is known of the messages.
    """

    def __init__(self, name: str, known: Known) -> None:
        self.name, self.known = name, known
        self._function = function_of(name)
        self._shapes: Shapes | None = None
        self._sizes = dict(known.sizes)
        kind = self._function.answered
        self._kind = kind if isinstance(kind, type) else kind(known)

    def check(self, site: str, asked: Message, reply: Message) -> PolyclinicError | None:
        """What is wrong with a site's answer; None if nothing is.

        Args:
            site: its name.
            asked: what it was asked: of the same kind at all sites.
            reply: its answer. What other sites answered before must agree with it in the lengths of dimensions.
        """
        if self._shapes is None:
            if BOXES in asked.tensors:
                self._shapes, self._kind = _MASKED, Nothing
            else:
                self._shapes = _found(self._function.answered_tensors, self.known, asked)
            self._exact = _exact(self._shapes, self._sizes)
        sizes = self._sizes
        quiet = self.known.may_be_quiet and self.name == "train" and not reply.tensors
        try:
            _read(self._kind, reply.fields)
            if not quiet and not _is_exact(self._exact, reply.tensors):
                sizes = dict(self._sizes)
                _check_tensors(self._shapes, reply.tensors, sizes, self.known)
            if self._function.lists:
                self._check_content(reply, sizes)
        except NotFinite as misfit:
            text = f"Training at site {site} gave values that are not finite numbers ({misfit})."
            return TrainingError("P301", text, NOT_FINITE)
        except Misfit as misfit:
            text = f"The answer of site {site} to {self.name!r} is not as it should be: {misfit}."
            return SiteError("P401", text, _SAME, site=site)
        if len(sizes) > len(self._sizes):
            self._sizes = {one: length for one, length in sizes.items() if not one.startswith(_OWN)}
        return None

    def _check_content(self, reply: Message, sizes: Sizes) -> None:
        for listed, dimension in self._function.lists.items():
            count = len(reply.fields.get(listed, []))
            if sizes.setdefault(dimension, count) != count:
                raise Misfit(f"{listed}: got {count} values, expected {dimension} = {sizes[dimension]}")
        for name, groups in reply.fields.get("groups", {}).items():
            if len(groups) != sizes.get("N"):
                raise Misfit(f"groups of {name[:80]!r}: got {len(groups)} values, expected N = {sizes.get('N')}")
        if self.name == "predict" and self.known.task is not None:
            reason = self.known.task.misfit(reply.fields, reply.tensors, self.known.asked)
            if reason:
                raise Misfit(reason)
            counts = reply.tensors.get("instances")
            if counts is not None and int(counts.sum()) != len(reply.tensors["attention"]):
                raise Misfit(
                    f"attention: got {len(reply.tensors['attention'])} numbers of {int(counts.sum())} instances"
                )


def _found(tensors: Shapes | Find, known: Known, asked: Message) -> Shapes:
    return tensors(known, asked) if callable(tensors) else tensors


def _exact(shapes: Shapes, sizes: Mapping[str, int]) -> Exact | None:
    """Type and shape of each tensor, and what its numbers must be, where that is all known; else None."""
    found = {}
    for name, shaped in shapes.items():
        shape = tuple(sizes.get(one, -1) if isinstance(one, str) else one for one in shaped.shape or (-1,))
        if len(shaped.types) != 1 or min(shape, default=0) < 0 or shaped.group or "*" in name:
            return None
        found[name] = (next(iter(shaped.types)), shape, shaped)
    return found


def _is_exact(exact: Exact | None, tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are as they must be: the quick way, for what thousands of sites send in every round."""
    if exact is None or len(exact) != len(tensors):
        return False
    for name, tensor in tensors.items():
        expected = exact.get(name)
        if expected is None or tensor.dtype is not expected[0] or tensor.shape != expected[1]:
            return False
        if (expected[2].finite and not finite(tensor)) or not expected[2].reaches(tensor):
            return False
    return True


def _read(kind: type[Body], fields: Mapping[str, Any]) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        text = _told(first)
        raise (NotFinite if first["type"] == "finite_number" else Misfit)(text) from None


def _told(error: ErrorDetails) -> str:
    """What was got and expected in a field. Texts are not quoted: they may be a person's."""
    place = ".".join(str(step)[:80] for step in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{place}: got a field that is not known here"
    if error["type"] == "missing":
        return f"{place}: it is missing"
    given = error["input"]
    got = repr(given) if given is None or isinstance(given, bool | float) else type(given).__name__
    if type(given) is int:
        got = str(given) if abs(given) < 10**20 else "a larger number"
    return f"{place}: got {got}; {error['msg'][:1].lower()}{error['msg'][1:200]}"


def _check_tensors(shapes: Shapes, tensors: Mapping[str, Tensor], sizes: Sizes, known: Known) -> None:
    most = max(4 * known.sizes.get("P", 0), 2**20) if known.sizes else MOST_NUMBERS
    patterns = [name[:-1] for name in shapes if name.endswith("*")]
    groups = set[str]()
    for name, tensor in tensors.items():
        shaped = shapes.get(name)
        if shaped is None:
            pattern = next((one for one in patterns if name.startswith(one) and _is_number(name[len(one) :])), None)
            if pattern is None:
                raise Misfit(f"{name[:80]!r}: got a tensor that is not known here")
            shaped = shapes[f"{pattern}*"]
        groups.add(shaped.group)
        try:
            shaped.check(tensor, sizes, most)
        except Misfit as misfit:
            raise type(misfit)(f"{name}: {misfit}") from None
    for name, shaped in shapes.items():
        if name not in tensors and not name.endswith("*") and (not shaped.group or shaped.group in groups):
            raise Misfit(f"{name}: it is missing")


def _is_number(text: str) -> bool:
    return text == "" or (len(text) <= 9 and text.isascii() and text.isdigit())
