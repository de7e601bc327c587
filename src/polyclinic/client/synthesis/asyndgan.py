"""AsynDGAN: a generator at the server learns from discriminators that stay at the sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.client.synthesis.adversaries import Learning, doubted, grouped, in_group, judged
from polyclinic.client.synthesis.generator import Maker, frequent
from polyclinic.client.synthesis.made_cases import (
    REVEALS,
    SAME,
    Asked,
    MadeCases,
    MadeCasesEnd,
    real_cases,
    sent_cases,
)
from polyclinic.errors import SiteError
from polyclinic.models.generative import Discriminator, Generator
from polyclinic.parts import PROCEDURES, Memory, SiteEnd, SiteView, Stage
from polyclinic.randomness import own_randomness
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule


@PROCEDURES.add("synthetic_cases")
class SyntheticCases(MadeCases):
    """AsynDGAN: a generator at the server learns to make cases that the sites' discriminators take for real; then the
    model is trained at the server on made cases alone.

    In each step of a round of the generator the server makes a batch of inputs for each site, of classes as frequent
    as they are there. The site's discriminator D makes a step of Adam down −mean log D(x | y) − mean log(1 − D(x̂ | y)),
    for some of its own cases x and the made ones x̂. The site answers with the gradient of −mean log D(x̂ | y) for x̂, by
    the discriminator as it is then. The generator makes a step of Adam down the mean of these over the sites, by their
    weights. Discriminators and cases never leave the sites. With one site this is a plain conditional GAN.

    Arguments are those of `polyclinic.client.synthesis.made_cases.MadeCases`.

    Source: Chang et al., Synthetic learning: learn from distributed asynchronized discriminator GAN without sharing
    medical image data, CVPR 2020, arXiv 2006.00080, and the authors' code, which was read. There images are made from
    masks that sites share, by a large network with perceptual losses; here from classes and random numbers, by a small
    one. Conditions as in Mirza, Osindero, arXiv 1411.1784.
    """

    reveals: ClassVar = {
        **REVEALS,
        "gradient": "how made cases should change to be taken for the site's own, by a network that was trained on "
                    "these: what the generator learns of the site's cases it learns from it",
    }  # fmt: skip
    _learning: Learning

    def started(self, generator: Generator, stage: Stage, memory: Memory) -> None:
        """The generator with Adam."""
        self._learning = Learning(generator, self.lr, stage.network.vector.device, grouped(memory, "generator"))

    def learned(self) -> Memory:
        """The same."""
        return in_group("generator", self._learning.memory())

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Gradients are those of images."""
        shapes = super().shapes_for(model)
        return {**shapes, "gradient": shapes["images"]}

    def at_site(self) -> SiteEnd:
        """Has the discriminator."""
        return _Judge(self.lr, self.width)

    def taught(self, asked: Asked, maker: Maker) -> dict[str, float]:
        """Steps of the generator; site -> the mean loss of its discriminator."""
        stage, losses = asked.stage, {site: list[float]() for site in asked.going}
        for step in range(self.steps):
            sites = asked.going
            if not sites:
                break
            drawn = [
                maker.drawn(stage.generator("made", site, step), self.batch_size, frequent(maker.cases[site]))
                for site in sites
            ]
            numbers, labels = (torch.cat(parts).to(maker.device) for parts in zip(*drawn, strict=True))
            made: Tensor = maker.generator(numbers, labels)
            sent = made.detach().float().cpu().split(self.batch_size)
            batches = zip(sites, sent, drawn, strict=True)
            questions = {site: {"images": images, "labels": labels} for site, images, (_, labels) in batches}
            answers = _gradients(asked, asked.ask("judge", questions), sent[0].shape)
            total = sum(stage.weights[site] for site in answers)
            nothing = torch.zeros(sent[0].shape)
            parts = [stage.weights[s] / total * answers[s]["gradient"] if s in answers else nothing for s in sites]
            if answers:
                self._learning.descend(made, torch.cat(parts).to(maker.device))
            for site, answer in answers.items():
                losses[site].append(float(answer["loss"]))
        asked.ask("end", {site: {} for site in asked.going})
        return {site: sum(found) / max(len(found), 1) for site, found in losses.items()}


def _gradients(asked: Asked, answers: dict[str, Memory], shape: Sequence[int]) -> dict[str, Memory]:
    """Those answers that have a gradient for each made input, and a loss."""
    good = dict[str, Memory]()
    for site, answer in answers.items():
        gradient, loss = answer.get("gradient"), answer.get("loss")
        if gradient is None or loss is None or gradient.shape != shape or loss.numel() != 1:
            asked.misfit(site, f"no gradient {list(shape)} with a loss")
        else:
            good[site] = answer
    return good


class _Judge(MadeCasesEnd):
    """The end at a site.

    Args:
        lr, width: see `SyntheticCases`.
    """

    def __init__(self, lr: float, width: int) -> None:
        self.lr, self.width = lr, width
        self._learning: Learning | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round, ``judge`` made cases, ``end`` it; ``check`` whether made cases are copies."""
        if verb == "begin":
            self._begin(view)
        if verb == "judge":
            return self._judge(view, *sent_cases(asked, view))
        if verb == "end":
            return self._end()
        return super().answer(verb, asked, view)

    def _begin(self, view: SiteView) -> None:
        """The discriminator as it was at the end of the round before."""
        with own_randomness(view.generator("discriminator").initial_seed()):
            module = Discriminator(view.input_shape, view.task.classes, width=self.width)
        self._learning, self._steps = Learning(module, self.lr, view.model.vector.device, self.kept), 0

    def _judge(self, view: SiteView, made: Tensor, labels: Tensor) -> Memory:
        judge, device = self._learning, view.model.vector.device
        if judge is None:
            raise SiteError("P401", f"Site {view.name} was asked to judge before a round began.", SAME, site=view.name)
        real, classes = real_cases(view, self._steps, len(made))
        made, labels = made.to(device).requires_grad_(), labels.to(device)
        loss = judged(judge, real, classes, made, labels)
        self._steps += 1
        (gradient,) = torch.autograd.grad(doubted(judge, made, labels), made)
        return {"gradient": gradient.float().cpu(), "loss": loss.float().reshape(1).cpu()}

    def _end(self) -> Memory:
        """What the round left is kept; the live network goes."""
        judge, self._learning = self._learning, None
        if judge is not None:
            self.kept = judge.memory()
        return {}
