"""torchvision's models for images, at small size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    MobileNetV2,
    ResNet,
    SwinTransformer,
    VisionTransformer,
    efficientnet_b0,
    maxvit,
    mobilenet_v3_small,
    regnet_y_400mf,
    shufflenet_v2_x0_5,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from clipbench.bench.models_zoo import CLASSES, Entry, classes, images
from clipbench.bench.problems import cross_entropy

FROZEN = "BatchNorm frozen"


def group_norm(channels: int) -> nn.Module:
    """GroupNorm in at most eight groups."""
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


def _entry(family: str, title: str, make: Callable[..., nn.Module], size: int, note: str = "", **options: Any) -> Entry:
    build = partial(make, num_classes=CLASSES, **options)
    return Entry(family, title, build, images(size), classes(), cross_entropy, note)


def _convnext(num_classes: int) -> nn.Module:
    blocks = [CNBlockConfig(32, 64, 1), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 1)]
    return ConvNeXt(blocks, num_classes=num_classes)


def _swin(**options: Any) -> Callable[..., nn.Module]:
    return partial(SwinTransformer, [4, 4], 48, [2, 2], [3, 6], [4, 4], stochastic_depth_prob=0.0, **options)


ENTRIES: dict[str, Entry] = {
    "resnet_gn": _entry(
        "ResNet", "ResNet-18", ResNet, 32, "GroupNorm", block=BasicBlock, layers=[2, 2, 2, 2], norm_layer=group_norm
    ),
    "resnext": _entry(
        "ResNet", "ResNeXt-26", ResNet, 32, "GroupNorm", block=Bottleneck, layers=[2, 2, 2, 2], groups=8,
        width_per_group=8, norm_layer=group_norm,
    ),
    "densenet": _entry(
        "DenseNet", "DenseNet", DenseNet, 64, FROZEN, growth_rate=16, block_config=(4, 8, 8, 4), num_init_features=32
    ),
    "mobilenet_v2": _entry("MobileNet", "MobileNetV2", MobileNetV2, 32, "GroupNorm", norm_layer=group_norm),
    "mobilenet_v3": _entry("MobileNet", "MobileNetV3 small", mobilenet_v3_small, 64, FROZEN),
    "shufflenet": _entry("MobileNet", "ShuffleNetV2", shufflenet_v2_x0_5, 64, FROZEN),
    "efficientnet": _entry(
        "EfficientNet", "EfficientNet-B0", efficientnet_b0, 32, "GroupNorm", norm_layer=group_norm,
        stochastic_depth_prob=0.0,
    ),
    "regnet": _entry("RegNet", "RegNetY-400MF", regnet_y_400mf, 32, "GroupNorm", norm_layer=group_norm),
    "convnext": _entry("ConvNeXt", "ConvNeXt", _convnext, 64),
    "vit": _entry(
        "ViT", "ViT", VisionTransformer, 64, image_size=64, patch_size=8, num_layers=4, num_heads=4, hidden_dim=128,
        mlp_dim=512,
    ),
    "swin": _entry("Swin", "Swin", _swin(), 64),
    "swin_v2": _entry(
        "Swin", "Swin v2", _swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2), 64
    ),
    "maxvit": _entry(
        "MaxViT", "MaxViT", maxvit.MaxVit, 64, FROZEN, input_size=(64, 64), stem_channels=32, partition_size=4,
        block_channels=[32, 64], block_layers=[1, 2], head_dim=16, stochastic_depth_prob=0.0,
    ),
}  # fmt: skip
