"""The networks: small ones of our own, and MONAI's by name (imported when first used).

Each builder takes the input shape (``(F,)`` for features, ``(C, H, W)`` for images), the number of outputs and its
options, and returns the module with the submodules that are its head.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import nn

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
    """Small network: 3×3 convolution, normalisation, ReLU and 2×2 pooling a stage, mean pooling and the head."""
    layers: list[nn.Module] = []
    flat = len(shape) == 3
    convolution, batch_norm = (nn.Conv2d, nn.BatchNorm2d) if flat else (nn.Conv3d, nn.BatchNorm3d)
    for before, after in pairwise([_image(shape, "cnn"), *channels]):
        layers.append(convolution(before, after, 3, padding=1, bias=norm == "none"))
        if norm != "none":
            layers.append(batch_norm(after) if norm == "batch" else nn.GroupNorm(min(8, after), after))
        layers += [nn.ReLU(), nn.MaxPool2d(2) if flat else nn.MaxPool3d(2)]
    head = nn.Linear(channels[-1], outputs)
    layers += [
        nn.AdaptiveAvgPool2d(1) if flat else nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        *([nn.Dropout(dropout)] if dropout else []),
        head,
    ]
    return nn.Sequential(*layers), [head]


@MODELS.add("resnet18")
def resnet18(shape: tuple[int, ...], outputs: int) -> Built:
    """MONAI ResNet-18 (He 2016), without pretrained weights."""
    from monai.networks.nets import resnet18 as build

    net = build(spatial_dims=len(shape) - 1, n_input_channels=_image(shape, "resnet18"), num_classes=outputs)
    return net, [net.fc]


@MODELS.add("densenet121")
def densenet121(shape: tuple[int, ...], outputs: int, *, dropout: Share = 0.0) -> Built:
    """MONAI DenseNet-121 (Huang 2017), without pretrained weights."""
    from monai.networks.nets import DenseNet121

    net = DenseNet121(len(shape) - 1, _image(shape, "densenet121"), outputs, dropout_prob=dropout)
    return net, [net.class_layers]


@MODELS.add("efficientnet")
def efficientnet(shape: tuple[int, ...], outputs: int, *, width: Literal["b0", "b1", "b2", "b3", "b4"] = "b0") -> Built:
    """MONAI EfficientNet (Tan 2019), without pretrained weights."""
    from monai.networks.nets import EfficientNetBN

    channels = _image(shape, "efficientnet")
    net = EfficientNetBN(
        f"efficientnet-{width}",
        pretrained=False,
        spatial_dims=len(shape) - 1,
        in_channels=channels,
        num_classes=outputs,
    )
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
    from monai.networks.nets import UNet

    _divisible(shape, len(channels) - 1, "unet")
    net = UNet(
        len(shape) - 1, _image(shape, "unet"), outputs, channels, [2] * (len(channels) - 1),
        num_res_units=residual_units, norm=norm, dropout=dropout,
    )  # fmt: skip
    return net, [net.model[-1]]


@MODELS.add("segresnet")
def segresnet(shape: tuple[int, ...], outputs: int, *, filters: PositiveInt = 8, dropout: Share = 0.0) -> Built:
    """MONAI SegResNet (Myronenko 2018), with group normalisation."""
    from monai.networks.nets import SegResNet

    _divisible(shape, 3, "segresnet")
    channels = _image(shape, "segresnet")
    net = SegResNet(len(shape) - 1, filters, channels, outputs, dropout_prob=dropout or None)
    return net, [net.conv_final]


def _divisible(shape: tuple[int, ...], halvings: int, name: str) -> None:
    wrong = [side for side in shape[1:] if side % 2**halvings]
    if wrong:
        raise ValueError(
            f"{name} halves the image {halvings} times, so sides must be multiples of {2**halvings}, got {wrong[0]}"
        )
