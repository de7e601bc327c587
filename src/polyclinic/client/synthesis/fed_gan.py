"""FedGAN: generators and discriminators that sites train by themselves, averaged at the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from polyclinic.client.synthesis.adversaries import Learning, doubted, drawn, grouped, judged
from polyclinic.client.synthesis.generator import Maker, frequent, kinds_of, network_for
from polyclinic.client.synthesis.made_cases import REVEALS, Asked, MadeCases
from polyclinic.client.synthesis.site_end import SAME, BesideOwn, MadeCasesEnd
from polyclinic.errors import SiteError
from polyclinic.models.generative import Discriminator, Generator, MaskGenerator
from polyclinic.parts import PROCEDURES, Memory, SiteEnd, SiteView, Stage
from polyclinic.randomness import own_randomness
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: The two networks that are averaged.
_NETWORKS = ("generator", "discriminator")


@PROCEDURES.add("federated_gan")
class FederatedGAN(MadeCases):
    """FedGAN: sites train a generator and a discriminator on their own cases, the server averages both; then the model
    is trained at the server on made cases alone.

    In a round of the generator the server sends both networks. Each site makes ``steps`` steps: its discriminator D one
    of Adam down −mean log D(x | y) − mean log(1 − D(x̂ | y)), for some of its own cases x and made ones x̂ of classes
    as frequent as they are there, or from its own masks; then its generator one down −mean log D(x̂ | y), by the
    discriminator as it is then. The next networks are the means Σ n_k w_k / Σ n_k of the sites' networks, by their
    weights n_k. Adam's moments stay at the site and are kept between rounds, so that with one site this is a plain
    conditional GAN.

    Arguments are those of `polyclinic.client.synthesis.made_cases.MadeCases`.

    Source: Rasouli, Sun, Rajagopal, FedGAN: federated generative adversarial networks for distributed data, arXiv
    2006.07228, by its abstract and introduction: the rest was not at hand. From these are the two networks at each site
    and their means every so many steps. Ours are the order of the two steps, Adam's moments, conditions (Mirza,
    Osindero, arXiv 1411.1784), and that the model is trained on made cases at the server: the introduction has them
    made in order to be given away.
    """

    reveals: ClassVar = {
        **REVEALS,
        "generator": "a network that the site trained to make cases like its own: what it makes may be copies of them, "
                     "and before the mean is taken they are of this site alone",
        "discriminator": "a network that the site trained to tell its own cases from others: it says of any case how "
                         "much it looks like one of the site's, so also whether it was trained on",
    }  # fmt: skip
    _networks: Mapping[str, FlatModule]

    def started(self, generator: Generator | MaskGenerator, stage: Stage, memory: Memory) -> None:
        """Both networks, as they were drawn or left."""
        with own_randomness(stage.generator("discriminator").initial_seed()):
            discriminator = Discriminator(generator.shape, generator.classes, width=self.width)
        device = stage.network.vector.device
        self._networks = {
            name: FlatModule(one, device=device)
            for name, one in zip(_NETWORKS, (generator, discriminator), strict=True)
        }
        for name, network in self._networks.items():
            if name in memory:
                network.load(memory[name])

    def learned(self) -> Memory:
        """The same."""
        return {name: network.vector.to("cpu", copy=True) for name, network in self._networks.items()}

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Networks are vectors; how long they are depends on the number of classes."""
        return {**super().shapes_for(model), **{name: Shaped("float32", f"numbers of a {name}") for name in _NETWORKS}}

    def at_site(self) -> SiteEnd:
        """Trains both networks."""
        kind = _Pair if self.for_sites is None else _PairBesideOwn
        return kind(self.steps, self.batch_size, self.lr, self.latent, self.width, self.masks)

    def taught(self, asked: Asked, maker: Maker) -> dict[str, float]:
        """A round of sites by themselves, and the mean; site -> the mean loss of its discriminator."""
        sent = self.learned()
        answers = _trained_networks(asked, asked.ask("learn", dict.fromkeys(asked.going, sent)), sent)
        total = sum(asked.stage.weights[site] for site in answers)
        for name, network in self._networks.items():
            shares = [asked.stage.weights[site] / total * answers[site][name].double() for site in answers]
            if shares:
                network.load(torch.stack(shares).sum(0).float())
        return {site: float(answer["loss"]) for site, answer in answers.items()}


def _trained_networks(asked: Asked, answers: dict[str, Memory], sent: Memory) -> dict[str, Memory]:
    """Those answers that have both networks, as long as they were sent, and a loss."""
    good = dict[str, Memory]()
    for site in sorted(answers, key=asked.stage.sites.index):
        answer = answers[site]
        short = [name for name in _NETWORKS if name not in answer or answer[name].shape != sent[name].shape]
        if short or "loss" not in answer:
            what = f"{short[0]} of {len(sent[short[0]])} numbers" if short else "loss"
            asked.misfit(site, f"no {what}")
        else:
            good[site] = answer
    return good


class _Pair(MadeCasesEnd):
    """The end at a site.

    Args:
        steps, batch_size, lr, latent, width, masks: see `FederatedGAN`.
    """

    def __init__(self, steps: int, batch_size: int, lr: float, latent: int, width: int, masks: int | None) -> None:
        super().__init__(masks)
        self.steps, self.batch_size, self.lr, self.latent, self.width = steps, batch_size, lr, latent, width

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """``begin`` a round, ``learn`` in it; ``check`` whether made cases are copies."""
        return self._learn(asked, view) if verb == "learn" else super().answer(verb, asked, view)

    def _learn(self, asked: Memory, view: SiteView) -> Memory:
        """Steps of both networks from those that were sent."""
        shares, device = self._shares(view), view.model.vector.device
        networks, losses = self._received(asked, view), list[Tensor]()
        generator, judge = networks["generator"], networks["discriminator"]
        count = int(generator.network.module.numbers)  # type: ignore[arg-type]
        for step in range(self.steps):
            numbers, places = drawn(view.generator("made", step), self.batch_size, count, shares)
            wanted = (places if self.masks is None else view.cases(self.outlines(view).learned[places])[1]).to(device)
            made = generator.network.module(numbers.to(device), wanted)
            losses.append(judged(judge, *self.real_cases(view, step, self.batch_size), made, wanted))
            generator.descend(doubted(judge, made, wanted))
        self.kept = {
            f"{name}/{key}": one for name, learning in networks.items() for key, one in learning.moments().items()
        }
        answer = {name: learning.network.vector.to("cpu", copy=True) for name, learning in networks.items()}
        return {**answer, "loss": torch.stack(losses).cpu().double().mean().float().reshape(1)}

    def _shares(self, view: SiteView) -> Tensor:
        """How frequent classes are at the site ``[C]``, or cases with a mask to learn from ``[n]``."""
        if self.masks is not None:
            return torch.ones(len(self.outlines(view).learned), dtype=torch.float64)
        counts = view.class_counts
        if counts is None or not counts.sum():
            raise SiteError("P401", f"Site {view.name} was asked to learn to make cases of classes, and has none.",
                            SAME, site=view.name)  # fmt: skip
        return frequent(counts)

    def _received(self, asked: Memory, view: SiteView) -> dict[str, Learning]:
        """Both networks as the server sent them, with the moments that the site kept."""
        shape, device = view.input_shape, view.model.vector.device
        with own_randomness(0):  # what is drawn is written over
            generator = network_for(view.task, shape, latent=self.latent, width=self.width)
            discriminator = Discriminator(shape, kinds_of(view.task), width=self.width)
        found = dict[str, Learning]()
        for name, module in zip(_NETWORKS, (generator, discriminator), strict=True):
            found[name] = Learning(module, self.lr, device, grouped(self.kept, name))
            expected, sent = found[name].network.vector, asked.get(name)
            if sent is None or sent.shape != expected.shape:
                text = f"Site {view.name} was sent no {name} of {len(expected)} numbers, as its own has."
                raise SiteError("P401", text, SAME, site=view.name)
            expected.copy_(sent)
        return found


class _PairBesideOwn(BesideOwn, _Pair):
    """The same, and the site trains on made cases, too."""
