"""A personal model by frequencies: what is smooth in its weights is shared, what is fine stays at the site."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from polyclinic.client.companion import Companion
from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.parts import Memory, SiteView


@PERSONAL.add("fourier")
class Fourier(Personal):
    """Progressive Fourier aggregation: only low frequencies of matrices and kernels are common, more in each round.

    The site's model is v_k + L_r (w − v_k): the low frequencies of w and the high ones of v_k, the model with which the
    site ended its last round. It trains from there, and w ← w + Σ p_k Δ_k with Δ_k the change of its training; where
    all sites take part, this w is the mean of the v_k. L_r keeps frequencies of at most r / 2 cycles an element along
    both axes of a matrix. A kernel ``[N, C, D, ...]`` is a matrix ``[C D, ... N]``, weights ``[N, C]`` are one as they
    are. All other tensors, such as biases, are common as far as they are shared.

    After m of R rounds in which the site trained, r = start + (end − start) (m − 1) / R. A site that has not trained
    yet has w.

    Source: Chen et al., Personalized retrogress-resilient framework for real-world medical federated learning, MICCAI
    2021, progressive Fourier aggregation, and the authors' program, which arranges kernels so, lets r grow so up to
    0.95, and keeps normalisation layers at the site (`share: no_norm`). Differs: there amplitudes are averaged and each
    site keeps the phases of all its frequencies, so that there is no common model; here low frequencies are averaged as
    they are, so that r = 1 is FedAvg, an unseen site has a model, and any server rule and a secure sum go with it. r
    counts the site's own rounds. Read were the abstract and the program, not the whole paper. Its
    second model at each site (deputy-enhanced transfer) is left out.

    Args:
        start: r at first; 1 is FedAvg, with 0 only the mean of each matrix is shared.
        end: r that it grows to.
    """

    unseen = "the shared model, or the mean of all sites' predictions where sites keep normalisation layers"
    starts_own = True

    def __init__(
        self, *, start: Annotated[float, Field(ge=0, le=1)] = 0.7, end: Annotated[float, Field(ge=0, le=1)] = 0.95
    ) -> None:
        self.start, self.final = start, end

    def initial(self, view: SiteView) -> Memory:
        """v_k is the first model; of its rounds none is done."""
        self.layout = view.layout
        self.trained = {entry.name for entry in view.layout.entries if entry.trainable}
        return {"model": view.vector.clone(), "rounds": torch.tensor([0, view.rounds])}

    def model(self, shared: Tensor, memory: Memory) -> Tensor:
        """v_k + L_r (w − v_k)."""
        done, rounds = memory["rounds"].tolist()
        window = self.start + (self.final - self.start) * (done - 1) / rounds
        if not done or window >= 1:
            return shared
        mixed, own = shared.clone(), self.layout.split(memory["model"])
        for name, common in self.layout.split(mixed).items():
            if common.dim() > 1 and name in self.trained:
                ours = own[name].double()
                common.copy_(ours + low(common.double() - ours, window))
        return mixed

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """v_k, and one more round."""
        return {"model": shared.clone(), "rounds": memory["rounds"] + torch.tensor([1, 0])}


def low(tensor: Tensor, window: float) -> Tensor:
    """What of a matrix or kernel ``[N, C, ...]`` has low frequencies, see `Fourier`, as float64."""
    turned = tensor.movedim(0, -1)  # [C, D, ..., N]
    matrix = tensor if tensor.dim() == 2 else turned.reshape(math.prod(turned.shape[:2]), -1)
    near = [torch.fft.fftfreq(side, dtype=torch.float64).abs() <= window / 2 + 1e-12 for side in matrix.shape]
    spectrum = torch.fft.fft2(matrix.cpu().double()) * (near[0][:, None] & near[1])
    found: Tensor = torch.fft.ifft2(spectrum).real.to(tensor.device)
    return found if tensor.dim() == 2 else found.reshape(turned.shape).movedim(-1, 0)
