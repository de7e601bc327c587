"""Made cases: what all procedures share in which a generator learns first, and then the model from what it makes."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.synthesis.adversaries import grouped, in_group
from polyclinic.client.synthesis.generator import AT_ONCE, Maker, frequent
from polyclinic.client.synthesis.memorisation import TOLD, Copied, reduced, told
from polyclinic.client.work import NOT_FINITE
from polyclinic.errors import PolyclinicError, SiteError, StudyError, TrainingError
from polyclinic.models.generative import Generator
from polyclinic.parts import Answered, Made, Memory, Procedure, SiteEnd, SiteView, Stage
from polyclinic.parts.site_end import PartOfCases
from polyclinic.randomness import own_randomness
from polyclinic.shapes import Shaped, finite
from polyclinic.state import FlatModule

#: What to do where an answer can't be.
SAME = "Let all sites and the server run the same version of Polyclinic."
#: What all of them reveal.
REVEALS: Mapping[str, str] = {
    "images": "what the generator makes: it may have learned to repeat a site's cases, and every site is sent it",
    "labels": "classes that the server drew for made cases; nothing of a patient",
    "cases": "how many training cases of each class the site has",
    "loss": "how well the site's discriminator tells its own cases from made ones: a mean over batches",
    "counts": "how many made cases are suspiciously near to the site's training cases; of none which",
    "nearness": "how near made cases and held-out ones are to training cases: medians, and the nearest of each; a "
                "server that sent a case that it knows in their place would learn whether it was trained on",
}  # fmt: skip


class MadeCases(Procedure):
    """In the first ``generator_rounds`` rounds a generator learns to make cases, and the model stays as it is. In each
    round after them the model makes ``network_steps`` steps at the server on newly made cases, of classes as frequent
    as they are at all sites together or, if ``balanced``, equally frequent, with the optimiser of the study. Sites
    validate and test it on their own cases.

    Once the generator is done, each site compares inputs that it made with its own cases, and tells counts (see
    `polyclinic.client.synthesis.memorisation`).

    Args:
        generator_rounds: in which the generator is trained, and the model is not; 0 leaves it as it was drawn.
        steps: of the generator in a round.
        network_steps: of the model in a round.
        batch_size: cases in a step, made and real ones of each site; and of the model.
        lr: of Adam for generator and discriminators.
        latent: random numbers that a case is made of.
        width: channels of the generator's last hidden layer and of the discriminator's first; others have more.
        checked: made inputs that sites compare with their cases.
        balanced: whether the model learns from equally many made cases of each class that any site has, and sites
            compare such.
    """

    trains = False
    shares: ClassVar = ("all",)
    tasks: ClassVar = ("classification",)
    no_bags: ClassVar = True

    def __init__(
        self, *, generator_rounds: Annotated[int, Field(ge=0)] = 20, steps: PositiveInt = 50,
        network_steps: PositiveInt = 50, batch_size: Annotated[int, Field(ge=2)] = 32, lr: PositiveFloat = 0.0002,
        latent: PositiveInt = 64, width: Annotated[int, Field(ge=4, multiple_of=4)] = 16,
        checked: PositiveInt = 100, balanced: bool = False,
    ) -> None:  # fmt: skip
        self.still_rounds = generator_rounds
        self.steps, self.network_steps, self.batch_size, self.lr = steps, network_steps, batch_size, lr
        self.latent, self.width, self.checked, self.balanced = latent, width, checked, balanced
        self._memory: Memory = {}
        self._maker: Maker | None = None

    @abstractmethod
    def started(self, generator: Generator, stage: Stage, memory: Memory) -> None:
        """Get ready to train a generator.

        Args:
            generator: as it was drawn.
            stage: of the first round, or of that with which a training goes on.
            memory: what ``learned`` gave where it goes on; else empty.
        """

    @abstractmethod
    def taught(self, asked: Asked, maker: Maker) -> dict[str, float]:
        """A round of the generator; site -> loss of its discriminator, of those that did not fail."""

    @abstractmethod
    def learned(self) -> Memory:
        """What is kept of the generator and of what trains it, for checkpoints."""

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of what is made for this network."""
        images = Shaped("float32", "N cases", *model.shape) if model.shape else Shaped("float32", None)
        labels, cases = Shaped("int64", "N cases", least=0), Shaped("int64", "C classes", least=0, most=10**9)
        return {"images": images, "labels": labels, "cases": cases, "loss": Shaped("float32", 1), **TOLD}

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """A round of the generator, or one of the model."""
        begun, states = time.monotonic(), [stage.state(site) for site in stage.sites]
        if any(state is not states[0] for state in states):
            raise StudyError("P104", f"{self.name} trains one model with all sites, and the topology has several.",
                             "Use `topology: star`.")  # fmt: skip
        asked, maker, still = Asked(stage), self._made_of(stage), stage.number < self.still_rounds
        maker.cases |= asked.cases(stage.task.classes)
        after, losses, sound, steps = states[0], dict[str, float](), True, self.steps
        if asked.going and still:
            losses = self.taught(asked, maker)
            sound = all(finite(tensor) for tensor in self.learned().values())
        elif asked.going:
            self._compared(asked, maker)
            loss, after = self._trained(stage, maker, states[0])
            losses, steps = dict.fromkeys(stage.sites, loss), self.network_steps
            sound = math.isfinite(loss) and finite(after)
        size, seconds = stage.network.layout.trainable, time.monotonic() - begun
        packed = {"change": after[:size] - states[0][:size], "statistics": after[size:].clone()}
        for site in stage.sites:
            if site in asked.failed:
                yield Answered(site, asked.failed[site])
            elif not sound:
                text = f"Training on made cases gave values that are not finite numbers (in a round with {site})."
                yield Answered(site, TrainingError("P301", text, NOT_FINITE))
            else:
                said = {"examples": steps * self.batch_size, "steps": steps, "loss": losses[site], "seconds": seconds}
                yield Answered(site, packed, said)

    def _made_of(self, stage: Stage) -> Maker:
        if self._maker is None:
            shape, classes, device = stage.network.shape, stage.task.classes, stage.network.vector.device
            if len(shape) not in (1, 3):
                raise StudyError("P104", f"{self.name} makes rows of tables and flat images, and inputs are {shape}.",
                                 "Leave the method out, or take slices.")  # fmt: skip
            with own_randomness(stage.generator("generator").initial_seed()):
                module = Generator(shape, classes, latent=self.latent, width=self.width)
            self.started(module, stage, self._memory)
            self._maker = Maker(module, self.latent, device, grouped(self._memory, "cases"))
        return self._maker

    def _classes(self, stage: Stage, maker: Maker) -> Tensor:
        """How frequent classes are among made cases ``[C]``."""
        found = maker.everyone(stage)
        return frequent(found > 0) if self.balanced else found

    def _trained(self, stage: Stage, maker: Maker, state: Tensor) -> tuple[float, Tensor]:
        """The mean loss of steps of the model on made cases, and the model after them ``[P]``."""
        network, device, losses = stage.network, stage.network.vector.device, list[float]()
        classes, training = self._classes(stage, maker), network.module.training
        network.load(state)
        network.module.train()
        optimizer = stage.optimizer(network.parameters_of(None, whole=True))
        try:
            for step in range(self.network_steps):
                numbers, labels = maker.drawn(stage.generator("network", step), self.batch_size, classes)
                inputs = maker.inputs(numbers, labels)
                with own_randomness(stage.generator("dropped", step).initial_seed(), device=device):
                    outputs = network.module(inputs)
                loss = stage.task.loss(outputs, labels.to(device)).mean()
                network.gradient.zero_()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        finally:
            network.module.train(training)
        return sum(losses) / len(losses), network.vector.to("cpu", copy=True)

    def _compared(self, asked: Asked, maker: Maker) -> None:
        """Let sites that have not yet done so compare made inputs with their cases. One that fails is left out of the
        round, and asked again in the next one."""
        if "made/images" not in self._memory:
            numbers, labels = maker.drawn(
                asked.stage.generator("checked"), self.checked, self._classes(asked.stage, maker)
            )
            self._memory |= {"made/images": maker.inputs(numbers, labels).cpu(), "made/labels": labels}
        images, labels = self._memory["made/images"], self._memory["made/labels"]
        new = [site for site in asked.going if f"told/{site}/counts" not in self._memory]
        for site, found in asked.ask("check", {site: {"images": images, "labels": labels} for site in new}).items():
            if _fits(found, len(images)):
                self._memory |= {f"told/{site}/{name}": found[name] for name in TOLD}
            else:
                asked.failed[site] = SiteError("P401", f"Site {site} answered with counts that can't be.", SAME,
                                               site=site)  # fmt: skip

    def made(self) -> Made | None:
        """What sites were asked to compare with their cases, and what they told."""
        if "made/images" not in self._memory:
            return None
        found: dict[str, Memory] = {}
        for key, tensor in grouped(self._memory, "told").items():
            site, _, name = key.rpartition("/")
            found.setdefault(site, {})[name] = tensor
        return Made(self._memory["made/images"], self._memory["made/labels"], found)

    def memory(self) -> Memory:
        """The generator with what trains it, what sites have, and what they told."""
        if self._maker is None:
            return dict(self._memory)
        return {**self._memory, **in_group("cases", self._maker.cases), **self.learned()}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._memory, self._maker = dict(memory), None


class Asked:
    """What sites answer in a round; one that fails is left out from then on.

    Attributes:
        stage: of the round.
        failed: site -> why.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.failed: dict[str, PolyclinicError] = {}

    @property
    def going(self) -> list[str]:
        """Sites that have not failed."""
        return [site for site in self.stage.sites if site not in self.failed]

    def ask(self, verb: str, sent: Mapping[str, Memory]) -> dict[str, Memory]:
        """Site -> its answer, of those that gave one."""
        answers = dict(self.stage.ask(verb, sent))
        self.failed |= {site: one for site, one in answers.items() if isinstance(one, PolyclinicError)}
        return {site: one for site, one in answers.items() if not isinstance(one, PolyclinicError)}

    def cases(self, classes: int) -> dict[str, Tensor]:
        """Begin the round: site -> training cases of each class ``[C]``."""
        found = dict[str, Tensor]()
        for site, answer in self.ask("begin", {site: {} for site in self.stage.sites}).items():
            cases = answer.get("cases")
            if cases is None or cases.shape != (classes,) or not int(cases.sum()):
                self.misfit(site, "no counts of its classes")
            else:
                found[site] = cases
        return found

    def misfit(self, site: str, what: str) -> None:
        """A site sent what can't be."""
        self.failed[site] = SiteError("P401", f"In a round with made cases site {site} sent {what}.", SAME, site=site)


class MadeCasesEnd(SiteEnd):
    """What the ends at a site share: they tell their classes and compare made cases with their own."""

    needs_labels = True
    spares_model = True

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round; ``check`` whether made cases are copies."""
        if verb == "begin":
            counts = view.class_counts
            return {"cases": torch.zeros(0, dtype=torch.int64) if counts is None else counts.long()}
        if verb == "check":
            return _compare(view, sent_cases(asked, view)[0])
        return super().answer(verb, asked, view)


def sent_cases(asked: Memory, view: SiteView) -> tuple[Tensor, Tensor]:
    """Made inputs ``[M, ...]`` and their classes ``[M]``, as a site was sent them.

    Raises:
        SiteError: P401, they don't fit the site's own.
    """
    images, labels = asked["images"], asked["labels"]
    fit = images.shape[1:] == view.input_shape and labels.shape == (len(images),) and len(images)
    if not fit or int(labels.max()) >= view.task.classes:
        text = f"Site {view.name} was sent made cases {list(images.shape)} with labels {list(labels.shape)}; its own "
        text += f"are {list(view.input_shape)}, of {view.task.classes} classes."
        raise SiteError("P401", text, SAME, site=view.name)
    return images, labels


def real_cases(view: SiteView, step: int, count: int) -> tuple[Tensor, Tensor]:
    """Some of the site's own cases for a step, ``count`` at most, and their classes, on the model's device."""
    order = torch.randperm(view.count(), generator=view.generator("real", step))
    inputs, classes = view.cases(order[:count])
    return inputs.to(view.model.vector.device), classes.to(view.model.vector.device)


def _fits(found: Memory, made: int) -> bool:
    """Whether what a site told can be."""
    if not found.keys() >= TOLD.keys():
        return False
    one = Copied.of(made, found)
    return one.nearer <= made and (1 <= one.held_nearer <= one.held if one.held else not one.nearer)


def _compare(view: SiteView, made: Tensor) -> Memory:
    """Of each patient held out one case is compared: others of the same patient are nearer than others are."""
    people, first = view.people("validation").tolist(), dict[int, int]()
    for place, person in enumerate(people):
        first.setdefault(person, place)
    held = _rows(view, torch.tensor(list(first.values()), dtype=torch.int64), "validation")
    return told(reduced(made), _rows(view, torch.arange(view.count()), "train"), held)


def _rows(view: SiteView, index: Tensor, part: PartOfCases) -> Tensor:
    """Some of the site's own cases as they are compared, a few at a time."""
    return torch.cat([reduced(view.cases(some, part)[0]) for some in index.split(AT_ONCE)])
