"""Model state as one flat vector with a layout.

All floating-point parameters and statistics of a model live in one contiguous float32 vector ``[P]``; the module's own
tensors are views into it. Local optimisers, aggregation, compression and encryption are then single vector operations.
Integer buffers (such as batch normalisation's ``num_batches_tracked``) stay in the module and are never averaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polyclinic import paths
from polyclinic.errors import TrainingError
from polyclinic.roles import Role as Role

#: Normalisation layers by type, so that none is missed because of its name (``downsample.1`` is one, too).
NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Entry:
    """One tensor's place in the vector: ``vector[offset : offset + size].view(shape)``.

    ``paths`` are all its names: a tensor that several modules use has more than one.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int
    role: Role
    trainable: bool
    paths: tuple[str, ...]

    def named(self, patterns: Iterable[str]) -> bool:
        """Whether a pattern (see `polyclinic.paths`) names it, or a module that it is in."""
        return any(paths.names(pattern, path) for pattern in patterns for path in self.paths)


@dataclass(frozen=True)
class Selection:
    """Some coordinates of a vector, as sorted, disjoint, non-empty ``(start, stop)`` slices.

    Attributes:
        slices: the coordinates chosen.
        size: how many they are, Q.
        trainable: how many of them are trainable; these come first.
        total: length P of the vectors it applies to.
    """

    slices: tuple[tuple[int, int], ...]
    size: int
    trainable: int
    total: int

    @property
    def everything(self) -> bool:
        """Whether all coordinates are chosen."""
        return self.size == self.total

    def take(self, vector: Tensor) -> Tensor:
        """The chosen coordinates ``[..., Q]`` of ``vector [..., P]``; a view where one slice suffices."""
        if len(self.slices) == 1:
            start, stop = self.slices[0]
            return vector[..., start:stop]
        return torch.cat([vector[..., start:stop] for start, stop in self.slices] or [vector[..., :0]], dim=-1)

    def within(self, total: int) -> Selection:
        """Those of the chosen coordinates that are among the first ``total``."""
        slices = tuple((start, min(stop, total)) for start, stop in self.slices if start < total)
        size = sum(stop - start for start, stop in slices)
        return Selection(slices, size, size, self.total)

    def others(self, total: int) -> Selection:
        """All of the first ``total`` coordinates that are not chosen."""
        slices, position = [], 0
        for start, stop in (*self.slices, (total, total)):
            if position < min(start, total):
                slices.append((position, min(start, total)))
            position = max(position, stop)
        size = sum(stop - start for start, stop in slices)
        return Selection(tuple(slices), size, size, self.total)

    def fill(self, vector: Tensor, value: float) -> None:
        """Write ``value`` into the chosen coordinates of ``vector [..., P]``."""
        for start, stop in self.slices:
            vector[..., start:stop] = value

    def put(self, vector: Tensor, values: Tensor) -> None:
        """Write ``values [..., Q]`` into the chosen coordinates of ``vector [..., P]``."""
        position = 0
        for start, stop in self.slices:
            vector[..., start:stop] = values[..., position : position + stop - start]
            position += stop - start


@dataclass(frozen=True)
class Layout:
    """Names, shapes, places and roles of all tensors in a model's state vector.

    Attributes:
        entries: in vector order: trainable parameters first, then frozen parameters, then floating-point buffers.
        size: length P of the vector.
        trainable: number T of trainable coordinates, ``vector[:T]``.
    """

    entries: tuple[Entry, ...]
    size: int
    trainable: int

    @classmethod
    def of(cls, module: nn.Module, head: Iterable[nn.Module] = ()) -> Layout:
        """The layout of ``module``; ``head`` are the submodules that the model declares as its head.

        If the module has ``named_parts``, a mapping of names to paths of submodules, tensors are found under these
        names, too: ``a.weight`` of the part ``decoder`` is also ``decoder.a.weight``.
        """
        in_head = {id(part) for layer in head for part in layer.modules()}
        found: dict[str, tuple[Tensor, Role, int]] = {}
        seen: set[int] = set()
        for prefix, layer in module.named_modules():
            is_norm, is_head = isinstance(layer, NORMALISATION), id(layer) in in_head
            for name, parameter in layer.named_parameters(recurse=False):
                if id(parameter) not in seen:  # tied weights are one tensor
                    seen.add(id(parameter))
                    role = Role.NORM_WEIGHT if is_norm else Role.HEAD if is_head else Role.WEIGHT
                    found[_join(prefix, name)] = (parameter, role, 0 if parameter.requires_grad else 1)
            for name, buffer in layer.named_buffers(recurse=False):
                if buffer.is_floating_point() and id(buffer) not in seen:
                    seen.add(id(buffer))
                    found[_join(prefix, name)] = (buffer, Role.NORM_STATISTIC if is_norm else Role.BUFFER, 2)
        named = defaultdict[int, list[str]](list)
        for every in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
            for path, tensor in every:
                named[id(tensor)].append(path)
        entries, offset, trainable = [], 0, 0
        for name, (tensor, role, group) in sorted(found.items(), key=lambda item: item[1][2]):  # stable: keeps order
            every_path = (*named[id(tensor)], *_of_parts(module, named[id(tensor)]))
            entries.append(Entry(name, tuple(tensor.shape), offset, tensor.numel(), role, group == 0, every_path))
            offset += tensor.numel()
            trainable += tensor.numel() if group == 0 else 0
        return cls(tuple(entries), offset, trainable)

    def select(self, roles: Iterable[Role], modules: Sequence[str] = (), without: Sequence[str] = ()) -> Selection:
        """All coordinates whose role is one of ``roles``, in tensors that a pattern of ``modules`` names (of all, if
        there is none), and none of ``without`` does."""
        chosen = set(roles)
        return self._selection(
            entry
            for entry in self.entries
            if entry.role in chosen and (not modules or entry.named(modules)) and not entry.named(without)
        )

    def rest(self, chosen: Selection) -> Selection:
        """All coordinates that are not ``chosen``, which are whole tensors."""
        inside = {entry.name for entry in self.inside(chosen)}
        return self._selection(entry for entry in self.entries if entry.name not in inside)

    def inside(self, chosen: Selection) -> list[Entry]:
        """The tensors that are chosen, which are chosen as a whole."""
        there = [entry for entry in self.entries if entry.size]
        return [one for one in there if any(start <= one.offset < stop for start, stop in chosen.slices)]

    def _selection(self, entries: Iterable[Entry]) -> Selection:
        slices: list[tuple[int, int]] = []
        trainable = 0
        for entry in entries:
            if entry.size:
                trainable += entry.size if entry.trainable else 0
                if slices and slices[-1][1] == entry.offset:
                    slices[-1] = (slices[-1][0], entry.offset + entry.size)
                else:
                    slices.append((entry.offset, entry.offset + entry.size))
        return Selection(tuple(slices), sum(stop - start for start, stop in slices), trainable, self.size)

    def unnamed(self, patterns: Iterable[str]) -> list[str]:
        """The patterns that name no tensor."""
        return [pattern for pattern in patterns if not any(entry.named([pattern]) for entry in self.entries)]

    def shapes(self, chosen: Selection) -> list[tuple[int, ...]]:
        """Shapes of the weights among the chosen coordinates, in their order."""
        return [entry.shape for entry in self.inside(chosen) if entry.trainable]

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Name -> tensor, as views into ``vector [P]``."""
        parts = vector.split(self._sizes)
        return {entry.name: part.view(entry.shape) for entry, part in zip(self.entries, parts, strict=True)}

    @cached_property
    def _sizes(self) -> list[int]:
        return [entry.size for entry in self.entries]


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _of_parts(module: nn.Module, names: Sequence[str]) -> Iterator[str]:
    """Further names of a tensor, by the parts that a network has named."""
    parts: Mapping[str, Collection[str]] = getattr(module, "named_parts", {})
    for name, members in parts.items():
        yield from (f"{name}.{path}" for path in names if not set(paths.containing(path)).isdisjoint(members))


class FlatModule:
    """A module whose parameters, gradients and floating-point buffers are views into flat vectors.

    Attributes:
        module: the network.
        layout: its layout.
        head: the submodules that are its head.
        vector: float32 ``[P]``: writing here changes the network.
        gradient: float32 ``[T]``: ``backward`` adds into it.
        weights: a parameter that aliases ``vector[:T]`` and whose gradient is ``gradient``: what an optimiser is given.
        shape: of one input that it was built for; empty where that is not known.
    """

    def __init__(
        self, module: nn.Module, head: Sequence[nn.Module] = (), device: torch.device | str = "cpu",
        shape: Sequence[int] = (),
    ) -> None:  # fmt: skip
        wrong = {str(t.dtype) for t in module.parameters() if t.dtype != torch.float32}
        if wrong:
            raise TrainingError(
                "P302",
                f"The model has parameters of type {', '.join(sorted(wrong))}; only torch.float32 is supported.",
                "Build the model in float32; mixed precision is switched on with `engine: {precision: mixed}`.",
            )
        self.module = module.to(device)
        self.layout, self.head, self.shape = Layout.of(module, head), tuple(head), tuple(shape)
        self.vector = torch.empty(self.layout.size, device=device)
        self.gradient = torch.zeros(self.layout.trainable, device=device)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        gradients = self.gradient.split([entry.size for entry in self.layout.entries if entry.trainable])
        for index, (entry, view) in enumerate(
            zip(self.layout.entries, self.layout.split(self.vector).values(), strict=True)
        ):
            tensor = tensors[entry.name]
            view.copy_(tensor.detach())
            tensor.data = view
            if entry.trainable:
                tensor.grad = gradients[index].view(entry.shape)
        self.weights = nn.Parameter(self.vector[: self.layout.trainable])
        self.weights.grad = self.gradient
        self._integers = [(b, b.clone()) for b in module.buffers() if not b.is_floating_point()]
        norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
        self._counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]

    def parameters_of(self, chosen: Selection | None, *, whole: bool = False) -> list[nn.Parameter]:
        """What an optimiser is given to train the chosen weights only, or all for None: views with their gradients.

        They are as few as possible, or for an optimiser that looks at ``whole`` tensors, the network's own parameters.
        """
        if whole:
            tensors = dict(self.module.named_parameters())
            places = [(0, self.layout.trainable)] if chosen is None else chosen.slices
            trained = [entry for entry in self.layout.entries if entry.trainable]
            return [tensors[one.name] for one in trained if any(start <= one.offset < stop for start, stop in places)]
        if chosen is None:
            return [self.weights]
        parameters = []
        for start, stop in chosen.within(self.layout.trainable).slices:
            part = nn.Parameter(self.vector[start:stop])
            part.grad = self.gradient[start:stop]
            parameters.append(part)
        return parameters

    def record_features(self, found: list[Tensor]) -> RemovableHandle:
        """From now on put what the head is given ``[B, ...]`` into ``found``, until the handle is removed.

        Raises:
            TrainingError: P302 if the model has no head.
        """
        if not self.head:
            raise TrainingError("P302", "The model declares no head, so it has no features before its head.",
                                "Choose another model, or name its `head`.")  # fmt: skip
        return self.head[0].register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0]))

    def remember(self) -> Callable[[], None]:
        """Gives what puts weights, statistics and integer buffers back to what they are now."""
        vector, integers = self.vector.clone(), [(buffer, buffer.clone()) for buffer, _ in self._integers]

        def put_back() -> None:
            for buffer, value in [(self.vector, vector), *integers]:
                buffer.copy_(value)

        return put_back

    def load(self, vector: Tensor, batches: int = 0) -> None:
        """Copy ``vector [P]`` into the network; integer buffers return to their initial values.

        Args:
            vector: of the state.
            batches: of how many batches the state's normalisation statistics are; with ``momentum: null`` the next
                batch counts for 1 / (batches + 1) in them.
        """
        self.vector.copy_(vector)
        for buffer, initial in self._integers:
            buffer.copy_(initial)
        for counter in self._counters:
            counter += batches
