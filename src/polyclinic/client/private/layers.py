"""Gradients of single cases from one backward pass, layer by layer.

A layer's weight gradient is a sum over cases, of something made of what went into the layer and of the gradient at what
came out of it. Both are there in an ordinary backward pass over a whole batch. So the pass is made without weight
gradients, and each layer's are then made case by case, at about the cost of the one sum that they take the place of
(Goodfellow 2015; Rochette et al. 2019).

Where a linear layer is given one vector a case, the case's gradient is the outer product of two vectors, and neither
its norm nor the sum over cases needs it ("ghost clipping": Li et al. 2022; in one pass: Bu et al. 2023). Layers that
are given many positions a case could have their norms without gradients, too, from inner products of all pairs of
positions. It is not done: where positions cancel each other out, such a norm is rounding, and what is clipped by it can
be longer than the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: ``(layer, what went in [B, ...], gradient at what came out [B, ...]) -> weight and bias gradients [B, ...]``; either
#: is None where the layer has none that is trained.
Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
#: On a processor, convolutions of so many input channels are faster one case after another than as groups of one, if
#: they have so many output channels and places at least. Measured on 26 shapes of two and three dimensions.
_INPUTS, _OUTPUTS, _PLACES = range(2, 5), 16, 1024


def trained_layers(module: nn.Module, trained: set[nn.Parameter]) -> dict[str, nn.Module] | None:
    """The layers that hold the trained parameters, by name; None if a layer's gradients can't be taken case by case."""
    found: dict[str, nn.Module] = {}
    held: set[nn.Parameter] = set()
    for name, layer in module.named_modules():
        own = {parameter for parameter in layer.parameters(recurse=False) if parameter in trained}
        if not own:
            continue
        if own & held or not _known(layer):  # tied weights, or a layer of another kind
            return None
        held |= own
        found[name] = layer
    return found


def _known(layer: nn.Module) -> bool:
    """Whether there is a rule for exactly this type; a subclass may do something else."""
    if type(layer) not in _RULES or layer._forward_pre_hooks:
        return False
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return not (isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats)


@dataclass(frozen=True)
class Seen:
    """What one run of a layer left.

    Attributes:
        name: of the layer.
        layer: itself.
        inputs: what went into it ``[B, ...]``.
        gradient: at what came out of it ``[B, ...]``.
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    gradient: Tensor

    def outer(self, cases: int) -> bool:
        """Whether the gradient of a case is an outer product, ``gradient [B, H]`` by ``inputs [B, F]``."""
        return isinstance(self.layer, nn.Linear) and self.inputs.dim() == 2 and len(self.inputs) == cases

    def gradients(self, cases: int) -> Iterator[tuple[str, Tensor]]:
        """Names of the layer's tensors, and their gradients of each case, float32 ``[B, ...]``."""
        inputs, gradient = self.inputs.detach().float(), self.gradient.float()
        for name, found in _RULES[type(self.layer)](self.layer, inputs, gradient).items():
            # Windows of one case stand one after another where a network cuts cases up.
            yield name, found if len(found) == cases else found.unflatten(0, (cases, -1)).sum(1)


@contextmanager
def recorded(
    layers: dict[str, nn.Module], parameters: list[nn.Parameter], found: Callable[[Seen], None]
) -> Iterator[None]:
    """Within ``with``, no parameter gets a gradient, and a backward pass gives ``found`` what each layer left.

    Args:
        layers: see `trained_layers`.
        parameters: all of the network's.
        found: called as soon as a layer's gradient is there, so that nothing is kept longer than it is needed.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    # A layer that is given nothing to differentiate, as the first one, needs something that asks for a backward pass.
    asking = torch.zeros(0, device=parameters[0].device, requires_grad=True)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def tap(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            given = inputs[0].detach()

            def seen(gradient: Tensor) -> None:
                found(Seen(name, layer, given, gradient.detach()))

            tapped: Tensor = _Tap.apply(outputs, asking, seen)  # type: ignore[no-untyped-call]
            return tapped

        return tap

    handles = [layer.register_forward_hook(hook(name), prepend=True) for name, layer in layers.items()]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter in wanted:
            parameter.requires_grad_()


class _Tap(torch.autograd.Function):
    """Gives on what it is given and tells ``seen`` the gradient there.

    What comes out has the memory of what went in, and autograd does not know. So the next layer may change it in place,
    as activations do, also where a layer's outputs are a view. None of the layers with a rule needs its outputs again.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, asking: Tensor, seen: Callable[[Tensor], None]) -> Tensor:
        ctx.seen = seen
        place = (outputs.storage_offset(), outputs.size(), outputs.stride())
        return outputs.new_empty(0).set_(outputs.untyped_storage(), *place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        seen, ctx.seen = ctx.seen, None  # it holds what went into the layer, which nobody needs any longer
        seen(gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None


# Rules of the layers --------------------------------------------------------------------------------------------------


def _trained(layer: nn.Module, **makers: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The gradients of those tensors that the layer has."""
    return {name: make() for name, make in makers.items() if getattr(layer, name) is not None}


def _linear(layer: nn.Linear, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    if inputs.dim() == 2:
        return _trained(layer, weight=lambda: gradient[:, :, None] * inputs[:, None, :], bias=lambda: gradient)
    inputs, gradient = inputs.flatten(1, -2), gradient.flatten(1, -2)
    return _trained(layer, weight=lambda: gradient.mT @ inputs, bias=lambda: gradient.sum(1))


def _convolution(layer: nn.modules.conv._ConvNd, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    dims = len(layer.kernel_size)
    if inputs.dim() == dims + 1:
        raise ValueError("a convolution was given one case without an axis of cases")
    return _trained(
        layer,
        weight=lambda: _convolution_weight(layer, inputs, gradient),
        bias=lambda: gradient.flatten(2).sum(2),
    )


def _convolution_weight(layer: nn.modules.conv._ConvNd, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Gradients of the kernel ``[B, ...]``: all cases at once as groups of one convolution, or one after another.

    The first is much faster where there is little to do a case, and about as fast as the gradient of a batch where
    channels fill the processor's registers.
    """
    cases, shape = len(inputs), layer.weight.shape
    place = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding)
    own = torch.ops.aten.convolution_backward
    large = gradient.shape[1] >= _OUTPUTS and gradient[0, 0].numel() >= _PLACES
    if inputs.device.type == "cpu" and inputs.shape[1] in _INPUTS and large:
        weight, which = layer.weight.detach().float(), [False, True, False]
        rows = [
            own(gradient[i : i + 1], inputs[i : i + 1], weight, None, *place, layer.groups, which)[1]
            for i in range(cases)
        ]
        return torch.stack(rows)
    weight = gradient.new_empty(cases * shape[0], *shape[1:])  # its values are not looked at
    wide, deep = inputs.flatten(0, 1).unsqueeze(0), gradient.flatten(0, 1).unsqueeze(0)
    found: Tensor = own(deep, wide, weight, None, *place, cases * layer.groups, [False, True, False])[1]
    return found.view(cases, *shape)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    return _channels(layer, lambda: F.group_norm(inputs, layer.num_groups, eps=layer.eps), gradient)


def _instance_norm(layer: nn.modules.instancenorm._InstanceNorm, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    return _channels(layer, lambda: F.instance_norm(inputs, eps=layer.eps), gradient)


def _channels(layer: nn.Module, normal: Callable[[], Tensor], gradient: Tensor) -> dict[str, Tensor]:
    """Of a scale and a shift for each channel."""
    return _trained(
        layer,
        weight=lambda: normal().mul_(gradient).flatten(2).sum(2),
        bias=lambda: gradient.flatten(2).sum(2),
    )


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    places = list(range(1, inputs.dim() - len(layer.normalized_shape)))

    def over(values: Tensor) -> Tensor:
        return values.sum(places) if places else values

    return _trained(
        layer,
        weight=lambda: over(F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps) * gradient),
        bias=lambda: over(gradient),
    )


def _prelu(layer: nn.PReLU, inputs: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    negative = inputs.clamp(max=0).mul_(gradient)
    if layer.num_parameters == 1:
        return {"weight": negative.flatten(1).sum(1, keepdim=True)}
    return {"weight": negative if negative.dim() == 2 else negative.flatten(2).sum(2)}


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution),
    nn.GroupNorm: _group_norm,
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _prelu,
}
