"""Networks that reconstruct images from part of their k-space: a network of the image-to-image kind, and what was
measured put back, in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from polyclinic.kspace import of_inputs, to_images, to_kspace
from polyclinic.models.catalogue import MODELS, Built
from polyclinic.options import EntryError, Place

#: A network as a study file names it: ``unet``, or ``{unet: {channels: [8, 16]}}``.
Inner = str | dict[str, dict[str, Any] | None]
#: Channels of what an inner network finds, of which the layer behind it makes what is added.
_WIDTH = 8
#: The sides that an inner network gets are multiples of the first of these with which it can be built.
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)


class Unrolled(nn.Module):
    """Cascades of a network and data consistency; see `unrolled` for what they do.

    Args:
        networks: of each cascade: ``[B, 1, ...]`` (or ``[B, 2, ...]`` of real and imaginary part) to ``[B, W, ...]``.
        multiple: they take sides that are multiples of it.
        weight: λ; infinite puts measured lines back as they are, 0 leaves everything as the network has it.
        axes: of an image, 2 or 3.
        width: W.
        parts: whether networks see real and imaginary part.
        decoder: paths of layers in each network that come after the coarsest one.

    Attributes:
        last: a layer behind each network, 1 x 1 without a bias, which starts at 0: before training nothing is added.
        named_parts: ``decoder``, the paths of these layers in here, and ``last``.
    """

    def __init__(
        self, networks: list[nn.Module], multiple: int, weight: float, *, parts: bool, axes: int = 2,
        width: int = 1, decoder: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.last = nn.ModuleList(_starting_at_zero(axes, width, 2 if parts else 1) for _ in networks)
        inside = [f"networks.{place}.{one}" for place in range(len(networks)) for one in decoder]
        self.named_parts = {"decoder": [*inside, *(f"last.{place}" for place in range(len(networks)))]}
        self._width, self._multiple, self._weight, self._parts = width, multiple, weight, parts

    def forward(self, inputs: Tensor) -> Tensor:
        """Magnitude images ``[B, 1, ..., H, W]`` from inputs ``[B, 3, ..., H, W]``, see `polyclinic.kspace`."""
        zero_filled, measured = of_inputs(inputs)
        lines, image = to_kspace(zero_filled), zero_filled
        for network, last in zip(self.networks, self.last, strict=True):
            image = self._consistent(self._improved(network, last, image), lines, measured)
        return image.abs()

    def _improved(self, network: nn.Module, last: nn.Module, image: Tensor) -> Tensor:
        """The image with what the network adds to it, complex ``[B, 1, ...]``."""
        if self._parts:
            given = torch.cat([image.real, image.imag], dim=1)
            real, imaginary = (given + last(self._added(network, given))).split(1, dim=1)
            return torch.complex(real, imaginary)
        given = image.abs()
        found = given + last(self._added(network, given))
        return torch.complex(found, torch.zeros_like(found))

    def _added(self, network: nn.Module, given: Tensor) -> Tensor:
        sides = given.shape[2:]
        missing = [-side % self._multiple for side in sides]
        padding = [room for side in reversed(missing) for room in (0, side)]
        found: Tensor = network(F.pad(given, padding) if any(missing) else given).float()
        cut = found
        for axis, side in enumerate(sides, start=found.ndim - len(sides)):
            cut = cut.narrow(axis, 0, side)
        if cut.shape != (len(given), self._width, *sides):
            raise ValueError(f"its network gives {tuple(cut.shape[1:])} for images of shape {tuple(given.shape[1:])}")
        return cut

    def _consistent(self, image: Tensor, lines: Tensor, measured: Tensor) -> Tensor:
        """The image whose measured lines are ``(found + λ measured) / (1 + λ)``."""
        if not self._weight:
            return image
        share = 1.0 if self._weight == float("inf") else self._weight / (1 + self._weight)
        found = to_kspace(image)
        return to_images(found + share * measured * (lines - found))


def _starting_at_zero(axes: int, width: int, channels: int) -> nn.Module:
    layer = (nn.Conv2d if axes == 2 else nn.Conv3d)(width, channels, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def reconstructs(module: nn.Module) -> bool:
    """Whether a network is for reconstruction."""
    return isinstance(module, Unrolled)


@MODELS.add("unrolled")
def unrolled(
    shape: tuple[int, ...],
    outputs: int,
    *,
    network: Inner = "unet",
    cascades: PositiveInt = 1,
    consistency: Literal["hard", "none"] | NonNegativeFloat = "hard",
    sees: Literal["magnitude", "complex"] = "magnitude",
) -> Built:
    """For reconstruction: cascades of a network that adds to the image, and of data consistency (Schlemper 2018).

    The first cascade is given the zero-filled image. Each adds what its network finds in the image (its magnitude, or
    real and imaginary part), and then the lines of k-space that were measured are put back: as they are (``hard``), or
    as (found + λ measured) / (1 + λ) with a number λ, or not at all (``none``). What comes out is the magnitude. Each
    cascade has weights of its own. All layers that come after the coarsest one are the module ``decoder``; the latent
    code, which that one gives in the last cascade, are the features. Heads are those of the networks, and the last
    layers.

    A network gives 8 channels, of which a layer of 1 x 1 that starts at 0 makes what is added, so that before training
    this is nothing (as in Bachlechner et al., ReZero is all you need, UAI 2021). A network that sees real and imaginary
    part, or has no data consistency, then gives the zero-filled image. One that sees the magnitude gives an image whose
    squared error is not larger: neither the magnitude nor measured lines that are put back take an image away from a
    true one without phase. (A network that gives 0 itself at first would never learn behind a layer that does.)

    Source: Schlemper et al., A deep cascade of convolutional neural networks for dynamic MR image reconstruction, IEEE
    TMI 2018, equations 5 to 8; any network of the image-to-image kind stands in place of theirs.
    """
    if len(shape) not in (3, 4) or shape[0] != 3 or outputs != 1:
        raise ValueError(f"unrolled takes measured images of shape (3, height, width) and gives one image, got inputs "
                         f"of shape {shape} and {outputs} outputs")  # fmt: skip
    channels = 1 if sees == "magnitude" else 2
    entry = {network: None} if isinstance(network, str) else network
    (name, options), *_ = entry.items()
    multiple, plan = _plan(name, options or {}, shape[1:], channels)
    sides = tuple(side + -side % multiple for side in shape[1:])
    built = [MODELS[name]((channels, *sides), _WIDTH, **(options or {})) for _ in range(cascades)]
    networks = [module for module, _ in built]
    coarsest, decoder = _parted(plan, (channels, *sides))
    codes = [_with_code(network, coarsest) for network in networks]
    weight = {"hard": float("inf"), "none": 0.0}.get(str(consistency))
    weight = float(consistency) if weight is None else weight
    made = Unrolled(
        networks, multiple, weight, parts=channels == 2, axes=len(shape) - 1, width=_WIDTH, decoder=decoder
    )  # fmt: skip
    return made, [codes[-1], *(head for _, own in built for head in own), *made.last]


def _with_code(network: nn.Module, coarsest: str) -> nn.Module:
    """A layer that changes nothing, put behind the coarsest one: what it is given is the latent code."""
    parent, _, own = coarsest.rpartition(".")
    code = nn.Identity()
    setattr(network.get_submodule(parent), own, nn.Sequential(network.get_submodule(coarsest), code))
    return code


def _parted(plan: nn.Module, shape: tuple[int, ...]) -> tuple[str, list[str]]:
    """Path of the last of the layers whose outputs have the fewest pixels, and paths of the layers after it.

    Args:
        plan: the network without numbers.
        shape: of an input.

    Raises:
        ValueError: the network can't be run without numbers, so that nobody knows the order of its layers.
    """
    order, sizes = list[str](), list[int]()

    def ran(path: str) -> Any:
        def hook(layer: nn.Module, inputs: object, outputs: object) -> None:
            if isinstance(outputs, Tensor) and outputs.ndim == len(shape) + 1:
                order.append(path)
                sizes.append(outputs[0, 0].numel())

        return hook

    for path, layer in plan.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(ran(path))
    try:
        plan.eval()(torch.empty(1, *shape, device="meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"the order of its layers can't be found: {error}") from None
    if not order:
        raise ValueError("its network has no layers that give an image")
    last = max(place for place, size in enumerate(sizes) if size == min(sizes))
    before = set(order[: last + 1])
    return order[last], [path for path in dict.fromkeys(order[last + 1 :]) if path not in before]


def _plan(name: str, options: dict[str, Any], sides: tuple[int, ...], channels: int) -> tuple[int, nn.Module]:
    """Sides of which multiples the network takes, and the network for them without numbers.

    Raises:
        ValueError: it takes none; the sentence is that for the image as it is.
    """
    first: ValueError | None = None
    for multiple in _MULTIPLES:
        try:
            with torch.device("meta"):
                plan, _ = MODELS[name]((channels, *(side + -side % multiple for side in sides)), _WIDTH, **options)
        except ValueError as error:
            first = first or error
            continue
        return multiple, plan
    raise first or ValueError(f"{name} can't be built")


#: Networks for reconstruction; each has the option ``network``.
RECONSTRUCTING = ("unrolled",)


def resolve_unrolled(name: str, options: dict[str, Any], place: Place, *, unfit: tuple[str, ...]) -> dict[str, Any]:
    """``options`` of a network for reconstruction in which those of the network in it are complete, too; those of other
    networks as they are.

    Args:
        name: of the network.
        options: its options.
        place: of its entry.
        unfit: networks that can't be in it.

    Raises:
        EntryError: P103 or P104, there is no such network, or it can't be in this one.
    """
    if name not in RECONSTRUCTING:
        return options
    where = (*place, name, "network")
    inner, own = MODELS.resolve(options["network"], where)
    if inner in (*RECONSTRUCTING, *unfit, "bundle"):
        raise EntryError("P104", f"{inner} can't be in a network for reconstruction.",
                         "Name one that gives an image for an image, such as unet.", place=where)  # fmt: skip
    return {**options, "network": {inner: own}}
