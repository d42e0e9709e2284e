"""What a layer-wise clipper leaves alone by default, and that it says so once."""

from __future__ import annotations

import logging

import pytest
import torch
import torchvision
from torch import nn

from clipbench.clipping import SoftSpectralClip, SpectralClip
from clipbench.clipping.layers import LayerClip
from clipbench.clipping.selection import SKIP, SKIP_TYPES, matches, skipped


def left_alone(model: nn.Module, patterns: tuple[str, ...] = SKIP) -> list[str]:
    return [name for name, _ in model.named_parameters() if matches(name, patterns)]


@pytest.mark.parametrize("build", ["alexnet", "vit_b_16", "resnet18", "convnext_tiny"])
def test_of_image_models_nothing_is_left_alone(build: str) -> None:
    """Not a classifier, a patch projection, nor the norms beside an embedding."""
    with torch.device("meta"):
        model = getattr(torchvision.models, build)()
    assert left_alone(model) == []
    assert left_alone(model, skipped(model, SKIP, SKIP_TYPES)) == []


def test_the_papers_names_and_no_others() -> None:
    names = {
        "transformer.wte.weight": True,
        "transformer.wpe.weight": True,
        "model.embed_tokens.weight": True,
        "embeddings.word_embeddings.weight": True,
        "embeddings.position_embeddings.weight": True,
        "vit.embeddings.position_embeddings": True,
        "embeddings.token_type_embeddings.weight": True,
        "lm_head.weight": True,
        "embeddings.LayerNorm.weight": False,
        "patch_embed.proj.weight": False,
        "vit.embeddings.patch_embeddings.projection.weight": False,
        "classifier.weight": False,
        "head.weight": False,
        "score_head.weight": False,
        "weight": False,
        "bias": False,
        "tokens.weight": False,
    }
    assert {name: matches(name, SKIP) for name in names} == names


def test_for_a_model_embeddings_are_known_by_their_type() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(5, 3), "bag": nn.EmbeddingBag(5, 3), "out": nn.Linear(3, 2)})
    clip = SpectralClip.for_model(model, 1.0)
    assert left_alone(model, clip.skip) == ["tokens.weight", "bag.weight"]
    assert left_alone(model, SoftSpectralClip.for_model(model, 1.0, skip=["out"], skip_types=[]).skip) == [
        "out.weight",
        "out.bias",
    ]


@pytest.mark.parametrize("make", [SpectralClip, SoftSpectralClip])
def test_the_first_call_says_what_it_leaves_alone(make: type[LayerClip], caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({"wte": nn.Embedding(5, 3), "out": nn.Linear(3, 2)})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip = make(1.0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clip(model.named_parameters())
        model["out"].bias.grad = None
        clip(model.named_parameters())
    assert [record.getMessage() for record in caplog.records] == [
        f"{make.__name__} leaves 1 parameters alone: wte.weight"
    ]
    caplog.clear()
    make(1.0, skip=[])(model.named_parameters())
    assert not caplog.records
