"""Made cases: a generator at the server learns from discriminators at the sites, and the model from what it makes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as nnf
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from polyclinic.client.optimizers import restore_state, state_of
from polyclinic.client.synthesis.generator import AT_ONCE, BETAS, Maker
from polyclinic.client.synthesis.memorisation import TOLD, Copied, reduced, told
from polyclinic.client.work import NOT_FINITE
from polyclinic.errors import PolyclinicError, SiteError, StudyError, TrainingError
from polyclinic.models.generative import Discriminator
from polyclinic.parts import PROCEDURES, Answered, Made, Memory, Procedure, SiteEnd, SiteView, Stage
from polyclinic.parts.site_end import PartOfCases
from polyclinic.randomness import own_randomness
from polyclinic.shapes import Shaped, finite
from polyclinic.state import FlatModule

_SAME = "Let all sites and the server run the same version of Polyclinic."


@PROCEDURES.add("synthetic_cases")
class SyntheticCases(Procedure):
    """AsynDGAN: a generator at the server learns to make cases that the sites' discriminators take for real; then the
    model is trained at the server on made cases alone.

    In the first ``generator_rounds`` rounds the model stays as it is. In each of their steps the server makes a batch
    of inputs for each site, of classes as frequent as they are there. The site's discriminator D makes a step of Adam
    down −mean log D(x | y) − mean log(1 − D(x̂ | y)), for some of its own cases x and the made ones x̂. The site answers
    with the gradient of −mean log D(x̂ | y) for x̂, by the discriminator as it is then. The generator makes a step of
    Adam down the mean of these over the sites, by their weights. Discriminators and cases never leave the sites. With
    one site this is a plain conditional GAN.

    In each round after them the model makes ``network_steps`` steps on newly made cases, of classes as frequent as they
    are at all sites together, with the optimiser of the study. Sites validate and test it on their own cases.

    Once the generator is done, each site compares inputs that it made with its own cases, and tells counts (see
    `polyclinic.client.synthesis.memorisation`).

    Source: Chang et al., Synthetic learning: learn from distributed asynchronized discriminator GAN without sharing
    medical image data, CVPR 2020, arXiv 2006.00080, and the authors' code, which was read. There images are made from
    masks that sites share, by a large network with perceptual losses; here from classes and random numbers, by a small
    one. Conditions as in Mirza, Osindero, arXiv 1411.1784.

    Args:
        generator_rounds: in which the generator is trained, and the model is not; 0 leaves it as it was drawn.
        steps: of the generator in a round.
        network_steps: of the model in a round.
        batch_size: cases in a step, made for each site and of its own; and of the model.
        lr: of Adam for generator and discriminators.
        latent: random numbers that a case is made of.
        width: channels of the generator's last hidden layer and of the discriminator's first; others have more.
        checked: made inputs that sites compare with their cases.
    """

    trains = False
    shares: ClassVar = ("all",)
    tasks: ClassVar = ("classification",)
    no_bags: ClassVar = True
    reveals: ClassVar = {
        "images": "what the generator makes: it may have learned to repeat a site's cases, and every site is sent it",
        "labels": "classes that the server drew for made cases; nothing of a patient",
        "cases": "how many training cases of each class the site has",
        "gradient": "how made cases should change to be taken for the site's own, by a network that was trained on "
                    "these: what the generator learns of the site's cases it learns from it",
        "loss": "how well the site's discriminator tells its own cases from made ones: a mean over a batch",
        "counts": "how many made cases are suspiciously near to the site's training cases; of none which",
        "nearness": "how near made cases and held-out ones are to training cases: medians, and the nearest of each; a "
                    "server that sent a case that it knows in their place would learn whether it was trained on",
    }  # fmt: skip

    def __init__(
        self, *, generator_rounds: Annotated[int, Field(ge=0)] = 20, steps: PositiveInt = 50,
        network_steps: PositiveInt = 50, batch_size: Annotated[int, Field(ge=2)] = 32, lr: PositiveFloat = 0.0002,
        latent: PositiveInt = 64, width: Annotated[int, Field(ge=4, multiple_of=4)] = 16,
        checked: PositiveInt = 100,
    ) -> None:  # fmt: skip
        self.still_rounds = generator_rounds
        self.steps, self.network_steps, self.batch_size, self.lr = steps, network_steps, batch_size, lr
        self.latent, self.width, self.checked = latent, width, checked
        self._memory: Memory = {}
        self._maker: Maker | None = None

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of what is made for this network."""
        images = Shaped("float32", "N cases", *model.shape) if model.shape else Shaped("float32", None)
        labels, cases = Shaped("int64", "N cases", least=0), Shaped("int64", "C classes", least=0, most=10**9)
        found = {"images": images, "gradient": images, "labels": labels, "cases": cases}
        return {**found, "loss": Shaped("float32", 1), **TOLD}

    def at_site(self) -> SiteEnd:
        """Has the discriminator."""
        return _Judge(self.lr, self.width)

    def updates(self, stage: Stage) -> Iterator[Answered]:
        """A round of the generator, or one of the model."""
        begun, states = time.monotonic(), [stage.state(site) for site in stage.sites]
        if any(state is not states[0] for state in states):
            raise StudyError("P104", f"{self.name} trains one model with all sites, and the topology has several.",
                             "Use `topology: star`.")  # fmt: skip
        asked, maker = _Asked(stage, self.name), self._made_of(stage)
        maker.met(asked.cases(stage.task.classes))
        if not asked.going:
            yield from (Answered(site, why) for site, why in asked.failed.items())
            return
        if stage.number < self.still_rounds:
            losses, after = asked.taught(maker, self.steps, self.batch_size), states[0]
            asked.ask("end", {site: {} for site in asked.going})
            sound = finite(maker.network.vector)
        else:
            self._checked(asked, maker)
            loss, after = _trained(stage, maker, states[0], self.network_steps, self.batch_size)
            losses, sound = dict.fromkeys(stage.sites, loss), math.isfinite(loss) and finite(after)
        steps = self.steps if stage.number < self.still_rounds else self.network_steps
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
            self._maker = Maker(stage, self.latent, self.width, self.lr, self._memory)
        return self._maker

    def _checked(self, asked: _Asked, maker: Maker) -> None:
        """Let sites that have not yet done so compare made inputs with their cases. One that fails is left out of the
        round, and asked again in the next one."""
        if "made/images" not in self._memory:
            numbers, labels = maker.drawn(asked.stage.generator("checked"), self.checked, maker.everyone(asked.stage))
            self._memory |= {"made/images": maker.inputs(numbers, labels).cpu(), "made/labels": labels}
        images, labels = self._memory["made/images"], self._memory["made/labels"]
        new = [site for site in asked.going if f"told/{site}/counts" not in self._memory]
        for site, found in asked.ask("check", {site: {"images": images, "labels": labels} for site in new}).items():
            if _fits(found, len(images)):
                self._memory |= {f"told/{site}/{name}": found[name] for name in TOLD}
            else:
                asked.failed[site] = SiteError("P401", f"Site {site} answered with counts that can't be.", _SAME,
                                               site=site)  # fmt: skip

    def made(self) -> Made | None:
        """What sites were asked to compare with their cases, and what they told."""
        if "made/images" not in self._memory:
            return None
        found: dict[str, Memory] = {}
        for key, tensor in self._memory.items():
            kind, _, rest = key.partition("/")
            if kind == "told":
                site, _, name = rest.rpartition("/")
                found.setdefault(site, {})[name] = tensor
        return Made(self._memory["made/images"], self._memory["made/labels"], found)

    def memory(self) -> Memory:
        """The generator with its optimiser, what sites have, and what they told."""
        return {**self._memory, **(self._maker.memory() if self._maker else {})}

    def restore(self, memory: Memory) -> None:
        """Take it back."""
        self._memory, self._maker = dict(memory), None


class _Asked:
    """What sites answer in a round; one that fails is left out from then on.

    Attributes:
        stage: of the round.
        failed: site -> why.
    """

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage, self.name = stage, name
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
                self._misfit(site, "no counts of its classes")
            else:
                found[site] = cases
        return found

    def taught(self, maker: Maker, steps: int, size: int) -> dict[str, float]:
        """Steps of the generator; site -> the mean loss of its discriminator."""
        losses: dict[str, list[float]] = {site: [] for site in self.stage.sites}
        for step in range(steps):
            sites = self.going
            if not sites:
                break
            drawn = [maker.drawn(self.stage.generator("made", site, step), size, maker.of(site)) for site in sites]
            made = maker.make(drawn)
            sent = made.detach().float().cpu().split(size)
            batches = zip(sites, sent, drawn, strict=True)
            asked = {site: {"images": images, "labels": labels} for site, images, (_, labels) in batches}
            answers = self._gradients(self.ask("judge", asked), sent[0].shape)
            total = sum(self.stage.weights[site] for site in answers)
            nothing = torch.zeros(sent[0].shape)
            parts = [self.stage.weights[s] / total * answers[s]["gradient"] if s in answers else nothing for s in sites]
            if answers:
                maker.learn(made, torch.cat(parts))
            for site, answer in answers.items():
                losses[site].append(float(answer["loss"]))
        return {site: sum(found) / max(len(found), 1) for site, found in losses.items()}

    def _gradients(self, answers: dict[str, Memory], shape: Sequence[int]) -> dict[str, Memory]:
        """Those answers that have a gradient for each made input, and a loss."""
        good = dict[str, Memory]()
        for site, answer in answers.items():
            gradient, loss = answer.get("gradient"), answer.get("loss")
            if gradient is None or loss is None or gradient.shape != shape or loss.numel() != 1:
                self._misfit(site, f"no gradient {list(shape)} with a loss")
            else:
                good[site] = answer
        return good

    def _misfit(self, site: str, what: str) -> None:
        self.failed[site] = SiteError("P401", f"In a step site {site} sent {what}.", _SAME, site=site)


def _trained(stage: Stage, maker: Maker, state: Tensor, steps: int, size: int) -> tuple[float, Tensor]:
    """The mean loss of steps of the model on made cases, and the model after them ``[P]``."""
    network, device, losses = stage.network, stage.network.vector.device, list[float]()
    frequent, training = maker.everyone(stage), stage.network.module.training
    network.load(state)
    network.module.train()
    optimizer = stage.optimizer(network.parameters_of(None, whole=True))
    try:
        for step in range(steps):
            numbers, labels = maker.drawn(stage.generator("network", step), size, frequent)
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


def _fits(found: Memory, made: int) -> bool:
    """Whether what a site told can be."""
    if not found.keys() >= TOLD.keys():
        return False
    one = Copied.of(made, found)
    return one.nearer <= made and (1 <= one.held_nearer <= one.held if one.held else not one.nearer)


class _Judge(SiteEnd):
    """The end at a site.

    Args:
        lr, width: see `SyntheticCases`.
    """

    needs_labels = True
    spares_model = True

    def __init__(self, lr: float, width: int) -> None:
        self.lr, self.width = lr, width
        self._network: FlatModule | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round, ``judge`` made cases, ``end`` it; ``check`` whether made cases are copies."""
        if verb == "begin":
            return self._begin(view)
        if verb == "judge":
            return self._judge(view, *_of(asked, view))
        if verb == "end":
            return self._end()
        if verb == "check":
            return self._check(view, _of(asked, view)[0])
        return super().answer(verb, asked, view)

    def _begin(self, view: SiteView) -> Memory:
        """The discriminator as it was at the end of the round before, and how many cases of each class there are."""
        device = view.model.vector.device
        with own_randomness(view.generator("discriminator").initial_seed()):
            module = Discriminator(view.input_shape, view.task.classes, width=self.width)
        self._network, self._steps = FlatModule(module, device=device), 0
        weights, kept = self._network.weights, dict(self.kept)
        self._optimizer = torch.optim.Adam([weights], lr=self.lr, betas=BETAS)
        if "discriminator" in kept:
            self._network.load(kept.pop("discriminator"))
            restore_state(self._optimizer, [weights], kept)
        counts = view.class_counts
        return {"cases": torch.zeros(0, dtype=torch.int64) if counts is None else counts.long()}

    def _judge(self, view: SiteView, made: Tensor, labels: Tensor) -> Memory:
        network, device = self._network, view.model.vector.device
        if network is None:
            raise SiteError("P401", f"Site {view.name} was asked to judge before a round began.", _SAME, site=view.name)
        order = torch.randperm(view.count(), generator=view.generator("real", self._steps))
        real, classes = (one.to(device) for one in view.cases(order[: len(made)]))
        made, labels = made.to(device), labels.to(device)
        loss = _cross_entropy(network.module(real, classes), real=True)
        loss = loss + _cross_entropy(network.module(made, labels), real=False)
        network.gradient.zero_()
        loss.backward()
        self._optimizer.step()
        self._steps += 1
        made = made.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_cross_entropy(network.module(made, labels), real=True), made)
        return {"gradient": gradient.float().cpu(), "loss": loss.detach().float().reshape(1).cpu()}

    @staticmethod
    def _check(view: SiteView, made: Tensor) -> Memory:
        """Of each patient held out one case is compared: others of the same patient are nearer than others are."""
        people, first = view.people("validation").tolist(), dict[int, int]()
        for place, person in enumerate(people):
            first.setdefault(person, place)
        held = _rows(view, torch.tensor(list(first.values()), dtype=torch.int64), "validation")
        return told(reduced(made), _rows(view, torch.arange(view.count()), "train"), held)

    def _end(self) -> Memory:
        """What the round left is kept; the live network goes."""
        network, self._network = self._network, None
        if network is not None:
            state = {name: one.cpu().clone() for name, one in state_of(self._optimizer, [network.weights]).items()}
            self.kept = {"discriminator": network.vector.cpu().clone(), **state}
        return {}


def _of(asked: Memory, view: SiteView) -> tuple[Tensor, Tensor]:
    """Made inputs and their classes.

    Raises:
        SiteError: P401, they don't fit the site's own.
    """
    images, labels = asked["images"], asked["labels"]
    fit = images.shape[1:] == view.input_shape and labels.shape == (len(images),) and len(images)
    if not fit or int(labels.max()) >= view.task.classes:
        text = f"Site {view.name} was sent made cases {list(images.shape)} with labels {list(labels.shape)}; its own "
        text += f"are {list(view.input_shape)}, of {view.task.classes} classes."
        raise SiteError("P401", text, _SAME, site=view.name)
    return images, labels


def _rows(view: SiteView, index: Tensor, part: PartOfCases) -> Tensor:
    """Some of the site's own cases as they are compared, a few at a time."""
    return torch.cat([reduced(view.cases(some, part)[0]) for some in index.split(AT_ONCE)])


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    return nnf.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
