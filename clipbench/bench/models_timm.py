"""timm's models for images, at small size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.layers import GatedMlp, StdConv2d
from timm.models import mlp_mixer, resnetv2
from timm.models.metaformer import MetaFormer
from torch import nn

from clipbench.bench.models_zoo import CLASSES, Entry, classes, images
from clipbench.bench.problems import cross_entropy

FROZEN = "BatchNorm frozen"
SMALL: dict[str, Any] = {"embed_dim": 128, "depth": 3, "num_heads": 4}
STAGES: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (32, 64, 96, 128)}


def _entry(family: str, title: str, name: str, size: int, note: str = "", **options: Any) -> Entry:
    build = partial(timm.create_model, name, pretrained=False, num_classes=CLASSES, **options)
    return Entry(family, title, build, images(size), classes(), cross_entropy, note)


def _made(family: str, title: str, make: Callable[..., nn.Module], note: str = "", **options: Any) -> Entry:
    build = partial(make, num_classes=CLASSES, **options)
    return Entry(family, title, build, images(64), classes(), cross_entropy, note)


def _vit(family: str, title: str, name: str, size: int = 64, **options: Any) -> Entry:
    return _entry(family, title, name, size, img_size=size, **{**SMALL, **options})


def _mixer(family: str, title: str, block: Callable[..., nn.Module], **options: Any) -> Entry:
    return _made(
        family, title, mlp_mixer.MlpMixer, img_size=64, patch_size=8, num_blocks=3, embed_dim=128, block_layer=block,
        **options,
    )  # fmt: skip


_BIT: dict[str, Any] = {"layers": (1, 1, 2, 1), "channels": (64, 128, 128, 256), "bottle_ratio": 0.5, "stem_chs": 32}

ENTRIES: dict[str, Entry] = {
    "deit": _vit("ViT", "DeiT, distilled", "deit_tiny_distilled_patch16_224"),
    "deit3": _vit("ViT", "DeiT III", "deit3_small_patch16_224"),
    "cait": _vit("ViT", "CaiT", "cait_xxs24_224", depth=2),
    "vit_relpos": _vit("ViT", "ViT, relative positions", "vit_relpos_small_patch16_224"),
    "vit_srelpos": _vit("ViT", "ViT, shared relative positions", "vit_srelpos_small_patch16_224"),
    "vit_siglip": _vit("ViT", "ViT, attention pooling", "vit_base_patch16_siglip_224"),
    "beit": _vit("BEiT and EVA", "BEiT", "beit_base_patch16_224"),
    "eva": _vit("BEiT and EVA", "EVA-02", "eva02_tiny_patch14_224", 56),
    "swin_v2_cr": _entry("Swin", "Swin v2 CR", "swinv2_cr_tiny_224", 64, img_size=64, patch_size=4, window_size=4,
                         embed_dim=32, depths=(2, 2), num_heads=(2, 4)),
    "convnext_v2": _entry("ConvNeXt", "ConvNeXt v2", "convnextv2_atto", 64, **STAGES),
    "mambaout": _entry("ConvNeXt", "MambaOut", "mambaout_femto", 64, **STAGES),
    "nf_resnet": _entry("ResNet", "NF-ResNet-26", "nf_resnet26", 32),
    "bit": _made("ResNet", "BiT", resnetv2.ResNetV2, conv_layer=StdConv2d, **_BIT),
    "coatnet": _entry("CoAtNet", "CoAtNet", "coatnet_pico_rw_224", 64, FROZEN, img_size=64),
    "resmlp": _mixer("MLP-Mixer", "ResMLP", mlp_mixer.ResBlock, mlp_ratio=4, norm_layer=mlp_mixer.Affine),
    "mixer": _mixer("MLP-Mixer", "MLP-Mixer", mlp_mixer.MixerBlock),
    "gmlp": _mixer("MLP-Mixer", "gMLP", mlp_mixer.SpatialGatingBlock, mlp_ratio=6, mlp_layer=GatedMlp),
    "poolformer": _made("MetaFormer", "PoolFormer", MetaFormer, depths=(1, 1, 2, 1), dims=(32, 64, 96, 128)),
    "pvt": _entry("MetaFormer", "PVT v2", "pvt_v2_b0", 64),
    "twins": _entry("MetaFormer", "Twins", "twins_svt_small", 64, img_size=64, depths=(1, 1, 2, 1),
                    embed_dims=(32, 64, 96, 128), num_heads=(1, 2, 4, 4)),
    "davit": _entry("MetaFormer", "DaViT", "davit_tiny", 64, depths=(1, 1, 1, 1), embed_dims=(32, 64, 96, 128),
                    num_heads=(1, 2, 4, 4)),
    "xcit": _entry("MetaFormer", "XCiT", "xcit_nano_12_p16_224", 64, FROZEN, img_size=64, **{**SMALL, "depth": 2}),
    "edgenext": _entry("MobileNet", "EdgeNeXt", "edgenext_xx_small", 64),
    "mobilevit": _entry("MobileNet", "MobileViT", "mobilevit_xxs", 64, FROZEN),
    "ghostnet": _entry("MobileNet", "GhostNet", "ghostnet_050", 64, FROZEN),
}  # fmt: skip
