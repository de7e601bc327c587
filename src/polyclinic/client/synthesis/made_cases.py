"""Made cases: what all procedures share in which a generator learns first, and then the model from what it makes."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.synthesis.adversaries import grouped, in_group
from polyclinic.client.synthesis.generator import Maker, Wanted, frequent, kinds_of, network_for
from polyclinic.client.synthesis.generator import wanted as wanted_of
from polyclinic.client.synthesis.memorisation import TOLD, Copied
from polyclinic.client.synthesis.site_end import SAME
from polyclinic.client.work import NOT_FINITE
from polyclinic.errors import PolyclinicError, SiteError, StudyError, TrainingError
from polyclinic.models.generative import Generator, MaskGenerator
from polyclinic.parts import Answered, Made, Memory, Procedure, Stage
from polyclinic.randomness import own_randomness
from polyclinic.shapes import Shaped, finite
from polyclinic.state import FlatModule

#: Dimensions of an image that is no volume.
_FLAT = 3
#: What all of them reveal.
REVEALS: Mapping[str, str] = {
    "images": "what the generator makes: it may have learned to repeat a site's cases, and every site is sent it",
    "labels": "classes that the server drew for made cases, or which of the site's masks; nothing of a patient",
    "cases": "how many training cases of each class the site has",
    "masks": "masks of patients of the site, as they were outlined, pixel by pixel, so many as the study says: the "
             "shape and place of a structure may tell who it is and how ill, and who has the image can find it there",
    "aside": "the same, of patients from whose masks and images the generator does not learn",
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

    With ``for_sites`` the model is trained at the sites instead, as ever: each is given so many newly made cases in
    each round, of these classes or from its own masks, and trains on them beside its own. A batch of b of its n cases
    gets ⌈b · for_sites / n⌉ of them at random, so that each counts about as much as a case of the site (after the
    augmentation of Jeong et al., Communication-efficient on-device machine learning: federated distillation and
    augmentation under non-IID private data, arXiv 1811.11479, by its abstract).

    In segmentation images are made from masks in place of classes. Each site shares ``masks`` of its training cases
    with the server, once (see `polyclinic.client.synthesis.outlines`), and no other site is told of them.

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
        for_sites: made cases that each site is given in a round, to train on beside its own; None trains the model at
            the server on made cases alone, by ``network_steps``.
        masks: masks of training cases that each site gives to the server, at most; for segmentation, where it must be
            said, and for nothing else.
    """

    shares: ClassVar = ("all",)
    tasks: ClassVar = ("classification", "segmentation")
    no_bags: ClassVar = True

    def __init__(
        self, *, generator_rounds: Annotated[int, Field(ge=0)] = 20, steps: PositiveInt = 50,
        network_steps: PositiveInt = 50, batch_size: Annotated[int, Field(ge=2)] = 32, lr: PositiveFloat = 0.0002,
        latent: PositiveInt = 64, width: Annotated[int, Field(ge=4, multiple_of=4)] = 16,
        checked: PositiveInt = 100, balanced: bool = False, for_sites: PositiveInt | None = None,
        masks: PositiveInt | None = None,
    ) -> None:  # fmt: skip
        self.still_rounds, self.for_sites, self.trains = generator_rounds, for_sites, for_sites is not None
        self.steps, self.network_steps, self.batch_size, self.lr = steps, network_steps, batch_size, lr
        self.latent, self.width, self.checked, self.balanced = latent, width, checked, balanced
        self.masks, self.shares_masks = masks, masks or 0
        self._memory: Memory = {}
        self._maker: Maker | None = None

    @abstractmethod
    def started(self, generator: Generator | MaskGenerator, stage: Stage, memory: Memory) -> None:
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
        found = {"images": images, "labels": labels, "cases": cases, "loss": Shaped("float32", 1), **TOLD}
        for name in ("masks", "aside") if len(model.shape) == _FLAT else ():
            found[name] = Shaped("uint8", f"N {name}", 1, *model.shape[1:])
        return found

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """A round of the generator, or one of the model."""
        begun, states = time.monotonic(), [stage.state(site) for site in stage.sites]
        if any(state is not states[0] for state in states):
            raise StudyError("P104", f"{self.name} trains one model with all sites, and the topology has several.",
                             "Use `topology: star`.")  # fmt: skip
        asked, maker, still = Asked(stage), self._made_of(stage), stage.number < self.still_rounds
        self._told_of_cases(asked, maker)
        after, losses, sound, steps = states[0], dict[str, float](), True, self.steps
        if asked.going and still:
            losses = self.taught(asked, maker)
            sound = all(finite(tensor) for tensor in self.learned().values())
        elif asked.going:
            self._compared(asked, maker)
            if self.for_sites is not None:
                yield from self._trained_at_sites(asked, maker, self.for_sites)
                return
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
            shape, device = stage.network.shape, stage.network.vector.device
            if len(shape) not in (1, _FLAT):
                raise StudyError("P104", f"{self.name} makes rows of tables and flat images, and inputs are {shape}.",
                                 "Leave the method out, or take slices.")  # fmt: skip
            with own_randomness(stage.generator("generator").initial_seed()):
                module = network_for(stage.task, shape, latent=self.latent, width=self.width)
            self.started(module, stage, self._memory)
            told = (grouped(self._memory, name) for name in ("cases", "aside"))
            self._maker = Maker(module, device, *told)
        return self._maker

    def _told_of_cases(self, asked: Asked, maker: Maker) -> None:
        """Begin the round: sites tell how many cases of each class they have, or, once, masks."""
        if self.masks is None:
            maker.cases |= asked.cases(asked.stage.task.classes)
            return
        asked.ask("begin", {site: {} for site in asked.stage.sites})
        new = [site for site in asked.going if site not in maker.cases]
        for site, (masks, aside) in asked.masks(new, self.masks, kinds_of(asked.stage.task)).items():
            maker.cases[site], maker.aside[site] = masks, aside

    def _wanted(self, stage: Stage, maker: Maker) -> Wanted:
        """Of what the model learns, and how frequent that is."""
        found = maker.everyone(stage)
        return Wanted(found.values, frequent(found.shares > 0)) if self.balanced else found

    def _trained(self, stage: Stage, maker: Maker, state: Tensor) -> tuple[float, Tensor]:
        """The mean loss of steps of the model on made cases, and the model after them ``[P]``."""
        network, device, losses = stage.network, stage.network.vector.device, list[float]()
        asked, training = self._wanted(stage, maker), network.module.training
        network.load(state)
        network.module.train()
        optimizer = stage.optimizer(network.parameters_of(None, whole=True))
        try:
            for step in range(self.network_steps):
                numbers, places = maker.drawn(stage.generator("network", step), self.batch_size, asked)
                targets = asked.values[places]
                inputs = maker.inputs(numbers, targets)
                with own_randomness(stage.generator("dropped", step).initial_seed(), device=device):
                    outputs = network.module(inputs)
                loss = stage.task.loss(outputs, targets.to(device)).mean()
                network.gradient.zero_()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        finally:
            network.module.train(training)
        return sum(losses) / len(losses), network.vector.to("cpu", copy=True)

    def _trained_at_sites(self, asked: Asked, maker: Maker, count: int) -> Iterator[Answered]:
        """What sites learn from their own cases and ``count`` that are made for each."""
        stage = asked.stage
        asked.ask("give", {site: self._made_for(site, stage, maker, count) for site in asked.going})
        yield from (Answered(site, why) for site, why in asked.failed.items())
        yield from stage.train({site: stage.state(site) for site in asked.going})

    def _made_for(self, site: str, stage: Stage, maker: Maker, count: int) -> Memory:
        """Made cases with their classes, or with places of the site's own masks, since no other site is to see them."""
        masks = None if self.masks is None else maker.shared(site)
        wanted = self._wanted(stage, maker) if masks is None else wanted_of(masks)
        numbers, places = maker.drawn(stage.generator("given", site), count, wanted)
        return {"images": maker.inputs(numbers, wanted.values[places]).float().cpu(), "labels": places}

    def _compared(self, asked: Asked, maker: Maker) -> None:
        """Let sites that have not yet done so compare made inputs with their cases. One that fails is left out of the
        round, and asked again in the next one."""
        new = [site for site in asked.going if f"told/{site}/counts" not in self._memory]
        sent = {site: self._checked_at(site, asked.stage, maker) for site in new}
        for site, found in asked.ask("check", sent).items():
            if _fits(found, len(sent[site]["images"])):
                self._memory |= {f"told/{site}/{name}": found[name] for name in TOLD}
            else:
                asked.failed[site] = SiteError("P401", f"Site {site} answered with counts that can't be.", SAME,
                                               site=site)  # fmt: skip

    def _checked_at(self, site: str, stage: Stage, maker: Maker) -> Memory:
        """What a site is asked to compare with its cases: the same at all sites or, made of masks, equally many of each
        of its own, since no other site is to see them."""
        if self.masks is None:
            if "made/images" not in self._memory:
                asked = self._wanted(stage, maker)
                numbers, labels = maker.drawn(stage.generator("checked"), self.checked, asked)
                images = maker.inputs(numbers, asked.values[labels]).cpu()
                self._memory |= {"made/images": images, "made/labels": labels}
            return grouped(self._memory, "made")
        masks = maker.shared(site)
        places = torch.arange(len(masks)).repeat(-(-self.checked // len(masks)))
        source = stage.generator("checked", site)
        images = maker.inputs(torch.randn(len(places), maker.generator.numbers, generator=source), masks[places]).cpu()
        shown = len(maker.cases[site])
        self._memory |= {f"made/{site}/images": images[:shown], f"made/{site}/labels": masks[:shown]}
        return {"images": images, "labels": places}

    def made(self) -> Made | None:
        """What sites were asked to compare with their cases, and what they told; of each mask one image."""
        memory = self.memory()
        made, told = (_by_site(grouped(memory, name)) for name in ("made", "told"))
        if not made:
            return None
        cases, aside = grouped(memory, "cases"), grouped(memory, "aside")
        masks = {site: len(cases[site]) + len(aside[site]) for site in sorted(aside)}
        images, labels = (torch.cat([one[name] for one in made.values()]) for name in ("images", "labels"))
        return Made(images, labels, told, masks)

    def memory(self) -> Memory:
        """The generator with what trains it, what sites have, and what they told."""
        if self._maker is None:
            return dict(self._memory)
        told = in_group("cases", self._maker.cases) | in_group("aside", self._maker.aside)
        return {**self._memory, **told, **self.learned()}

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

    def masks(self, sites: Sequence[str], most: int, classes: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Site -> its masks, those to learn from and those that are kept aside, of sites that are asked for them.

        Args:
            sites: who is asked.
            most: masks that a site may share.
            classes: of pixels.
        """
        found = dict[str, tuple[Tensor, Tensor]]()
        for site, answer in self.ask("masks", {site: {} for site in sites}).items():
            masks, aside = answer.get("masks"), answer.get("aside")
            if masks is None or aside is None or not len(masks):
                self.misfit(site, "no masks")
            elif len(masks) + len(aside) > most:
                self.misfit(site, f"{len(masks) + len(aside)} masks, and was asked for {most} at most")
            elif int(torch.cat([masks, aside]).max()) >= classes:
                self.misfit(site, f"masks with values beyond the {classes} classes of pixels")
            else:
                found[site] = masks, aside
        return found

    def misfit(self, site: str, what: str) -> None:
        """A site sent what can't be."""
        self.failed[site] = SiteError("P401", f"In a round with made cases site {site} sent {what}.", SAME, site=site)


def _by_site(memory: Memory) -> dict[str, Memory]:
    """``SITE/name`` by site and name, in the order of sites; what has no site is of all, under the name ""."""
    found = dict[str, Memory]()
    for key, tensor in sorted(memory.items()):
        site, _, name = key.rpartition("/")
        found.setdefault(site, {})[name] = tensor
    return found


def _fits(found: Memory, made: int) -> bool:
    """Whether what a site told of so many made inputs can be."""
    if not found.keys() >= TOLD.keys():
        return False
    one = Copied.of(found)
    return one.nearer <= one.made <= made and (1 <= one.held_nearer <= one.held if one.held else not one.nearer)
