"""airbench94's network: layers, initialisation, whitening, averaged views."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from clipbench.data import Spec
from clipbench.data.images import ImageData, Images
from clipbench.models import Airbench
from clipbench.models.airbench import whitening_filters

IMAGES = Spec("image", (3, 32, 32), 10, "cifar10")


def network(**options: object) -> Airbench:
    torch.manual_seed(0)
    return Airbench(IMAGES, **options)  # type: ignore[arg-type]


def test_layers_and_parameters_are_the_papers() -> None:
    model = network()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    shapes = [tuple(m.weight.shape) for m in convolutions]
    assert shapes[0] == (24, 3, 2, 2)
    assert shapes[1:] == [(64, 24, 3, 3), (64, 64, 3, 3), (256, 64, 3, 3)] + [(256, 256, 3, 3)] * 3
    assert [m.bias is not None for m in convolutions] == [True] + [False] * 6
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(
        (m.eps, m.momentum, m.weight.requires_grad, m.bias.requires_grad) == (1e-12, 0.4, False, True) for m in norms
    )
    assert not model.whitening.weight.requires_grad
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert trained == 24 + filters + (2 * 64 + 4 * 256) + 256 * 10


def test_convolutions_start_as_partial_identities_and_the_head_with_unit_spread() -> None:
    model = network()
    for group in model.groups:
        for layer in (group.first, group.second):
            images = torch.randn(2, layer.in_channels, 6, 6)
            kept = min(layer.in_channels, layer.out_channels)
            torch.testing.assert_close(layer(images)[:, :kept], images[:, :kept])
    assert float(model.head.weight.detach().std()) == pytest.approx(1.0)
    assert float(model.groups[1].first.weight[64:].detach().std()) > 0.01


def plain(model: Airbench, images: Tensor) -> Tensor:
    """The logits layer by layer, by hand."""
    hidden = nn.functional.gelu(model.whitening(images))
    for group in model.groups:
        hidden = nn.functional.gelu(group.first_norm(nn.functional.max_pool2d(group.first(hidden), 2)))
        hidden = nn.functional.gelu(group.second_norm(group.second(hidden)))
    assert hidden.shape[2:] == (3, 3)
    features = hidden.amax((2, 3))
    return features @ model.head.weight.T / 256


def test_logits_are_the_formula_and_evaluation_averages_six_views() -> None:
    model, images = network().double(), torch.randn(5, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model.train()(images), plain(model, images))
    model.eval()
    padded = nn.functional.pad(images, (1,) * 4, mode="reflect")
    views = [images, padded[:, :, 0:32, 0:32], padded[:, :, 2:34, 2:34]]
    weights = (0.5, 0.25, 0.25)
    expected = sum(
        weight * (plain(model, view) + plain(model, view.flip(3))) / 2
        for weight, view in zip(weights, views, strict=True)
    )
    torch.testing.assert_close(model(images), expected)
    model.averaged_views = False
    torch.testing.assert_close(model(images), plain(model, images))


def test_whitened_patches_are_white() -> None:
    torch.manual_seed(1)
    images = nn.functional.avg_pool2d(torch.randn(200, 3, 12, 12), 3, 1) + torch.randn(200, 3, 1, 1)
    filters = whitening_filters(images, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[12:], -filters[:12])
    answers = nn.functional.conv2d(images, filters[:12]).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(answers @ answers.T / answers.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0)
    smaller = whitening_filters(images, eps=5e-4)
    assert bool((smaller[:12].flatten(1).norm(dim=1) < filters[:12].flatten(1).norm(dim=1)).all())


def test_prepare_sets_the_filters_from_training_images_only() -> None:
    draws = torch.Generator().manual_seed(2)

    def some(n: int) -> Images:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=draws)
        return Images(pixels, torch.zeros(n, dtype=torch.int64))

    data = ImageData({"train": some(30), "validation": some(5), "test": some(5)}, (0.5,) * 3, (0.25,) * 3, None)
    model = network(widths=[4, 4, 4])
    model.prepare(data)
    inputs = next(data.evaluation("train", 30)).inputs
    torch.testing.assert_close(model.whitening.weight.detach(), whitening_filters(inputs, 5e-4))


@pytest.mark.parametrize(
    ("widths", "message"),
    [([4, 4], "widths must be three numbers, got [4, 4]"), ([4, 0, 4], "widths must be >= 1, got 0")],
)
def test_bad_widths(widths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        network(widths=widths)
    with pytest.raises(ValueError, match=r"^model airbench needs images of 3 × 32 × 32"):
        Airbench(Spec("vector", (20,), 3, "heavy_tailed"))
