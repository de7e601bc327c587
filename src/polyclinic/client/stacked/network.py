"""One network run for many sites at once: each site's weights are a row of a matrix."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from polyclinic.client.features import mean_over_places
from polyclinic.client.stacked.batched import batch_norm, batched_layers
from polyclinic.parts.site_end import Beside
from polyclinic.state import FlatModule, Layout


class StackedNetwork:
    """A network in training for many sites.

    Args:
        module: used as a template, its own state is not touched.
        layout: of its state.
        shape: of one input.
    """

    def __init__(self, module: nn.Module, layout: Layout, shape: tuple[int, ...]) -> None:
        self.layout = layout
        self.module = copy.deepcopy(module).train()
        self.layers = batched_layers(self.module, shape)
        self.mask = _replace_batch_norm(self.module)

    def outputs(self, weights: Tensor, statistics: Tensor, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Outputs of the network ``[S, B, ...]``.

        Args:
            weights: trainable weights of each site ``[S, T]``.
            statistics: the rest of its state ``[S, P - T]``; running statistics are moved on in place.
            inputs: ``[S, B, ...]``.
            mask: ``[S, B]``, 1 for cases and 0 for padding; None where there is no padding.
        """
        if self.layers is None:
            run = vmap(self._one_site, in_dims=(0, 0, 0, None if mask is None else 0))
            outputs: Tensor = run(weights, statistics, inputs, mask)
            return outputs
        tensors = self.tensors(weights, statistics)
        for names, layer in self.layers:
            inputs = layer(inputs, {own: tensors[name] for own, name in names.items()}, mask)
        return inputs

    def outputs_with(
        self, weights: Tensor, statistics: Tensor, inputs: Tensor, then: Callable[..., Tensor], more: object,
        model: FlatModule | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Outputs ``[S, B, ...]``, and what ``then`` makes of each site's, run with `torch.func.vmap`, ``[S]``.

        Args:
            weights: see ``outputs``, as the next two.
            statistics: likewise.
            inputs: likewise; none is padding.
            then: is given a site's outputs, what its head was given, averaged over places ``[B, G]``, the network as it
                then is, and its own of ``more``.
            more: tensors ``[S, ...]`` in lists and dictionaries.
            model: where the head is looked up; None if features are not needed, which are then its outputs.
        """
        found: list[Tensor] = []
        hook = None if model is None else self._head(model).register_forward_pre_hook(
            lambda layer, given: found.append(given[0])
        )  # fmt: skip

        def one_site(weights: Tensor, statistics: Tensor, inputs: Tensor, own: object) -> tuple[Tensor, Tensor]:
            found.clear()
            outputs = self._one_site(weights, statistics, inputs, None)
            network = Beside(
                lambda others: self._one_site(weights, statistics, others, None),
                lambda: torch.cat([weights.detach(), statistics]),
            )
            return outputs, then(outputs, mean_over_places(found[0]) if found else outputs, network, own)

        try:
            both: tuple[Tensor, Tensor] = vmap(one_site)(weights, statistics, inputs, more)
        finally:
            found.clear()
            if hook is not None:
                hook.remove()
        return both

    def _head(self, model: FlatModule) -> nn.Module:
        """The layer of the copy that stands for the first of the head.

        Raises:
            LookupError: the model has none.
        """
        names = [name for name, layer in model.module.named_modules() if model.head and layer is model.head[0]]
        return self.module.get_submodule(names[0])

    def _one_site(self, weights: Tensor, statistics: Tensor, inputs: Tensor, mask: Tensor | None) -> Tensor:
        self.mask.clear()
        if mask is not None:
            self.mask.append(mask)
        outputs: Tensor = functional_call(self.module, self.tensors(weights, statistics), (inputs,))
        return outputs

    def tensors(self, weights: Tensor, statistics: Tensor) -> dict[str, Tensor]:
        """The model's tensors by name from ``[..., T]`` and ``[..., P - T]``."""
        parts = [*weights.split(self._sizes(True), -1), *statistics.split(self._sizes(False), -1)]
        named = zip(self.layout.entries, parts, strict=True)
        return {entry.name: part.view(*part.shape[:-1], *entry.shape) for entry, part in named}

    def _sizes(self, trainable: bool) -> list[int]:
        return [entry.size for entry in self.layout.entries if entry.trainable is trainable]


class _MaskedBatchNorm(nn.Module):
    """Batch normalisation under `torch.func.vmap` whose statistics leave masked cases out.

    Args:
        norm: the layer it stands for; parameters and buffers keep their names.
        mask: holds the mask ``[B]`` of the current step, or nothing where no case is masked.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, mask: list[Tensor]) -> None:
        super().__init__()
        self.momentum, self.eps, self.mask = float(norm.momentum or 0.0), norm.eps, mask
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise ``[B, C, ...]``."""
        names = ("weight", "bias", "running_mean", "running_var")
        tensors = {name: getattr(self, name).unsqueeze(0) for name in names}
        mask = self.mask[0].unsqueeze(0) if self.mask else None
        return batch_norm(inputs.unsqueeze(0), tensors, mask, self.momentum, self.eps).squeeze(0)


def _replace_batch_norm(module: nn.Module) -> list[Tensor]:
    """Put a masked layer in the place of each batch normalisation; returns the holder of the mask."""
    mask: list[Tensor] = []
    for layer in list(module.modules()):
        for name, child in list(layer.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(layer, name, _MaskedBatchNorm(child, mask))
    return mask
