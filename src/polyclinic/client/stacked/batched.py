"""Networks of simple layers, run for many sites at once with batched operators.

`torch.func.vmap` runs any network for stacked sites, but its own work costs as much as a small network's arithmetic.
Fully connected networks, which is what tables of features are given, are therefore run directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

#: ``(inputs [S, B, F], tensors of the layer by name [S, ...], mask [S, B] or None) -> outputs [S, B, G]``.
BatchedLayer = Callable[[Tensor, Mapping[str, Tensor], Tensor | None], Tensor]

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def batched_layers(module: nn.Module, shape: tuple[int, ...]) -> list[tuple[dict[str, str], BatchedLayer]] | None:
    """The layers of a fully connected network, each with its tensors' names (in the layer -> in the network).

    Args:
        module: the network.
        shape: of one input.

    Returns:
        None if some layer has no batched form; then `torch.func.vmap` must run the network.
    """
    if len(shape) != 1:
        return None
    layers = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Sequential):
            continue
        found = _batched(layer)
        if found is None:
            return None
        own = [*layer._parameters, *layer._buffers]
        names = {key: f"{name}.{key}" if name else key for key in own if key != "num_batches_tracked"}
        layers.append((names, found))
    return layers


def _batched(layer: nn.Module) -> BatchedLayer | None:
    if isinstance(layer, nn.Linear):
        return _linear
    if isinstance(layer, _ELEMENTWISE):
        return lambda inputs, tensors, mask: layer(inputs)
    if isinstance(layer, nn.BatchNorm1d) and layer.affine and layer.track_running_stats and layer.momentum is not None:
        momentum, eps = layer.momentum, layer.eps
        return lambda inputs, tensors, mask: batch_norm(inputs, tensors, mask, momentum, eps)
    if isinstance(layer, nn.LayerNorm) and layer.elementwise_affine and len(layer.normalized_shape) == 1:
        return lambda inputs, tensors, mask: _layer_norm(inputs, tensors, layer.eps)
    return None


def _linear(inputs: Tensor, tensors: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
    weight = tensors["weight"].transpose(1, 2)
    if "bias" in tensors:
        return torch.baddbmm(tensors["bias"].unsqueeze(1), inputs, weight)
    return torch.bmm(inputs, weight)


def _layer_norm(inputs: Tensor, tensors: Mapping[str, Tensor], eps: float) -> Tensor:
    outputs = torch.nn.functional.layer_norm(inputs, inputs.shape[-1:], eps=eps) * tensors["weight"].unsqueeze(1)
    return outputs + tensors["bias"].unsqueeze(1) if "bias" in tensors else outputs


def batch_norm(
    inputs: Tensor, tensors: Mapping[str, Tensor], mask: Tensor | None, momentum: float, eps: float
) -> Tensor:
    """Batch normalisation in training whose statistics leave masked cases out; updates the running ones.

    Args:
        inputs: ``[S, B, C, ...]``.
        tensors: ``weight``, ``bias``, ``running_mean`` and ``running_var``, ``[S, C]``.
        mask: ``[S, B]``, 1 for cases and 0 for padding; None where there is no padding.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.
    """
    dims = [1, *range(3, inputs.dim())]
    shape = [inputs.shape[0], 1, -1] + [1] * (inputs.dim() - 3)
    positions = inputs[0, 0, 0].numel()
    if mask is None:
        share, count = 1.0 / (inputs.shape[1] * positions), inputs.new_tensor(float(inputs.shape[1] * positions))
        mean = inputs.sum(dims) * share
        centred = inputs - mean.view(shape)
        variance = centred.square().sum(dims) * share
    else:
        real = mask.view(*mask.shape, *[1] * (inputs.dim() - 2))
        count = (mask.sum(1) * positions).unsqueeze(1)
        mean = (inputs * real).sum(dims) / count
        centred = inputs - mean.view(shape)
        variance = (centred.square() * real).sum(dims) / count
    unbiased = variance.detach() * (count / (count - 1))
    tensors["running_mean"].mul_(1 - momentum).add_(mean.detach() * momentum)
    tensors["running_var"].mul_(1 - momentum).add_(unbiased * momentum)
    scale = (variance + eps).rsqrt() * tensors["weight"]
    return centred * scale.view(shape) + tensors["bias"].view(shape)
