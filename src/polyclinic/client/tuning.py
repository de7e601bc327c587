"""Parts that train little of a network that was trained before: low-rank adapters, biases, a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveInt

from polyclinic.limits import Patterns
from polyclinic.models.adapters import Trained, Tuning, tuned
from polyclinic.models.variant import Variant
from polyclinic.parts import LOCAL_PARTS, Part, SiteEnd
from polyclinic.state import FlatModule


class _Frozen(Part):
    """Trains what ``tuning`` says of a frozen network."""

    freezes: ClassVar = True
    tuning: Tuning

    def variant(self, site: str, whole: FlatModule, seed: Sequence[str | int]) -> Variant:
        """The same at all sites."""
        return tuned(whole, self.tuning, seed)

    def at_site(self) -> SiteEnd:
        """Nothing but that."""
        return _Alone()


class _Alone(SiteEnd):
    alone = "sites train a part of a frozen network"


@LOCAL_PARTS.add("lora")
class LoRA(_Frozen):
    """The network is frozen, and each site trains low-rank adapters beside its layers: W + (α / r) B A.

    Sites send A and B. The server takes the product of each site into the weights, and puts these updates together as
    any other: W ← W + (α / r) Σ p_k B_k A_k. So it is exact, where a mean of A and of B apart is not; the adapters of
    the next round start at B = 0 again, with the same A. The model of all rounds is a plain one, with all in its
    weights.

    Source: Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022. That the frozen weights take in
    the exact mean of the products: Singhal et al., FedEx-LoRA, ACL 2025, and Wang et al., FLoRA, NeurIPS 2024, which
    also starts adapters anew. Differs: these send the sites the factors of all; here a site is sent the weights.

    Args:
        rank: r; a layer's own is at most the number of its rows and columns.
        alpha: α.
        layers: patterns of the layers that have adapters; none for all linear layers and convolutions without groups
            that are not trained as they are. Those in PyTorch's ``MultiheadAttention`` can have none: it runs no layer.
        also: what is trained as it is besides: the ``head``, each ``bias``, or ``norm``, the normalisation layers.
    """

    def __init__(
        self, *, rank: PositiveInt = 4, alpha: NonNegativeFloat = 8.0, layers: Patterns = [],  # noqa: B006 - read only
        also: list[Trained] = ["head"],  # noqa: B006
    ) -> None:  # fmt: skip
        self.tuning = Tuning(rank, alpha, tuple(layers), frozenset(also))


@LOCAL_PARTS.add("partial_tuning")
class PartialTuning(_Frozen):
    """The network is frozen but for some of its weights, and sites send no others.

    Source: Ben Zaken et al., BitFit: simple parameter-efficient fine-tuning for transformer-based masked
    language-models, ACL 2022, where all biases and the head are trained.

    Args:
        trains: the ``head``, each ``bias``, or ``norm``, the normalisation layers.
    """

    def __init__(
        self, *, trains: Annotated[list[Trained], Field(min_length=1)] = ["bias", "head"]  # noqa: B006 - read only
    ) -> None:  # fmt: skip
        self.tuning = Tuning(0, 0.0, (), frozenset(trains))
