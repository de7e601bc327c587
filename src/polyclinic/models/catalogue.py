"""The networks: small ones of our own, and MONAI's by name (imported when first used).

Each builder takes the input shape (``(F,)`` for features, ``(C, H, W)`` for images, ``(C, D, H, W)`` for volumes), the
number of outputs and its options, and returns the module with the submodules that are its head. A builder raises
ValueError with a sentence where the network can't take the shape.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from polyclinic.errors import TrainingError, nearest
from polyclinic.models.bundle import Network
from polyclinic.models.monai_networks import build_network
from polyclinic.options import Catalogue

Built = tuple[nn.Module, list[nn.Module]]
Builder = Callable[..., Built]
Share = Annotated[float, Field(ge=0, lt=1)]

MODELS: Catalogue[Builder] = Catalogue("model")


def _features(shape: tuple[int, ...], name: str) -> int:
    if len(shape) != 1:
        raise ValueError(f"{name} takes feature tables, got inputs of shape {shape}; use `cnn` or another image model")
    return shape[0]


def _image(shape: tuple[int, ...], name: str) -> int:
    if len(shape) not in (3, 4):
        raise ValueError(f"{name} takes images (channels, height, width) or volumes, got inputs of shape {shape}")
    return shape[0]


@MODELS.add("logistic")
def logistic(shape: tuple[int, ...], outputs: int, *, norm: Literal["none", "batch"] = "none") -> Built:
    """Logistic regression, started at zero; with ``norm: batch`` on batch-normalised features."""
    features = _features(shape, "logistic")
    layer = nn.Linear(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer if norm == "none" else nn.Sequential(nn.BatchNorm1d(features), layer), [layer]


@MODELS.add("mlp")
def mlp(
    shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: list[PositiveInt] = [64],  # noqa: B006 - read only; shown as the option's default
    norm: Literal["none", "batch", "layer"] = "none",
    dropout: Share = 0.0,
) -> Built:
    """Fully connected layers with ReLU; the last layer is the head."""
    layers: list[nn.Module] = []
    for before, after in pairwise([_features(shape, "mlp"), *hidden]):
        layers.append(nn.Linear(before, after))
        if norm != "none":
            layers.append(nn.BatchNorm1d(after) if norm == "batch" else nn.LayerNorm(after))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
    head = nn.Linear(hidden[-1] if hidden else shape[0], outputs)
    return nn.Sequential(*layers, head), [head]


@MODELS.add("cnn")
def cnn(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: list[PositiveInt] = [16, 32, 64],  # noqa: B006
    norm: Literal["none", "batch", "group"] = "batch",
    dropout: Share = 0.0,
) -> Built:
    """Small network: 3×3 convolution, normalisation, ReLU and 2×2 pooling a stage, mean pooling and the head.

    Axes of a thin image are pooled until a single voxel is left.
    """
    layers: list[nn.Module] = []
    flat = len(shape) == 3
    sides = shape[1:]
    convolution, batch_norm = (nn.Conv2d, nn.BatchNorm2d) if flat else (nn.Conv3d, nn.BatchNorm3d)
    for before, after in pairwise([_image(shape, "cnn"), *channels]):
        layers.append(convolution(before, after, 3, padding=1, bias=norm == "none"))
        if norm != "none":
            layers.append(batch_norm(after) if norm == "batch" else nn.GroupNorm(min(8, after), after))
        pool = tuple(min(2, side) for side in sides)
        sides = tuple(side // step for side, step in zip(sides, pool, strict=True))
        layers += [nn.ReLU(), nn.MaxPool2d(pool) if flat else nn.MaxPool3d(pool)]
    head = nn.Linear(channels[-1], outputs)
    layers += [
        nn.AdaptiveAvgPool2d(1) if flat else nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        *([nn.Dropout(dropout)] if dropout else []),
        head,
    ]
    return nn.Sequential(*layers), [head]


@MODELS.add("sfcn")
def sfcn(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: list[PositiveInt] = [32, 64, 128, 256, 256, 64],  # noqa: B006
    dropout: Share = 0.5,
) -> Built:
    """Simple fully convolutional network, which predicts the age of a brain (Peng 2021).

    All stages but the last: 3×3 convolution, batch normalisation, halving by the maximum, ReLU. The last: 1×1
    convolution, batch normalisation, ReLU; then the mean over the image, dropout and the head. The published network
    predicts shares of age groups; here the head has the task's outputs.
    """
    before = _image(shape, "sfcn")
    _at_least(shape, 2 ** (len(channels) - 1), "sfcn")
    flat = len(shape) == 3
    convolution, batch_norm = (nn.Conv2d, nn.BatchNorm2d) if flat else (nn.Conv3d, nn.BatchNorm3d)
    layers: list[nn.Module] = []
    for after in channels[:-1]:
        halving = nn.MaxPool2d(2) if flat else nn.MaxPool3d(2)
        layers += [convolution(before, after, 3, padding=1), batch_norm(after), halving, nn.ReLU()]
        before = after
    layers += [convolution(before, channels[-1], 1), batch_norm(channels[-1]), nn.ReLU()]
    head = nn.Linear(channels[-1], outputs)
    mean = nn.AdaptiveAvgPool2d(1) if flat else nn.AdaptiveAvgPool3d(1)
    return nn.Sequential(*layers, mean, nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []), head), [head]


@MODELS.add("resnet")
def resnet(shape: tuple[int, ...], outputs: int, *, depth: Literal[10, 18, 34, 50] = 18) -> Built:
    """MONAI ResNet (He 2016) of 10, 18, 34 or 50 layers, without pretrained weights."""
    layers = {10: [1, 1, 1, 1], 18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth]
    net = build_network(
        "ResNet", block="bottleneck" if depth == 50 else "basic", layers=layers, block_inplanes=[64, 128, 256, 512],
        spatial_dims=len(shape) - 1, n_input_channels=_image(shape, "resnet"), num_classes=outputs,
    )  # fmt: skip
    return net, [net.fc]


@MODELS.add("resnet18")
def resnet18(shape: tuple[int, ...], outputs: int) -> Built:
    """The same as ``resnet`` of 18 layers."""
    return resnet(shape, outputs, depth=18)


@MODELS.add("densenet121")
def densenet121(shape: tuple[int, ...], outputs: int, *, dropout: Share = 0.0) -> Built:
    """MONAI DenseNet-121 (Huang 2017), without pretrained weights."""
    channels = _image(shape, "densenet121")
    _at_least(shape, 32, "densenet121")
    net = build_network(
        "DenseNet121", spatial_dims=len(shape) - 1, in_channels=channels, out_channels=outputs, dropout_prob=dropout
    )
    return net, [net.class_layers]


@MODELS.add("efficientnet")
def efficientnet(shape: tuple[int, ...], outputs: int, *, width: Literal["b0", "b1", "b2", "b3", "b4"] = "b0") -> Built:
    """MONAI EfficientNet (Tan 2019), without pretrained weights."""
    channels = _image(shape, "efficientnet")
    _at_least(shape, 32, "efficientnet")
    net = build_network(
        "EfficientNetBN", model_name=f"efficientnet-{width}", pretrained=False, spatial_dims=len(shape) - 1,
        in_channels=channels, num_classes=outputs,
    )  # fmt: skip
    return net, [net._fc]


@MODELS.add("unet")
def unet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: list[PositiveInt] = [16, 32, 64, 128],  # noqa: B006
    residual_units: Annotated[int, Field(ge=0)] = 1,
    norm: Literal["batch", "instance"] = "batch",
    dropout: Share = 0.0,
) -> Built:
    """MONAI U-Net (Ronneberger 2015; Kerfoot 2019): each stage halves the image; the last convolution is the head."""
    net = build_network(
        "UNet", spatial_dims=len(shape) - 1, in_channels=_image(shape, "unet"), out_channels=outputs, channels=channels,
        strides=_strides(shape, len(channels) - 1, "unet", instance=norm == "instance"), num_res_units=residual_units,
        norm=norm, dropout=dropout,
    )  # fmt: skip
    return net, [net.model[-1]]


@MODELS.add("segresnet")
def segresnet(shape: tuple[int, ...], outputs: int, *, filters: PositiveInt = 8, dropout: Share = 0.0) -> Built:
    """MONAI SegResNet (Myronenko 2018), with group normalisation."""
    channels = _image(shape, "segresnet")
    _divisible(shape, 3, "segresnet")
    net = build_network(
        "SegResNet", spatial_dims=len(shape) - 1, init_filters=filters, in_channels=channels, out_channels=outputs,
        dropout_prob=dropout or None,
    )  # fmt: skip
    return net, [net.conv_final]


@MODELS.add("attention_unet")
def attention_unet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    channels: list[PositiveInt] = [16, 32, 64, 128],  # noqa: B006
    dropout: Share = 0.0,
) -> Built:
    """MONAI Attention U-Net (Oktay 2018), with batch normalisation: each stage but the last halves the image."""
    net = build_network(
        "AttentionUnet", spatial_dims=len(shape) - 1, in_channels=_image(shape, "attention_unet"), out_channels=outputs,
        channels=channels, strides=_strides(shape, len(channels) - 1, "attention_unet", instance=True), dropout=dropout,
    )  # fmt: skip
    return net, [net.model[-1]]


@MODELS.add("dynunet")
def dynunet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    filters: Annotated[list[PositiveInt], Field(min_length=3)] = [32, 64, 128, 256],  # noqa: B006
    deep_supervision: bool = False,
    residual: bool = False,
    norm: Literal["instance", "batch"] = "instance",
    dropout: Share = 0.0,
) -> Built:
    """MONAI DynUNet, the network of nnU-Net (Isensee 2021): each stage but the last halves the image.

    With ``deep_supervision`` all decoder stages but the coarsest have a head of their own in training; the task's loss
    adds them up. What is tested is the output of full size alone.
    """
    channels = _image(shape, "dynunet")
    strides = _strides(shape, len(filters) - 1, "dynunet", instance=norm == "instance")
    net = build_network(
        "DynUNet", spatial_dims=len(shape) - 1, in_channels=channels, out_channels=outputs,
        kernel_size=[3] * len(filters), strides=[1, *strides], upsample_kernel_size=strides, filters=filters,
        norm_name=[norm.upper(), {"affine": True}], res_block=residual, dropout=dropout or None,
        deep_supervision=deep_supervision, deep_supr_num=len(strides) - 1,
    )  # fmt: skip
    net.register_forward_hook(_forget_heads)
    return net, [net.output_block, *(net.deep_supervision_heads if deep_supervision else [])]


def _forget_heads(net: Any, inputs: object, outputs: object) -> None:
    """DynUNet keeps the last outputs of its heads; with their graphs they would hold memory and forbid copies."""
    net.heads[:] = [torch.zeros(1)] * len(net.heads)


@MODELS.add("swinunetr")
def swinunetr(
    shape: tuple[int, ...],
    outputs: int,
    *,
    features: Annotated[int, Field(ge=12, multiple_of=12)] = 24,
    dropout: Share = 0.0,
) -> Built:
    """MONAI Swin UNETR (Hatamizadeh 2022); needs the package einops (``pip install 'polyclinic[swin]'``)."""
    if importlib.util.find_spec("einops") is None:
        raise TrainingError(
            "P503", "The model swinunetr needs the package einops, which is not installed.",
            "Install it: pip install 'polyclinic[swin]'",
        )  # fmt: skip
    from monai.networks.nets import SwinUNETR

    _divisible(shape, 5, "swinunetr", instance=True)
    size = {"img_size": shape[1:]} if "img_size" in inspect.signature(SwinUNETR).parameters else {}
    net = build_network(
        "SwinUNETR", **size, in_channels=_image(shape, "swinunetr"), out_channels=outputs, feature_size=features,
        drop_rate=dropout, spatial_dims=len(shape) - 1,
    )  # fmt: skip
    return net, [net.out]


@MODELS.add("monai")
def monai(
    shape: tuple[int, ...],
    outputs: int,
    *,
    network: Network,
    arguments: dict[str, Any] = {},  # noqa: B006 - read only
    head: str = "last",
) -> Built:
    """A network of ``monai.networks.nets`` with its own arguments; what the study needs must agree with them.

    ``head`` is the dotted name of a submodule, or ``last``: the last layer with weights.
    """
    from monai.networks import nets

    build = getattr(nets, network)
    parameters = inspect.signature(build).parameters
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [name for name in arguments if name not in parameters and not free]
    if unknown:
        raise ValueError(f"{network} has no argument {unknown[0]!r}. {nearest(unknown[0], list(parameters))}")
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    given = {**defaults, **arguments}
    needs = (
        ("spatial_dims", len(shape) - 1, "dimensions"),
        ("in_channels", _image(shape, network), "input channels"),
        ("out_channels", outputs, "outputs"),
    )
    for name, needed, what in needs:
        found = next((given[alias] for alias in _ALIASES[name] if alias in given), needed)
        if found != needed:
            raise ValueError(f"{network} is defined with {found} {what}, but the study needs {needed}")
    fixed = {"pretrained": False} if "pretrained" in parameters else {}
    net: nn.Module = build_network(network, **{**arguments, **fixed})
    if isinstance(net, nets.DynUNet):
        net.register_forward_hook(_forget_heads)
    return net, [_head(net, head, network)]


#: Names that MONAI's networks have for the same argument.
_ALIASES = {
    "spatial_dims": ("spatial_dims",),
    "in_channels": ("in_channels", "n_input_channels"),
    "out_channels": ("out_channels", "num_classes", "n_classes"),
}


def _head(net: nn.Module, name: str, network: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(net.named_modules())
    if name != "last":
        if name not in layers:
            raise ValueError(f"{network} has no part {name!r} that could be its head")
        return layers[name]
    weighted: list[nn.Module] = [one for one in layers.values() if isinstance(one, nn.Linear | nn.modules.conv._ConvNd)]
    return weighted[-1]


@MODELS.add("bundle")
def bundle(shape: tuple[int, ...], outputs: int, *, path: str, weights: bool = True, head: str = "last") -> Built:
    """The network of a MONAI bundle; it is read with the study and becomes ``monai`` with its arguments."""
    raise ValueError(f"the bundle {path!r} was not read with the study")


def _strides(shape: tuple[int, ...], halvings: int, name: str, *, instance: bool) -> list[Any]:
    """Strides of the stages: 2, but along an axis too short to be halved so often 1 once it is odd.

    Raises:
        ValueError: a longer axis can't be halved so often, or one pixel is left for `instance` normalisation.
    """
    sides, strides = list(shape[1:]), []
    short = [side < 2**halvings for side in sides]
    if not any(short):
        _divisible(shape, halvings, name, instance=instance)
        return [2] * halvings
    _divisible((shape[0], *(side for side, thin in zip(sides, short, strict=True) if not thin)), halvings, name)
    for _ in range(halvings):
        stride = [1 if thin and side % 2 else 2 for side, thin in zip(sides, short, strict=True)]
        sides = [side // step for side, step in zip(sides, stride, strict=True)]
        strides.append(stride)
    if instance and max(sides) == 1:
        _divisible((1, *[2**halvings] * len(sides)), halvings, name, instance=True)
    return strides


def _divisible(shape: tuple[int, ...], halvings: int, name: str, *, instance: bool = False) -> None:
    """Stop unless the image can be halved so often; ``instance`` normalisation needs two pixels at the narrowest."""
    wrong = [side for side in shape[1:] if side % 2**halvings]
    if wrong:
        raise ValueError(
            f"{name} halves the image {halvings} times, so sides must be multiples of {2**halvings}, got {wrong[0]}"
        )
    if instance and all(side == 2**halvings for side in shape[1:]):
        raise ValueError(
            f"{name} halves the image {halvings} times, which leaves one pixel, but its instance normalisation needs "
            f"two: one side at least must be {2 ** (halvings + 1)} or more"
        )


def _at_least(shape: tuple[int, ...], least: int, name: str) -> None:
    short = [side for side in shape[1:] if side < least]
    if short:
        raise ValueError(f"{name} needs sides of {least} or more, got {short[0]}")
