"""A site: answers messages about data that only it sees."""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from polyclinic.client.train import train
from polyclinic.communication.message import Message
from polyclinic.data.cases import SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.opening.source import Source
from polyclinic.data.opening.subgroups import Subgroup
from polyclinic.data.part_counts import part_classes, part_groups, part_patients
from polyclinic.data.scaling import summarise
from polyclinic.data.splits import Parts
from polyclinic.errors import DataError, PolyclinicError, SiteError, TrainingError
from polyclinic.files import write_atomic, write_error
from polyclinic.limits import Body, Nothing
from polyclinic.models import build_model
from polyclinic.models.variant import Apart
from polyclinic.origins import of_error
from polyclinic.privacy.draws import RepeatableDraws, SystemDraws
from polyclinic.secure import Signer
from polyclinic.seeds import generator
from polyclinic.site import evaluation, testing
from polyclinic.site.diary import DIARY, Diary
from polyclinic.site.kept import KeptRows, Trial
from polyclinic.site.messages import (
    Agree,
    Applied,
    AskGroups,
    AskSurvival,
    Checkpointed,
    Compare,
    During,
    Evaluate,
    Open,
    Predict,
    Prepare,
    Prepared,
    Question,
    Retain,
    Retained,
    Spends,
    Spread,
    Start,
    Started,
    Test,
    Tested,
    Train,
)
from polyclinic.site.messages import Spending as Spent
from polyclinic.site.model_part import PART, ModelPart
from polyclinic.site.preparing import Harmonised, Preparing
from polyclinic.site.rehearsal import try_out
from polyclinic.site.round import Round
from polyclinic.site.run import Run
from polyclinic.site.schema import Answers, Known, function_of, predicted, read_asked
from polyclinic.site.sent_models import SentModels, other_size
from polyclinic.site.spending import LEDGER, Spending
from polyclinic.site.sums import BOXES, PHASES, PREPARING, TRAINING, SiteSums
from polyclinic.state import FlatModule
from polyclinic.statistics.rows import attention_rows, opened, prediction_rows
from polyclinic.tasks.base import Asked

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]
#: Answers a message with a body of its own kind.
Answer = Callable[[Any, Tensors], Message]


class Workspace:
    """What all sites of one process share: the device and one network of each kind, for as long as a site has it.

    Sites keep vectors, not networks, so memory does not grow with their number.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._models: WeakValueDictionary[str, FlatModule] = WeakValueDictionary()

    def model(self, named: tuple[str, dict[str, Any]], shape: tuple[int, ...], outputs: int) -> FlatModule:
        """The network of a name with options."""
        key = repr((named, shape, outputs, self.device))
        found = self._models.get(key)
        if found is None:
            name, options = named
            found = self._models[key] = build_model(name, options, shape, outputs, device=self.device)
        return found


class Site:
    """One site's data and state behind a message interface.

    Args:
        data: the site's cases; or its name, where it opens them when it is asked to.
        workspace: the process's device and networks.
        folder: the site's own folder for checkpoints, pseudonyms and its log; None keeps nothing on disk.
        source: where its data are; None where it has its cases already.

    Attributes:
        refused: what no message may ask for: what belongs to simulated attacks, see
            `polyclinic.site.corruptible.CorruptibleSite`.
        identity: signs for the site; None where it has no certificate.
        diary: what it must not forget.
        spending: what trainings cost the privacy of its patients.
        floor: of fewer patients' predictions the site says only how many they are, even if a message asks for less.
        public: the public set, prepared as the cases are; None without one.
    """

    refused: ClassVar[frozenset[str]] = frozenset({"corrupt", "mark"})
    floor = 0
    identity: Signer | None = None
    public: Dataset | None = None

    def __init__(
        self, data: SiteData | str, workspace: Workspace, folder: Path | None = None, source: Source | None = None
    ) -> None:  # fmt: skip
        self.workspace, self.source = workspace, source
        self._draws: int | None = None
        self._totals = dict[Trial, bytes]()
        self._preparing: Preparing | None = None
        self.name = data if isinstance(data, str) else data.site
        self.sums = SiteSums(self.name)
        self.settle(folder)
        if not isinstance(data, str):
            self._take(data)
        self._functions: dict[str, Answer] = {
            "open": self._open, "agree": self._agree, "prepare": self._prepare, "share": self._share,
            "apply": self._apply, "describe": self._describe, "start": self._start, "try": self._try,
            "train": self._train, "evaluate": self._evaluate, "predict": self._predict, "threshold": self._threshold,
            "sums": self._sums, "overlays": self._overlays, "keep": self._keep, "model": self._model,
            "save": self._save, "restore": self._restore, "test": self._test, "compare": self._compare,
            "spread": self._spread, "spent": self._spent, "groups": self._groups, "survival": self._survival,
            "retain": self._retain,
            **{phase: partial(self._sum, phase) for phase in PHASES},
        }  # fmt: skip

    def settle(self, folder: Path | None) -> None:
        """Decide where the site keeps what is its own; None keeps it in memory."""
        self.folder = folder
        self.spending = Spending(self.name, None if folder is None else folder / LEDGER)
        self.diary = Diary(self.name, None if folder is None else folder / DIARY)
        self.kept = KeptRows(self.name, None if folder is None else folder / "predictions")

    def handle(self, function: str, request: Message) -> Message:
        """Answer a message.

        Raises:
            PolyclinicError: with a message that names no patient, path or value; the site's log has everything.
        """
        try:
            known = self._known(function)
            request, boxes = self._without_boxes(function, request)
            asked = self.read(function, request)
            part, question, verb = function.partition("/")
            answer: Answer = partial(self._answer, part, verb) if question else self._functions[function]
            reply = answer(asked, request.tensors)
            reply = self.leaving(function, request, reply, self.run.known if function == "start" else known)
            return reply if boxes is None else self._masked(function, request, reply, boxes)
        except Exception as error:
            raise self.failure(function, error) from error

    def _known(self, function: str) -> Known:
        """What is known of the messages of a function.

        Raises:
            SiteError: P401, they belong to a training, and none was started.
        """
        if function in ("open", "agree"):
            return Known()
        if function in ("prepare", "share", "apply", "describe"):
            if not hasattr(self, "data"):
                text = f"Site {self.name} was asked to {function!r} before its data were opened."
                raise SiteError("P401", text, "Ask to 'open' and 'agree' first.", site=self.name)
            preparing = self._preparing
            return Known() if preparing is None else Known(step=preparing.waiting, hides=preparing.hides)
        if function in ("start", "compare", "spread", "groups", "survival", *PHASES):
            return Known()
        function_of(function)
        if not hasattr(self, "run"):
            text = f"Site {self.name} was asked to {function[:80]!r} before a training was started."
            raise SiteError("P401", text, "Ask for 'start' first.", site=self.name)
        return self.run.known.at(self.name, function)

    def _without_boxes(self, function: str, request: Message) -> tuple[Message, Tensor | None]:
        """A question as it is, and what it came with where its answer is to be summed.

        Raises:
            SiteError: P404, the answer would tell what the study hides.
        """
        boxes = request.tensors.get(BOXES)
        if boxes is None and self._hides(function):
            text = f"Site {self.name} was asked to {function!r}, and in this study it says that in sums alone."
            raise SiteError("P404", text, "Let all sites and the server run the same version of Polyclinic.",
                            site=self.name)  # fmt: skip
        if boxes is None or function not in PREPARING | TRAINING:
            return request, None
        return Message(request.fields, {name: one for name, one in request.tensors.items() if name != BOXES}), boxes

    def _hides(self, function: str) -> bool:
        if function in PREPARING | {"describe"}:
            return self._preparing is not None and self._preparing.hides
        return function in TRAINING and hasattr(self, "run") and self.run.declared.hides

    def _masked(self, function: str, request: Message, reply: Message, boxes: Tensor) -> Message:
        """An answer that is to be summed, under masks.

        A preparation, and what follows a training, are summed with the same sites, whatever centre or model is sent: a
        little change of these would leave the numbers as they are. Validation of one model is, too.
        """
        about = self._prepared.asked if function in PREPARING else self.run.declared.run
        model = [request.tensors["state"].numpy().tobytes()] if function == "evaluate" else []
        return self.sums.mask(function, reply, boxes, [about.encode(), *model])

    def _sum(self, phase: str, asked: Nothing, tensors: Tensors) -> Message:
        """The site's part in a sum, before and after what is summed."""
        return self.sums.answer(phase, tensors["told"], self.identity, self.diary)

    def leaving(self, function: str, request: Message, reply: Message, known: Known) -> Message:
        """An answer, as it may leave the site: nothing is in it that the schema of the function does not know.

        Raises:
            SiteError: P401, something is.
        """
        error = Answers(function, known).check(self.name, request, reply)
        if error is not None:
            raise error
        return reply

    def read(self, function: str, request: Message) -> Body:
        """The fields of a message, checked; what an earlier exchange left at the site is kept or forgotten.

        Raises:
            SiteError: P401, the message is not as it should be, or only a site of a simulated attack obeys it.
        """
        self._check(request)
        asked = read_asked(function, request, self._known(function), self.name)
        if isinstance(asked, During):
            self.run.settle(asked.counted)
        return asked

    def _answer(self, part: str, verb: str, asked: Question, tensors: Tensors) -> Message:
        """A part's own question, which its end here answers."""
        if part not in self.run.ends:
            raise SiteError(
                "P401", f"Site {self.name} was asked something by a part {part[:80]!r}, which is not in this training.",
                "Let all sites and the server run the same version of Polyclinic.", site=self.name,
            )  # fmt: skip
        return Message({}, self.run.answer(part, verb, asked, tensors))

    def _check(self, request: Message) -> None:
        asked = sorted(self.refused & request.fields.keys())
        if asked:
            raise SiteError(
                "P401", f"Site {self.name} was asked for {asked[0]!r}, which only sites of a simulated attack obey.",
                "Leave `attack` out of the study file.", site=self.name,
            )  # fmt: skip

    def failure(self, function: str, error: Exception) -> PolyclinicError:
        """``error`` as it may leave the site."""
        if isinstance(error, PolyclinicError):
            return error
        self._log(f"{function} failed:\n" + "".join(traceback.format_exception(error)))
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error):
            return TrainingError(
                "P303",
                f"Site {self.name} ran out of memory during {function!r}.",
                "Lower `training: {batch_size: ...}`, use a smaller network or smaller images.",
            )
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name} line {frame.lineno}"
        plugin = of_error(error)
        mend = " It is not Polyclinic itself: whoever makes that package can mend it." if plugin else ""
        return SiteError(
            "P401",
            f"Site {self.name} failed during {function!r}: {type(error).__name__} in {where}"
            f"{', ' + plugin[0].lower() + plugin[1:] if plugin else ''}.",
            f"The full account is in the site's own log (site.log).{mend}",
            site=self.name,
        )

    # Data ---------------------------------------------------------------------------------------------------------

    def _open(self, ask: Open, tensors: Tensors) -> Message:
        """Read the site's rows, and say what is there."""
        if self.source is None:
            text = f"Site {self.name} was asked to 'open', and was not told where its data are."
            raise SiteError("P401", text, "Say where they are when the site is started.", site=self.name)
        groups = [Subgroup.of(entry) for entry in ask.subgroups]
        self._holder = self.source.holder(ask.data, ask.target, ask.split, groups, ask.until)
        if self.name not in self._holder.sites:
            raise DataError("P203", f"The table has no row of the site {self.name!r}.",
                            "Compare the name of the site with the column `site`.")  # fmt: skip
        return Message(self._holder.census(self.name, plan=ask.plan, floor=self.source.floor).fields())

    def _agree(self, ask: Agree, tensors: Tensors) -> Message:
        """Open the site's cases as all sites agreed, and say what became of them."""
        if not hasattr(self, "_holder"):
            text = f"Site {self.name} was asked to 'agree' before its rows were read."
            raise SiteError("P401", text, "Ask to 'open' first.", site=self.name)
        data = self._holder.open(self.name, ask.agreement)
        if data is not None:
            self._take(data)
        return Message(self._holder.facts(self.name, notes=ask.notes, usual=ask.usual).fields())

    def _take(self, data: SiteData) -> None:
        self.name, self.data, self.pseudonyms = data.site, data, _pseudonyms(data)
        self._named = False
        self.harmonised = Harmonised(data)

    def _prepare(self, ask: Prepare, tensors: Tensors) -> Message:
        """Split for one fold, and go along the chain of preparation up to the first step that needs all sites."""
        self._preparing = Preparing(self.data, ask)
        self.parts, self.fold = self._preparing.parts, ask.fold
        self._take_prepared()
        found: Tensors = {}
        labels = self.data.labels
        if labels is not None and labels.is_floating_point():
            summary = summarise(labels[:, None], self.parts.train).to_tensors()
            found = {f"target_{name}": value for name, value in summary.items()}
        parts = self.parts
        classes = part_classes(self.data, parts, ask.classes)
        answer = Prepared(
            train=len(parts.train), validation=len(parts.validation), test=len(parts.test), classes=classes[0],
            note=parts.note, unlabelled=len(parts.unlabelled),
            hidden=len(parts.hidden), patients=part_patients(self.data, parts),
            validation_classes=classes[1], test_classes=classes[2], groups=part_groups(self.data, parts),
        )  # fmt: skip
        return Message(answer.fields(), found)

    @property
    def _prepared(self) -> Preparing:
        """The preparation of the fold.

        Raises:
            SiteError: P401, nothing was prepared.
        """
        if self._preparing is None:
            text = f"Site {self.name} was asked about its prepared cases, and has prepared none."
            raise SiteError("P401", text, "Ask for 'prepare' first.", site=self.name)
        return self._preparing

    def _take_prepared(self) -> None:
        """At the end of the chain the cases are ready."""
        done = self._prepared
        if done.waiting is None:
            self.dataset, self.public = done.dataset(), done.public()
            self.harmonised.remember(done.prepared.data.inputs, self.parts.test)

    def _share(self, ask: Nothing, tensors: Tensors) -> Message:
        """Summaries of the training cases for the step of the chain that comes next."""
        return Message({}, self._waiting("share").share(tensors))

    def _apply(self, ask: Nothing, tensors: Tensors) -> Message:
        """Apply the next step with what all sites' summaries gave, and go on."""
        preparing = self._waiting("apply")
        preparing.apply(tensors)
        self._take_prepared()
        return Message(Applied(notes=list(preparing.prepared.notes)).fields())

    def _waiting(self, function: str) -> Preparing:
        """The preparation, with a step that waits for all sites.

        Raises:
            SiteError: P401, none does.
        """
        if self._preparing is not None and self._preparing.waiting:
            return self._preparing
        text = f"Site {self.name} was asked to {function!r}, and no step of its preparation waits for other sites."
        raise SiteError("P401", text, "Ask for 'prepare' first, with such a step.", site=self.name)

    def _describe(self, ask: Nothing, tensors: Tensors) -> Message:
        """Summaries of features before and after harmonisation, or sketches of them over the grids that are sent."""
        if not self.harmonised.any:
            raise SiteError("P401", f"Site {self.name} was asked to 'describe', and nothing was harmonised.",
                            "Ask for 'prepare' first, with ComBat.", site=self.name)  # fmt: skip
        return Message({}, self.harmonised.described(tensors))

    def adopt(self, dataset: Dataset, parts: Parts, fold: int) -> None:
        """Take over prepared cases (the pool of several sites, inside one process only)."""
        self.dataset, self.parts, self.fold = dataset, parts, fold

    def cases(self, asked: Start) -> tuple[Dataset, Parts]:
        """The site's prepared cases, for a training."""
        return self.dataset, self.parts

    # Training -----------------------------------------------------------------------------------------------------

    def _start(self, asked: Start, tensors: Tensors) -> Message:
        task = evaluation.task_of(asked)
        model = self.workspace.model(asked.model, self.dataset.training_shape, task.outputs)
        size = len(tensors["initial"])
        if size != model.layout.size:
            raise other_size(self.name, size, model.layout.size)
        apart = None
        if asked.own is not None:
            own = self.workspace.model(asked.own, self.dataset.training_shape, task.outputs)
            if "own" not in tensors or len(tensors["own"]) != own.layout.size:
                raise other_size(self.name, len(tensors.get("own", ())), own.layout.size)
            apart = Apart(own, tensors["own"], model)
        dataset, parts = self.cases(asked)
        self.run = Run(
            self.name, asked, tensors["initial"], model, task, dataset, parts, evaluation.measure, self.spending,
            self.identity, self.diary, self.public, apart,
        )  # fmt: skip
        if not self._named:
            self.write_pseudonyms()
        self._log(f"start {asked.run}: shares {_shared(asked)}")
        sizes = Started(train=len(parts.train), validation=len(parts.validation), steps=self.run.steps_in_all)
        return Message(sizes.fields(), self.run.announced)

    def _try(self, asked: Nothing, tensors: Tensors) -> Message:
        """Train on a batch and look at validation cases, and forget it."""
        run = copy(self.run)
        run.dataset = self.dataset  # parts have not been told yet how they are to change images
        try_out(run, tensors["state"])
        return Message()

    def _train(self, asked: Train, tensors: Tensors) -> Message:
        started = time.perf_counter()
        work = Round(self.run, asked, tensors)
        for phase in range(work.phases):
            work.took(train(self.run.network, self.run.task, work.work(phase), work.job(phase)))
        return work.finish(time.perf_counter() - started)

    def begin_training(self, request: Message) -> Round:
        """First part of ``train``, for an engine that trains several sites together; `Round.finish` is the last."""
        asked = self.read("train", request)
        if not isinstance(asked, Train):
            raise TypeError("not a message to train")
        return Round(self.run, asked, request.tensors)

    def _spent(self, asked: During, tensors: Tensors) -> Message:
        """What this training, and all of them, have cost the patients' privacy."""
        training, lifetime = (
            [Spent.model_validate(event.to_json()) for event in events]
            for events in (self.spending.of(self.run.declared.run), self.spending.total())
        )
        source = (SystemDraws if self.spending.real else RepeatableDraws).source
        patients = part_patients(self.data, self.parts)[0] if hasattr(self, "data") else 0
        said = Spends(training=training, lifetime=lifetime, patients=patients, source=source)
        return Message(said.fields())

    def _retain(self, asked: Retain, tensors: Tensors) -> Message:
        """Keep what belongs to this site of the model that the training made."""
        weights = self.run.own_weights(tensors["state"]) if "state" in tensors else {}
        prepared, depth = self._prepared.prepared, self.data.depth
        if self.folder is not None and (weights or prepared.own or depth is not None):
            ModelPart(self.name, asked.model, weights, prepared.fitted, depth).write(self.folder / PART)
        self._log(f"retain model {asked.model}: {len(weights)} tensors of its own")
        return Message(Retained(weights=list(weights), prepares=prepared.own, white=depth is not None).fields())

    def _keep(self, asked: During, tensors: Tensors) -> Message:
        self.run.keep()
        return Message()

    def _model(self, asked: During, tensors: Tensors) -> Message:
        """The shared model of the best round with what the site does not share ``[P]``; personal models stay here."""
        return Message({}, {"model": self.run.shared_model(tensors["state"], best=True)})

    # Evaluation ---------------------------------------------------------------------------------------------------

    def _models(self, tensors: Tensors, run: Run | None = None) -> SentModels:
        """The models that a message has, for a run."""
        return SentModels(run or self.run, tensors, self.workspace.model)

    def _evaluate(self, asked: Evaluate, tensors: Tensors) -> Message:
        vectors = self._models(tensors).predictors(self.run.parts.validation, best=False)
        return Message(evaluation.score(self.run, vectors, self.run.parts.validation, asked.metric).fields())

    def _threshold(self, asked: During, tensors: Tensors) -> Message:
        index = self.run.parts.validation
        counts = evaluation.threshold_evidence(self.run, self._models(tensors).predictors(index), index)
        return Message({}, {"counts": counts})

    def _sums(self, asked: During, tensors: Tensors) -> Message:
        """What predictions need besides the model; nothing where that is all they need."""
        if not self.run.task.needs_sums:
            return Message()
        return Message({}, {"sums": evaluation.sums(self.run, self._models(tensors).networks(), self.run.parts.train)})

    def tested(self, asked: Predict) -> Run:
        """The run whose test cases are predicted."""
        return self.run

    def _predict(self, asked: Predict, tensors: Tensors) -> Message:
        index, run = self.parts.test, self.tested(asked)
        networks = self._models(tensors, run).predictors(index)
        fields, found = evaluation.predict(run, networks, index, asked.threshold, asked.completion)
        if asked.mark is None:
            found |= evaluation.attention(run, networks, index)
        names, groups = self._names(index)
        answer = predicted(type(run.task))(
            subject=[n[0] for n in names], case=[n[1] for n in names], groups=groups, **fields
        )  # fmt: skip
        return Message(answer.fields(), found)

    def _names(self, index: Tensor) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
        """Pseudonyms of patient and case, and the group of each case by each subgroup."""
        places = index.tolist()
        groups = {name: [own[place] for place in places] for name, own in (self.data.groups or {}).items()}
        return [self.pseudonyms[place] for place in places], groups

    def _test(self, asked: Test, tensors: Tensors) -> Message:
        """Predict the test cases and keep the predictions; what is answered is of no single case."""
        index, run = self.parts.test, self.tested(asked)
        networks = self._models(tensors, run).predictors(index)
        sent = evaluation.predict(run, networks, index, asked.threshold, asked.completion)
        if asked.mark is not None:
            cases, found = opened(run.task, sent[1], asked.threshold, asked.mark["target"])
            return Message(Tested(cases=cases, patients=0, opened=found).fields())
        names, groups = self._names(index)
        about: dict[str, str | int] = {
            "method": asked.method, "run": asked.kind, "seed": run.declared.seed, "fold": run.declared.fold,
            "site": self.name,
        }  # fmt: skip
        rows = prediction_rows(
            run.task,
            [n[0] for n in names],
            [n[1] for n in names],
            sent,
            asked.threshold,
            about,
            asked.trained_on,
            groups,
        )
        trial = Trial(run.declared.run, asked.method, asked.trained_on)
        self.kept.put(trial, rows)
        weighed = evaluation.attention(run, networks, index)
        if weighed:
            named = [n[0] for n in names], [n[1] for n in names]
            self.kept.put_attention(trial, attention_rows(*named, weighed, about, asked.trained_on))
        metrics = run.declared.metrics
        wanted = Asked(metrics.names, metrics.classes, metrics.tolerance, space=metrics.space)
        said, numbers = testing.tested(rows, run.task, wanted, max(asked.floor, self.floor))
        self._log(f"test {asked.method} in {run.declared.run}: {said.cases} cases{', withheld' * said.withheld}")
        return Message(said.fields(), numbers)

    def _compare(self, asked: Compare, tensors: Tensors) -> Message:
        """What the predictions kept here say of several methods."""
        self._check_draws(asked.bootstrap)
        said, numbers = testing.compared(self.kept, asked, max(asked.floor, self.floor))
        self._log(f"compare {len(asked.trials)} models by {', '.join(asked.metrics)}: {said.patients} patients")
        return Message(said.fields(), numbers)

    def _check_draws(self, bootstrap: int) -> None:
        """Raises P401 for other numbers of draws than before: what is more in a draw more would be told of patients."""
        if self._draws not in (None, bootstrap):
            text = f"Site {self.name} was asked for {bootstrap} draws of a bootstrap, after {self._draws} before."
            raise SiteError("P401", text, "Ask for the same number of draws.", site=self.name)
        self._draws = bootstrap

    def _groups(self, asked: AskGroups, tensors: Tensors) -> Message:
        """What the predictions kept here say of groups of patients."""
        self._check_draws(asked.bootstrap)
        said, numbers = testing.groups(self.kept, asked, max(asked.floor, self.floor))
        self._log(f"groups in {len(asked.trials)} models: {said.patients} patients, {len(said.withheld)} withheld")
        return Message(said.fields(), numbers)

    def _survival(self, asked: AskSurvival, tensors: Tensors) -> Message:
        """How long the test cases kept here live."""
        said, numbers = testing.survival(self.kept, asked, max(asked.floor, self.floor))
        self._log(f"survival by {len(asked.trials)} models: {said.patients} patients")
        return Message(said.fields(), numbers)

    def _spread(self, asked: Spread, tensors: Tensors) -> Message:
        """How far patients lie apart in what they contribute to metrics over all sites' cases."""
        said, numbers = testing.spread(self.kept, asked, tensors, max(asked.floor, self.floor), self._totals)
        return Message(said.fields(), numbers)

    def _overlays(self, asked: Predict, tensors: Tensors) -> Message:
        index = self.parts.test
        networks = self._models(tensors).predictors(index)
        shown, found = evaluation.overlays(self.run, networks, index, asked.threshold)
        return Message(shown.fields(), found)

    # Its own folder -----------------------------------------------------------------------------------------------

    def _save(self, asked: Checkpointed, tensors: Tensors) -> Message:
        """Write what the site must remember of this round; the round before is kept as well."""
        if self.folder is None or not self.run.keeps_memory:
            return Message()
        done = asked.round
        write_atomic(self._checkpoint(done), Message({}, self.run.memory()).to_pieces(), durable=False)
        self._checkpoint(done - 2).unlink(missing_ok=True)
        return Message()

    def _restore(self, asked: Checkpointed, tensors: Tensors) -> Message:
        if self.folder is None or not self.run.keeps_memory:
            return Message()
        path = self._checkpoint(asked.round)
        if not path.is_file():
            raise SiteError(
                "P401", f"Site {self.name} has no checkpoint of round {asked.round}.",
                "Run the study without --resume, in a new folder.", site=self.name,
            )  # fmt: skip
        self.run.restore(Message.from_bytes(path.read_bytes()).tensors)
        return Message()

    def _checkpoint(self, done: int) -> Path:
        return (self.folder or Path()) / f"{self.run.declared.run}.round{done}.safetensors"

    def write_pseudonyms(self) -> None:
        """The site's own list of who is who, which stays in its folder."""
        self._named = True
        if self.folder is not None:
            rows = zip(self.pseudonyms, self.data.subjects, self.data.cases, strict=True)
            lines = [",".join(map(_quoted, (p[0], p[1], subject, case))) for p, subject, case in rows]
            path, content = self.folder / "subjects.csv", "\n".join(["pseudonym,case,subject,source", *lines]) + "\n"
            if not path.is_file() or path.read_bytes() != content.encode():  # a resumed study has it
                write_atomic(path, content)

    def _log(self, text: str) -> None:
        if self.folder is None:
            log.info("%s: %s", self.name, text)
            return
        path = self.folder / "site.log"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(text.rstrip() + "\n")
        except OSError as error:
            raise write_error(path, error) from error


def _shared(asked: Start) -> str:
    """What of the model is shared in a training, in words."""
    words = [", ".join(asked.share) or "nothing"]
    words += [f"of {', '.join(asked.modules)}"] if asked.modules else []
    return " ".join([*words, *([f"but not of {', '.join(asked.without)}"] if asked.without else [])])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n\r]', text) else text


def _pseudonyms(data: SiteData) -> list[tuple[str, str]]:
    """Patient and case names that say nothing: numbers in an order drawn from the site's name.

    Patients without a labelled case come last, so that the others have the names that they have without them.
    """
    number: dict[str, int] = {}
    for people, further in ((data.with_labels().subjects, []), (data.subjects, ["unlabelled"])):
        subjects = sorted(set(people) - set(number))
        order = torch.randperm(len(subjects), generator=generator("pseudonyms", data.site, *further)).tolist()
        number |= {subject: len(number) + 1 + place for subject, place in zip(subjects, order, strict=True)}
    seen: dict[str, int] = {}
    names = []
    for subject in data.subjects:
        seen[subject] = seen.get(subject, 0) + 1
        name = f"P{number[subject]:05d}"
        names.append((name, f"{name}-{seen[subject]}"))
    return names
