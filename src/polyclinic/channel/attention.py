"""Sites send what their models find in a public set, and where they look, in the place of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as nnf
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from polyclinic.data.dataset import Dataset
from polyclinic.errors import StudyError, TrainingError
from polyclinic.parts import CHANNEL_PARTS, Ended, Memory, Now, Part, ServerEnd, SiteEnd, SiteView, Step, Update
from polyclinic.parts.distilling import distil, divergence, evaluated, falling_adam, shuffled
from polyclinic.randomness import own_randomness
from polyclinic.seeds import generator
from polyclinic.shapes import Misfit, Shaped
from polyclinic.state import FlatModule

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
#: Slope and middle of the soft thresholds for what the student looks at, and for what some site looks at.
_SHARP, _STUDENT, _UNION = 10.0, 0.6, 0.3
_PICTURES = 16


@CHANNEL_PARTS.add("attention_distillation")
class AttentionDistillation(Part):
    """FedAD: sites send logits and attention maps of a public set instead of weights; the server's model learns both.

    With K sites, logits z_k and attention A_k in [0, 1] of a public case, the server's model (z, A) learns by Adam:

    - logits: T² · KL(σ(z̄ / T) ‖ σ(z / T)) with z̄_c = Σ_k ω_kc z_kc and ω_kc = n_kc / Σ_j n_jc, the site's share of the
      training cases of class c. So a site says little of classes that it hardly knows. Where there are no classes, or
      one logit for two of them, ω_k is the site's share of all cases.
    - attention: β (L_I + L_U). What all sites look at, I = min_k A_k, the student shall look at, too: L_I = −Σ τ(A) I /
      Σ τ(A) with τ(a) = 1 / (1 + e^{−10 (a − 0.6)}). It shall look at nothing that no site looks at, U = max_k A_k:
      L_U = −Σ τ'(U) A / Σ A with 0.3 for 0.6 in τ'. Sums are over the places of a picture.

    It is made for one round with much local training (``training: {rounds: 1, local_epochs: 50}``): sites train from
    the first model, and what they found is distilled once. In further rounds they go on from the server's model. What
    is sent to sites is the server's model; nothing of one site comes to another.

    An attention map is Σ_c F_c² over the channels of what the last convolution that has several places gives
    (Zagoruyko and Komodakis, ICLR 2017), brought to [0, 1] in each picture. Sites may have networks of their own
    (``networks:`` in a study file): such a site starts from weights of its own and goes on from where it was, and the
    server brings its maps to the size of those of the study's network, which alone is sent, validated and tested.

    Source: Gong et al., Ensemble attention distillation for privacy-preserving federated learning, ICCV 2021. Its text
    was not at hand: the abstract was, and the two attention terms with their constants as two public programs have
    them. There maps are Grad-CAM's, one for each class, and a step draws some of the sites. Here the optimiser, T, and
    the number of steps are this program's own choice.

    Args:
        steps: of the server in a round.
        lr: of Adam at a round's first step; it falls to 0 along a cosine.
        batch_size: public cases in a step.
        temperature: T.
        attention: β; 0 sends no maps.
    """

    tasks = ("classification", "segmentation")
    images_only = True
    encodes: ClassVar = True
    needs_public = True
    retells = True
    replaces: ClassVar = True
    reveals: ClassVar = {
        "logits": "what the site's model finds in each public case: which classes it knows and how sure it is of them, "
        "and, where a patient of the site is in the public set or near one of its cases, that it trained on such a "
        "case",
        "attention": "where in each public picture the site's model looks: what it goes by, likewise",
        "classes": "training cases of each class",
    }
    same_network = True
    own_networks = True

    def __init__(
        self, *, steps: PositiveInt = 200, lr: PositiveFloat = 0.001, batch_size: Annotated[int, Field(ge=2)] = 32,
        temperature: PositiveFloat = 1.0, attention: NonNegativeFloat = 1.0,
    ) -> None:  # fmt: skip
        self.steps, self.lr, self.batch_size = steps, lr, batch_size
        self.temperature, self.attention = temperature, attention
        map_of = Shaped("float32", "U", "rows", "columns", least=0, most=1, always="train")
        maps = {"attention": map_of} if attention else {}
        self.shapes: Mapping[str, Shaped] = {  # type: ignore[misc]
            "logits": Shaped("float32", "U", "V", always="train"), **maps, "classes": Shaped("float64", "C", least=0),
        }  # fmt: skip

    def at_site(self) -> SiteEnd:
        """Looks at the public set."""
        return _Looking(self)

    def at_server(self) -> ServerEnd:
        """Learns."""
        return _Learning(self)

    def leaves(self, before: Mapping[str, Shaped], sizes: Mapping[str, int]) -> Mapping[str, Shaped]:
        """All but the weights."""
        return {name: shaped for name, shaped in before.items() if name not in ("change", "statistics")}


class _Looking(SiteEnd):
    def __init__(self, part: AttentionDistillation) -> None:
        self.part = part

    def meet(self, view: SiteView) -> Memory:
        """Which classes the site knows."""
        return {} if view.class_counts is None else {"classes": view.class_counts.clone()}

    def end(self, ended: Ended, given: Memory) -> Memory:
        """What its model finds in the public set, and where it looks."""
        public = ended.view.public
        if public is None:
            return {}
        logits, maps = seen(ended.view.model, ended.vector, public, attention=bool(self.part.attention))
        return {"logits": logits, **({"attention": maps} if self.part.attention else {})}

    def close(self, packed: Memory) -> Memory:
        """Weights stay here."""
        return {name: tensor for name, tensor in packed.items() if name not in ("change", "statistics")}


class _Learning(ServerEnd):
    needs_each = True
    needs_public = True
    needs_whole = True

    def __init__(self, part: AttentionDistillation) -> None:
        self.part = part
        self._classes: dict[str, Tensor] = {}

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Which classes the sites know."""
        self._classes = {site: told["classes"] for site, told in announced.items() if "classes" in told}

    def begin(self, now: Now) -> None:
        """Begin a round."""
        super().begin(now)
        self._updates: list[Update] = []

    def open(self, packed: Memory) -> Memory:
        """The site's weights are not known: as if it had not moved."""
        maps = packed.get(f"{self.name}/attention")
        if maps is not None:
            self._check(maps, of_study=bool(len(self.now.weights)))
        nothing = torch.zeros_like(self.now.weights)
        return {**packed, "change": nothing, "statistics": self.now.statistics.clone()}

    def take(self, update: Update) -> Update:
        """Keep what the site found."""
        self._updates.append(update)
        return update

    def finish(self, step: Step) -> Step:
        """Learn."""
        updates, self._updates = self._updates, []
        logits = ensemble([self.sent(one)["logits"] for one in updates], self._shares(updates))
        maps = [self._alike(self.sent(one)["attention"]) for one in updates] if self.part.attention else []
        after = self._learned(logits, maps)
        size = len(self.now.weights)
        return Step(after[:size] - self.now.weights, after[size:].clone(), step.shares)

    def _public(self) -> Dataset:
        public = self.workplace.public
        if public is None:
            raise StudyError("P102", f"{self.name} works on a public set, and the server has none.",
                             "Give `data: {public: ...}`.")  # fmt: skip
        return public

    def _check(self, maps: Tensor, *, of_study: bool) -> None:
        """Whether maps are of the size that the server's own network has; those of another network are of any.

        Raises:
            Misfit: they are not, or have no place.
        """
        wanted = self._places() if of_study else tuple(maps.shape[1:])
        if tuple(maps.shape[1:]) != wanted or not maps.numel():
            raise Misfit(f"attention: got {list(maps.shape)}, expected {[len(self._public()), *self._places()]}")

    def _places(self) -> tuple[int, ...]:
        """Rows and columns of a map of the server's own network."""
        if not hasattr(self, "_known"):
            state, public = self.workplace.network.vector.cpu().clone(), self._public()
            few = torch.arange(min(2, len(public)))
            self._known = tuple(seen(self.workplace.network, state, public, few, attention=True)[1].shape[1:])
        return self._known

    def _alike(self, maps: Tensor) -> Tensor:
        """A site's maps ``[U, rows, columns]`` in the size of the server's own ``[U, places]``."""
        if tuple(maps.shape[1:]) != self._places():
            maps = nnf.interpolate(maps[:, None], self._places(), mode="bilinear", align_corners=False)[:, 0]
        return maps.flatten(1)

    def _shares(self, updates: Sequence[Update]) -> Tensor:
        """ω ``[K, C]``, or ``[K, 1]`` where no classes are known or outputs are not one of them each."""
        known = [self._classes.get(update.site) for update in updates]
        width = self.sent(updates[0])["logits"].shape[1]
        counts = [one.double() for one in known if one is not None and len(one) == width]
        if len(counts) < len(updates):
            counts = [torch.tensor([update.weight], dtype=torch.float64) for update in updates]
        each = torch.stack(counts)
        total = each.sum(0)
        return torch.where(total > 0, each / total.clamp_min(1e-30), 1 / len(updates))

    def _learned(self, wanted: Tensor, maps: Sequence[Tensor]) -> Tensor:
        part, now, place, public = self.part, self.now, self.workplace, self._public()
        order = shuffled(len(public), part.batch_size, generator(self.name, now.seed, now.fold, now.number))
        together = torch.stack(list(maps)) if maps else None
        device = place.network.vector.device
        with recorded(place.network) as found, own_randomness(self.name, now.seed, now.fold, now.number, device=device):

            def term(outputs: Tensor, index: Tensor) -> Tensor:
                loss = divergence(place.task, outputs, wanted[index], part.temperature)
                if together is not None:
                    chosen = together[:, index].to(device)
                    loss = loss + part.attention * looks(attention_of(found).flatten(1), chosen.amin(0), chosen.amax(0))
                found.clear()
                return loss

            state = torch.cat([now.weights, now.statistics])
            return distil(
                place.network, state, public, islice(order, part.steps), term, falling_adam(part.lr, part.steps),
                training=True,
            )  # fmt: skip


def ensemble(logits: Sequence[Tensor], shares: Tensor) -> Tensor:
    """z̄ ``[U, V]`` of the sites' logits ``[U, V]`` with shares ``[K, V]`` or ``[K, 1]``."""
    return (torch.stack([one.double() for one in logits]) * shares[:, None]).sum(0).float()


def looks(own: Tensor, common: Tensor, union: Tensor) -> Tensor:
    """L_I + L_U of maps ``[B, places]``, a mean over cases; see `AttentionDistillation`."""
    chosen = torch.sigmoid(_SHARP * (own - _STUDENT))
    allowed = torch.sigmoid(_SHARP * (union - _UNION))
    inside = (chosen * common).sum(1) / chosen.sum(1)
    outside = (allowed * own).sum(1) / own.sum(1).clamp_min(1e-12)
    return -(inside + outside).mean()


def seen(
    model: FlatModule, vector: Tensor, public: Dataset, index: Tensor | None = None, *, attention: bool
) -> tuple[Tensor, Tensor]:
    """Logits ``[K, V]`` and attention maps ``[K, rows, columns]`` of a model ``[P]``, as in evaluation.

    Maps are ``[K, 0, 0]`` where none are asked for.
    """
    chosen = torch.arange(len(public)) if index is None else index
    logits, maps = list[Tensor](), list[Tensor]()
    with recorded(model) as found, evaluated(model, vector), torch.no_grad():
        for part in chosen.split(_PICTURES):
            found.clear()
            logits.append(model.module(public.batch(part)[0].to(model.vector.device)).flatten(1).float().cpu())
            maps.append(attention_of(found).cpu() if attention else torch.empty(len(part), 0, 0))
    return torch.cat(logits), torch.cat(maps)


@contextmanager
def recorded(model: FlatModule) -> Iterator[list[Tensor]]:
    """What convolutions give ``[B, C, H, W]``, as the network runs."""
    found = list[Tensor]()
    layers = [layer for layer in model.module.modules() if isinstance(layer, _CONVOLUTIONS)]
    hooks = [layer.register_forward_hook(lambda _, __, output: found.append(output)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def attention_of(found: Sequence[Tensor]) -> Tensor:
    """The map ``[B, rows, columns]``, from 0 to 1, of what convolutions gave, with gradient.

    Raises:
        TrainingError: P302, the network has no convolution that gives several places.
    """
    wide = [one for one in found if one.ndim == 4 and one.shape[2] * one.shape[3] > 1]
    if not wide:
        raise TrainingError("P302", "attention_distillation asks where the network looks, and no convolution of it "
                            "gives several places.", "Use a convolutional network, or `attention: 0`.")  # fmt: skip
    energy = wide[-1].float().square().sum(1)
    low, high = energy.amin((1, 2), keepdim=True), energy.amax((1, 2), keepdim=True)
    return ((energy - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
