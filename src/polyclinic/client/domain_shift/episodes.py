"""Training against looks of images that a site does not have: the episodes of FedDG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.func import functional_call

from polyclinic.client.domain_shift.spectra import Window, whole_images
from polyclinic.client.telling import Telling
from polyclinic.parts import LOCAL_PARTS, Batch, Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.seeds import generator
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: Numbers in the gradient of the inner step are cut off here, as in the authors' code.
_LARGEST = 100.0


@LOCAL_PARTS.add("frequency_episodes")
class FrequencyEpisodes(Part):
    """ELCFS (FedDG): a step on a site's images must also help on the same images with the look of other sites.

    Before training sites share a bank of low-frequency amplitudes of single images, without their phases. In each step
    every image x of the batch gets another look: its low-frequency amplitudes A become (1 − λ) A + λ A', with A' from
    the bank of another site and λ drawn evenly from 0 to ``most``. Then w' = w − β ∇F(w; x), as if the batch had been
    learned, and weight · F(w'; x') is added to the loss F(w; x), with w' − w taken for constant. Statistics of
    normalisation layers are those of x. Classes count the same in the added term. A site alone has no other look, and
    trains as without the rule.

    Source: Liu, Chen, Qin, Dou, Heng, FedDG: federated domain generalization on medical image segmentation via episodic
    learning in continuous frequency space, CVPR 2021, and the authors' code, which shares amplitudes of an eighth of
    the images, always takes λ = 1 and a window of 0 in training (0.003 in its demonstration), and β = 0.001. Its
    contrastive term, on features at the boundary of masks, is left out: it needs features of single pixels.

    Args:
        weight: of the added term; 0 changes nothing.
        step: β.
        window: the low frequencies, as a share of the number of pixels along each axis.
        most: the largest λ; with 0 looks stay as they are.
        bank: how many images each site shares amplitudes of, at most.
    """

    reveals: ClassVar = {
        "bank": "low-frequency Fourier amplitudes of single training images, without their phases: how bright each is, "
                "and how strong its coarse structures are",
        "others": "the same of all other sites: with two sites, the other's",
    }  # fmt: skip
    images_only = True
    no_bags = True

    def __init__(
        self, *, weight: NonNegativeFloat = 1.0, step: NonNegativeFloat = 0.001,
        window: Annotated[float, Field(ge=0, le=0.5)] = 0.01, most: Annotated[float, Field(ge=0, le=1)] = 1.0,
        bank: PositiveInt = 32,
    ) -> None:  # fmt: skip
        self.weight, self.step, self.window, self.most, self.bank = weight, step, window, most, bank

    def shapes_for(self, model: FlatModule) -> Mapping[str, Shaped]:
        """Of amplitudes of images of this size."""
        amplitudes = model.shape[0], *Window(model.shape[1:], self.window).shape
        return {
            "bank": Shaped("float32", "N bank", *amplitudes, least=0, always="start"),
            "others": Shaped("float32", "N others", *amplitudes, least=0),
        }

    def at_site(self) -> SiteEnd:
        """Has the episodes."""
        return _Episodes(self)

    def at_server(self) -> ServerEnd:
        """Hands the banks on."""
        return _Banks()


class _Episodes(SiteEnd):
    def __init__(self, part: FrequencyEpisodes) -> None:
        self.part = part
        self._others: Tensor | None = None

    def meet(self, view: SiteView) -> Memory:
        """A of some training cases ``[n, C, *shape]``."""
        self._window, self._task = Window(whole_images(view, self.name), self.part.window), view.task
        chosen = torch.randperm(view.count(), generator=view.generator("bank"))[: self.part.bank]
        parts = [self._window.amplitudes(view.cases(index)[0]) for index in chosen.split(32) if len(index)]
        return {"bank": torch.cat(parts) if parts else torch.empty(0, view.input_shape[0], *self._window.shape)}

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """Take the other sites' banks, before the first round."""
        if verb != "tell":
            return super().answer(verb, asked, view)
        self._others = asked["others"]
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """A' ``[N, C, *shape]``."""
        self._others = received.get("others", self._others)
        return {} if self._others is None or not len(self._others) else {"others": self._others}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """weight · F(w'; x')."""
        if not self.part.weight or "others" not in given:
            return None
        module, task = batch.model.module, self._task
        weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        # In half precision small gradients would be 0: the step is taken in full.
        outputs = batch.outputs if batch.outputs.dtype is torch.float32 else self._run(batch, {}, batch.inputs)
        inner = task.loss(outputs, batch.targets).mean()
        slopes = torch.autograd.grad(inner, list(weights.values()), retain_graph=True, allow_unused=True)
        moved = {
            name: weight if slope is None else weight - self.part.step * slope.clamp(-_LARGEST, _LARGEST)
            for (name, weight), slope in zip(weights.items(), slopes, strict=True)
        }
        found = self._run(batch, moved, self._other_looks(batch, given["others"]))
        return self.part.weight * task.loss(found, batch.targets).mean()

    def _other_looks(self, batch: Batch, others: Tensor) -> Tensor:
        """x'."""
        source, cases = generator("looks", batch.seed), len(batch.inputs)
        chosen = torch.randint(len(others), (cases,), generator=source).to(others.device)
        shares = self.part.most * torch.rand(cases, generator=source)
        return self._window.mixed(batch.inputs, others[chosen], shares.to(others.device))

    @staticmethod
    def _run(batch: Batch, weights: Memory, inputs: Tensor) -> Tensor:
        """Outputs with other weights; what the network keeps of its inputs stays as it is."""
        module = batch.model.module
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        outputs: Tensor = functional_call(module, {**buffers, **weights}, (inputs,))
        return outputs


class _Banks(Telling):
    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Tell each site the others' banks."""
        banks = {site: told["bank"] for site, told in announced.items()}
        alone = {site: bank[:0] for site, bank in banks.items()}
        self.tell({
            site: {"others": torch.cat([alone[site], *(bank for other, bank in banks.items() if other != site)])}
            for site in everyone
        })  # fmt: skip
