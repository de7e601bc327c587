"""At a site that did not train, each case is predicted by a mixture of all sites' models: IOP-FL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call

from polyclinic.client.companion import Companion
from polyclinic.client.features import evaluating
from polyclinic.client.few_labels.views import strong_view
from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.client.unseen_sites.adapting import entropy
from polyclinic.client.unseen_sites.site_models import SITE_MODEL, SendsModel, SiteModels, by_number
from polyclinic.parts import LOCAL_PARTS, Memory, Part, ServerEnd, SiteEnd, SiteView
from polyclinic.parts.predictor import Network, Outputs, Predictor
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule, Layout

_Share = Annotated[float, Field(ge=0, le=1)]


@PERSONAL.add("accumulated")
class Accumulated(Personal):
    """IOP-FL inside: a site's own cases get θ_k ← α θ_k + (1 − α) w_k, w_k the shared model as the site has trained it.

    θ_k begins as the first w_k. So it holds the steps of all sites, by where each round starts from, and of its own the
    last ones. Nothing is trained besides the shared model.

    Source: Jiang et al., IOP-FL: inside-outside personalization for federated medical image segmentation, IEEE TMI
    2023, as in the authors' code, with α = 0.1 from there.

    Args:
        keep: α; 0 is the shared model as the site has last trained it.
    """

    def __init__(self, *, keep: _Share = 0.1) -> None:
        self.keep = keep

    def model(self, shared: Tensor, memory: Memory) -> Tensor:
        """θ_k; before the first round the shared model."""
        return memory.get("model", shared)

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """θ_k after the round."""
        return {"model": memory["model"].lerp(shared, 1 - self.keep) if memory else shared.clone()}


@LOCAL_PARTS.add("test_time_routing")
class Routing(Part):
    """IOP-FL outside: at a site that did not train, each case is predicted by the mixture of models that is surest.

    Each site sends its own model θ_k with its update: the personal one, if the method has a way to such a model, else
    the shared model as it has trained it. A site that did not train is sent all of them in tests. For each case by
    itself, the tensors of each module of the network are mixed, Σ_m r_m θ_m with r = softmax(a) over these models and
    the shared one; a begins at 0, the mean, and makes ``steps`` steps of Adam down

        H(p) + c · mean (p − p')² + s · mean (max p − min p)

    with p the predictions of the case, H their mean entropy, p' the predictions of a view of other contrast, brightness
    and noise, and for masks the largest and least p of a foreground within ``reach`` pixels of each place: its border
    shall be short. Labels are not looked at, and no other case. Sites that train are not sent anything, and are
    predicted as without it; so the best round and the threshold are theirs.

    Source: Jiang et al., IOP-FL: inside-outside personalization for federated medical image segmentation, IEEE TMI
    2023. Taken from its abstract and the authors' code. There r is, for each layer, a small network of the layer's
    input with a sigmoid, trained over ten passes of all test cases together with the normalisation layers; here r is
    found for each case. Statistics are mixed, too, and give a no gradient. The three terms and c = 0.01 (by the weight
    of H) are from there; the shape's weight is 1e-7 there, of a sum. There the view is also turned and mirrored.

    Args:
        steps: for each case; 0 is the mean of the models.
        lr: rate of Adam.
        consistency: c.
        shape: s.
        reach: in pixels.
        strength: of the view, see `polyclinic.client.few_labels.views.strong_view`.
    """

    reveals: ClassVar = {"model": SITE_MODEL}
    shapes: ClassVar = {"model": Shaped("float32", "P", always="train")}
    tasks = ("classification", "segmentation")
    returns = True
    no_bags = True
    same_network = True

    def __init__(
        self, *, steps: NonNegativeInt = 10, lr: PositiveFloat = 0.1, consistency: NonNegativeFloat = 0.01,
        shape: NonNegativeFloat = 0.01, reach: PositiveInt = 10, strength: _Share = 0.5,
    ) -> None:  # fmt: skip
        self.steps, self.lr, self.consistency, self.shape = steps, lr, consistency, shape
        self.reach, self.strength = reach, strength

    def at_site(self) -> SiteEnd:
        """Sends its own model, or mixes others'."""
        return _Router(self)

    def at_server(self) -> ServerEnd:
        """Keeps the models."""
        return _Models()

    def objective(self, outside: Tensor, view: Tensor) -> Tensor:
        """What the mixture of a case goes down.

        Args:
            outside: probabilities of classes ``[1, C, ...]`` or of foreground ``[1, 1, ...]``.
            view: the same of the view.
        """
        found = entropy(outside) + self.consistency * (outside - view).square().mean()
        if outside.dim() > 2 and self.shape:
            found = found + self.shape * local_range(outside[:, 1:] if outside.shape[1] > 1 else outside, self.reach)
        return found


class _Models(SiteModels):
    predicts_elsewhere = True

    def predicting(self) -> Memory:
        return self.numbered(self.models)


class _Router(SendsModel):
    supposes_scale = True

    def __init__(self, part: Routing) -> None:
        self.part = part

    def adapted(self, network: Network, index: Tensor, inputs: Callable[[Tensor], Tensor], view: SiteView) -> Network:
        """The mixture for each case."""
        sent = by_number(view.sent)
        if not sent:
            return network
        models = torch.stack([*(sent[number] for number in sorted(sent)), view.vector]).to(view.model.vector.device)
        groups = modules_of(view.layout).to(models.device)
        found = {case: self._route(models, groups, inputs(torch.tensor([case])), view, case) for case in index.tolist()}
        return Routed(models, groups, found)

    def _route(self, models: Tensor, groups: Tensor, inputs: Tensor, view: SiteView, case: int) -> Tensor:
        """a of a case ``[M, L]``."""
        part, source = self.part, view.generator("routing", case)
        logits = nn.Parameter(models.new_zeros(len(models), int(groups.max()) + 1))
        optimizer = torch.optim.Adam([logits], lr=part.lr)
        for _ in range(part.steps):
            other = strong_view(inputs, source, part.strength, cut=False)
            with torch.enable_grad():
                both = [_probabilities(mixture(models, groups, logits), one, view) for one in (inputs, other)]
                (logits.grad,) = torch.autograd.grad(part.objective(*both), logits)
            if not logits.grad.isfinite().all():  # the mixture stays as it is
                break
            optimizer.step()
        return logits.detach()


def _probabilities(vector: Tensor, inputs: Tensor, view: SiteView) -> Tensor:
    """Of a case with the state ``vector [P]``, with gradient but for statistics of normalisation layers."""
    trained = {entry.name for entry in view.layout.entries if entry.trainable}
    tensors = {name: one if name in trained else one.detach() for name, one in view.layout.split(vector).items()}
    with evaluating(view.model):
        outputs = functional_call(view.model.module, tensors, (inputs.to(vector.device),))
    return view.task.probabilities(outputs)


@dataclass(frozen=True)
class Routed(Predictor):
    """A mixture of states of a network for each case.

    Attributes:
        models: these states ``[M, P]``.
        groups: the module of each coordinate ``[P]``.
        logits: position of each case -> how much each model counts in each module ``[M, L]``.
    """

    models: Tensor
    groups: Tensor
    logits: Mapping[int, Tensor]

    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """Each case by itself."""
        for place, case in enumerate(index.tolist()):
            model.load(mixture(self.models, self.groups, self.logits[case]))
            yield torch.tensor([place]), model.module


def mixture(models: Tensor, groups: Tensor, logits: Tensor) -> Tensor:
    """Σ_m r_m θ_m ``[P]`` of models ``[M, P]``, with r = softmax of ``logits [M, L]`` in each coordinate's module."""
    found: Tensor = (logits.softmax(0)[:, groups] * models).sum(0)
    return found


def modules_of(layout: Layout) -> Tensor:
    """Number of the module that each coordinate is of ``[P]``."""
    names = [entry.name.rpartition(".")[0] for entry in layout.entries]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    sizes = torch.tensor([entry.size for entry in layout.entries])
    return torch.tensor([numbers[name] for name in names]).repeat_interleave(sizes)


def local_range(foreground: Tensor, reach: int) -> Tensor:
    """Mean over places of the largest less the least value within ``reach`` of them, of ``[B, C, H, W]`` or volumes."""
    pool = F.max_pool2d if foreground.dim() == 4 else F.max_pool3d
    most, least = (pool(one, 2 * reach + 1, stride=1, padding=reach) for one in (foreground, -foreground))
    found: Tensor = (most + least).mean()
    return found
