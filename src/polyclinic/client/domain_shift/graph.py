"""A graph network of each site behind the shared one: what is found of one label says something of the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from polyclinic.client.companion import Companion
from polyclinic.client.optimizers import Named, build_optimizer
from polyclinic.client.personal.models import PERSONAL, Personal
from polyclinic.client.work import clip_gradient
from polyclinic.parts import Memory, SiteView
from polyclinic.parts.predictor import Network, Outputs, Predictor
from polyclinic.seeds import generator
from polyclinic.state import FlatModule
from polyclinic.tasks.multi_label import MultiLabel

#: How often two labels are there: both, neither, only the second, only the first.
_EDGE = 4
#: Cases looked at together.
_AT_ONCE = 32


@PERSONAL.add("label_graph")
class LabelGraph(Personal):
    """A graph of the labels: outputs for one are corrected by those for the others, as these go together at the site.

    A node is a label j, with x_j the outputs of the shared network for it; an edge e_ji of two labels has the shares of
    the site's training cases with both, with neither, with i alone and with j alone, among those in which both are
    known. h_j = x_j U + u, then in each layer h_j ← h_j + relu(h_j W + mean_i h_i Θ(e_ji) + b) over the labels i that
    are ever known together with j, with a matrix Θ(e) = tanh(e M + m), and at the end x_j ← x_j + h_j R. R is zero at
    first, so that nothing changes. The graph network and the edges stay at the site. It is trained with the shared
    network, on the loss of what it gives, by an optimiser of the same kind; terms that parts add see the shared one's
    outputs. A site that did not train has the shared network.

    Source: Chakravarty, Kar, Sethuraman, Sheet, Federated learning for site aware chest radiograph screening, ISBI
    2021, by its abstract and the program that its authors gave to OpenVINO's training extensions (edges, matrices by
    tanh, mean, residual layers). There a node has 512 features of its own, of layers that come before the graph, and
    graph layers have batch normalisation; here it has the outputs for its label, so that any network can be shared.

    Args:
        depth: layers; 0 is the shared model.
        width: numbers of a node between.
    """

    not_stackable = "label_graph trains a graph network behind the shared one"
    keeps_optimizer = False
    mixed_precision = False
    tasks = ("multi_label",)

    def __init__(self, *, depth: NonNegativeInt = 2, width: PositiveInt = 8) -> None:
        self.depth, self.width = depth, width

    def initial(self, view: SiteView) -> Memory:
        """The first graph network ``[D]``, the same at all sites, the edges ``[K, K, 4]``, numbers of outputs."""
        if not self.depth or not isinstance(view.task, MultiLabel):
            return {}
        targets = torch.cat([view.cases(index)[1] for index in torch.arange(view.count()).split(_AT_ONCE)])
        labels = [torch.where(known, (own > 0).long(), -1) for own, known in view.task.of_heads(targets)]
        widths = torch.tensor([task.outputs for task in view.task.each])
        edges = together(torch.stack(labels, 1))
        return {"graph": self._of(int(widths.max())).initial(), "edges": edges, "widths": widths}

    def companion(self, memory: Memory, optimizer: Named, clip: float | None, batches: int) -> Companion | None:
        """Trains the graph network."""
        return _Training(self._graph(memory), memory, optimizer, clip) if memory else None

    def predictor(self, shared: Tensor, memory: Memory) -> Network:
        """The shared network and the graph network."""
        return _Behind(shared, self._graph(memory), memory) if memory else shared

    def end(self, memory: Memory, shared: Tensor, personal: Tensor | None, companion: Companion | None) -> Memory:
        """The graph network after the round."""
        return {**memory, "graph": companion.trained()} if isinstance(companion, _Training) else memory

    def _graph(self, memory: Memory) -> Graph:
        return self._of(int(memory["widths"].max()))

    def _of(self, outputs: int) -> Graph:
        return Graph(outputs, self.width, self.depth)


def together(labels: Tensor) -> Tensor:
    """How often labels go together ``[K, K, 4]``, from labels ``[N, K]`` of 0 and 1, -1 where one is missing.

    Of two that are never known together, and of one with itself, all four are 0.
    """
    has, lacks = (labels == 1).double(), (labels == 0).double()
    found = torch.stack([has.T @ has, lacks.T @ lacks, lacks.T @ has, has.T @ lacks], dim=-1)
    found[torch.arange(labels.shape[1]), torch.arange(labels.shape[1])] = 0
    shares: Tensor = (found / found.sum(-1, keepdim=True).clamp_min(1)).float()
    return shares


@dataclass(frozen=True)
class Graph:
    """A graph network, see `LabelGraph`, whose weights are one vector ``[D]``.

    Attributes:
        outputs: of the label that has most, w.
        width: d.
        depth: layers.
    """

    outputs: int
    width: int
    depth: int

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """U, u; M, m, W, b of each layer; R."""
        width = self.width
        layer = [(_EDGE, width * width), (width * width,), (width, width), (width,)]
        return [(self.outputs, width), (width,), *(layer * self.depth), (width, self.outputs)]

    def initial(self) -> Tensor:
        """Even between ± 1 / √(numbers that go in) ``[D]``, biases and R at zero."""
        source = generator("label graph")
        parts = [
            (2 * torch.rand(shape, generator=source) - 1) / math.sqrt(shape[0]) * (len(shape) > 1)
            for shape in self.shapes[:-1]
        ]
        return torch.cat([*(part.flatten() for part in parts), torch.zeros(math.prod(self.shapes[-1]))])

    def __call__(self, weights: Tensor, edges: Tensor, widths: Tensor, outputs: Tensor) -> Tensor:
        """Outputs ``[B, sum of widths]``, corrected by a graph with ``edges [K, K, 4]`` and ``weights [D]``."""
        given = torch.split(outputs, widths.tolist(), dim=1)
        nodes = torch.stack([nn.functional.pad(own, (0, self.outputs - own.shape[1])) for own in given], 1)
        sizes = [math.prod(shape) for shape in self.shapes]
        first, bias, *layers, last = (
            part.view(shape) for part, shape in zip(weights.split(sizes), self.shapes, strict=True)
        )
        known = edges.sum(-1) > 0
        shares = known / known.sum(1, keepdim=True).clamp_min(1)
        hidden = nodes @ first + bias
        for place in range(0, len(layers), 4):
            matrices, own, kept, added = layers[place : place + 4]
            of_edges = torch.tanh(edges @ matrices + own).view(*edges.shape[:2], self.width, self.width)
            told = torch.einsum("ji,bic,jicd->bjd", shares, hidden, of_edges)
            hidden = hidden + (hidden @ kept + told + added).relu()
        found = torch.unbind(nodes + hidden @ last, 1)
        return torch.cat([own[:, :width] for own, width in zip(found, widths.tolist(), strict=True)], 1)


class _Training(Companion):
    """Trains a graph network for a round."""

    def __init__(self, graph: Graph, memory: Memory, optimizer: Named, clip: float | None) -> None:
        self.graph, self.memory, self.named, self.clip = graph, memory, optimizer, clip
        self.weights = nn.Parameter(memory["graph"].clone())
        self._optimizer: torch.optim.Optimizer | None = None
        self._used: Tensor | None = None

    def step(self, model: FlatModule, backward: Callable[[], Tensor]) -> None:
        """The step with the gradient of the batch before: that of a batch is there once the shared network has it."""
        self._move()

    def mixed(self, inputs: Tensor, outputs: Tensor, features: Tensor) -> Tensor:
        """What the graph network makes of the outputs."""
        self._used = self.weights.detach().to(outputs.device).requires_grad_()
        edges, widths = self.memory["edges"].to(outputs.device), self.memory["widths"]
        return self.graph(self._used, edges, widths, outputs)

    def _move(self) -> None:
        if self._used is None or self._used.grad is None:
            return
        if self._optimizer is None:
            self._optimizer = build_optimizer(self.named, [self.weights])
        gradient, self._used = self._used.grad.to(self.weights.device), None
        clip_gradient(gradient, self.clip)
        self.weights.grad = gradient
        self._optimizer.step()

    def trained(self) -> Tensor:
        """Its weights ``[D]`` after the last batch."""
        self._move()
        return self.weights.detach().to("cpu", copy=True)


@dataclass(frozen=True)
class _Behind(Predictor):
    """A graph network behind a state of the shared one ``[P]``."""

    shared: Tensor
    graph: Graph
    memory: Memory

    def in_use(self, model: FlatModule, index: Tensor) -> Iterator[tuple[Tensor, Outputs]]:
        """All cases together."""
        device = model.vector.device
        model.load(self.shared)
        weights, edges = self.memory["graph"].to(device), self.memory["edges"].to(device)
        widths = self.memory["widths"]
        yield torch.arange(len(index)), lambda inputs: self.graph(weights, edges, widths, model.module(inputs))
