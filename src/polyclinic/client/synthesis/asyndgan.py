"""AsynDGAN: a generator at the server learns from discriminators that stay at the sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.client.synthesis.adversaries import Learning, doubted, grouped, in_group, judged
from polyclinic.client.synthesis.generator import Maker, kinds_of
from polyclinic.client.synthesis.made_cases import REVEALS, Asked, MadeCases
from polyclinic.client.synthesis.site_end import SAME, BesideOwn, MadeCasesEnd
from polyclinic.errors import SiteError
from polyclinic.models.generative import Discriminator, Generator, MaskGenerator
from polyclinic.parts import PROCEDURES, Memory, SiteEnd, SiteView, Stage
from polyclinic.randomness import own_randomness
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule


@PROCEDURES.add("synthetic_cases")
class SyntheticCases(MadeCases):
    """AsynDGAN: a generator at the server learns to make cases that the sites' discriminators take for real; then the
    model is trained at the server on made cases alone.

    In each step of a round of the generator the server makes a batch of inputs for each site, of classes as frequent as
    they are there, or from masks y that the site shared. The site's discriminator D makes a step of Adam down −mean log
    D(x | y) − mean log(1 − D(x̂ | y)), for some of its own cases x and the made ones x̂. The site answers with the
    gradient of −mean log D(x̂ | y) for x̂, by the discriminator as it is then. The generator makes a step of Adam down
    the mean of these over the sites, by their weights. Discriminators and cases, but for those masks, never leave the
    sites. With one site this is a plain conditional GAN.

    Arguments are those of `polyclinic.client.synthesis.made_cases.MadeCases`.

    Source: Chang et al., Synthetic learning: learn from distributed asynchronized discriminator GAN without sharing
    medical image data, CVPR 2020, arXiv 2006.00080, and the authors' code, which was read. There images are made from
    masks of all cases, which sites share, by a large network without random numbers; and it is also drawn to the very
    image of each mask, pixel by pixel and by features of VGG (L1 and perceptual loss). Here it is not, since that
    teaches it to repeat patients; the network is small. Without masks inputs are made from classes, with conditions as
    in Mirza, Osindero, arXiv 1411.1784.
    """

    reveals: ClassVar = {
        **REVEALS,
        "gradient": "how made cases should change to be taken for the site's own, by a network that was trained on "
                    "these: what the generator learns of the site's cases it learns from it",
    }  # fmt: skip
    _learning: Learning

    def started(self, generator: Generator | MaskGenerator, stage: Stage, memory: Memory) -> None:
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
        return (_Judge if self.for_sites is None else _JudgeBesideOwn)(self.lr, self.width, self.masks)

    def taught(self, asked: Asked, maker: Maker) -> dict[str, float]:
        """Steps of the generator; site -> the mean loss of its discriminator."""
        stage, losses = asked.stage, {site: list[float]() for site in asked.going}
        for step in range(self.steps):
            sites = asked.going
            if not sites:
                break
            asked_for = [maker.of(site) for site in sites]
            drawn = [
                maker.drawn(stage.generator("made", site, step), self.batch_size, one)
                for site, one in zip(sites, asked_for, strict=True)
            ]
            numbers = torch.cat([one for one, _ in drawn]).to(maker.device)
            values = torch.cat([one.values[places] for one, (_, places) in zip(asked_for, drawn, strict=True)])
            made: Tensor = maker.generator(numbers, values.to(maker.device))
            sent = made.detach().float().cpu().split(self.batch_size)
            batches = zip(sites, sent, drawn, strict=True)
            questions = {site: {"images": images, "labels": places} for site, images, (_, places) in batches}
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
        lr, width, masks: see `SyntheticCases`.
    """

    def __init__(self, lr: float, width: int, masks: int | None) -> None:
        super().__init__(masks)
        self.lr, self.width = lr, width
        self._learning: Learning | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round, ``judge`` made cases, ``end`` it; ``check`` whether made cases are copies."""
        if verb == "begin":
            self._begin(view)
        if verb == "judge":
            images, _, wanted = self.sent_cases(asked, view)
            return self._judge(view, images, wanted)
        if verb == "end":
            return self._end()
        return super().answer(verb, asked, view)

    def _begin(self, view: SiteView) -> None:
        """The discriminator as it was at the end of the round before."""
        with own_randomness(view.generator("discriminator").initial_seed()):
            module = Discriminator(view.input_shape, kinds_of(view.task), width=self.width)
        self._learning, self._steps = Learning(module, self.lr, view.model.vector.device, self.kept), 0

    def _judge(self, view: SiteView, made: Tensor, wanted: Tensor) -> Memory:
        judge, device = self._learning, view.model.vector.device
        if judge is None:
            raise SiteError("P401", f"Site {view.name} was asked to judge before a round began.", SAME, site=view.name)
        real, targets = self.real_cases(view, self._steps, len(made))
        made, wanted = made.to(device).requires_grad_(), wanted.to(device)
        loss = judged(judge, real, targets, made, wanted)
        self._steps += 1
        (gradient,) = torch.autograd.grad(doubted(judge, made, wanted), made)
        return {"gradient": gradient.float().cpu(), "loss": loss.float().reshape(1).cpu()}

    def _end(self) -> Memory:
        """What the round left is kept; the live network goes."""
        judge, self._learning = self._learning, None
        if judge is not None:
            self.kept = judge.memory()
        return {}


class _JudgeBesideOwn(BesideOwn, _Judge):
    """The same, and the site trains on made cases, too."""
