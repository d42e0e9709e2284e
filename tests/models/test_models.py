"""Shapes, sizes, refusals and structure of the models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from clipbench.data import Spec
from clipbench.models import MLP, AlexNet, AlexNetFC, TorchvisionAlexNet, Transformer

IMAGES = Spec("image", (3, 32, 32), 100, "cifar100")
VECTORS = Spec("vector", (20,), 3, "heavy_tailed")
TOKENS = Spec("tokens", (16,), 65, "shakespeare_char")
SMALL_GPT = {"layers": 2, "heads": 2, "width": 8, "dropout": 0.0}

Build = Callable[[], nn.Module]
BUILD: dict[str, Build] = {
    "alexnet": lambda: AlexNet(IMAGES),
    "alexnet_fc": lambda: AlexNetFC(IMAGES, width=32),
    "mlp": lambda: MLP(VECTORS),
    "mlp on images": lambda: MLP(IMAGES, widths=[8]),
    "transformer": lambda: Transformer(TOKENS, **SMALL_GPT, tied_head=False, bias=False),
    "tied transformer": lambda: Transformer(TOKENS, **SMALL_GPT),
    "torchvision_alexnet": lambda: TorchvisionAlexNet(IMAGES, size=63),
}


def inputs_for(name: str, n: int) -> torch.Tensor:
    if "transformer" in name:
        return torch.randint(65, (n, 16))
    return torch.randn(n, 20) if name == "mlp" else torch.randn(n, 3, 32, 32)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_alexnet_has_the_stated_size() -> None:
    filters = 3 * 64 * 11**2 + 64 * 192 * 5**2 + 192 * 384 * 9 + 384 * 256 * 9 + 256 * 256 * 9
    assert count(AlexNet(IMAGES)) == filters + (64 + 192 + 384 + 256 + 256) + 256 * 100 + 100


def test_alexnet_fc_has_the_originals_three_layers() -> None:
    head = (256 * 4096 + 4096) + (4096 * 4096 + 4096) + (4096 * 100 + 100)
    assert count(AlexNetFC(IMAGES)) - count(AlexNet(IMAGES)) == head - (256 * 100 + 100)


def test_the_default_mlp_without_bias_is_paper_twos_of_four_layers() -> None:
    model = MLP(Spec("vector", (100,), 1, "heavy_tailed"), bias=False)
    assert [tuple(p.shape) for p in model.parameters()] == [(100, 100)] * 3 + [(1, 100)]


def test_the_default_transformer_is_paper_twos() -> None:
    model = Transformer(Spec("tokens", (256,), 65, "shakespeare_char"))
    shapes = {name.removeprefix("blocks.3."): tuple(p.shape) for name, p in model.named_parameters()}
    for name in ("queries", "keys", "values", "projection"):
        assert shapes[f"attention.{name}.weight"] == (384, 384)
        assert shapes[f"attention.{name}.bias"] == (384,)
    assert model.head.weight is model.tokens.weight
    block = 4 * (384 * 384 + 384) + (384 * 1536 + 1536) + (1536 * 384 + 384) + 4 * 384
    assert count(model) == 6 * block + 65 * 384 + 256 * 384 + 2 * 384


@pytest.mark.parametrize("name", BUILD)
def test_outputs_of_a_batch_are_those_of_its_samples(name: str) -> None:
    """No layer mixes samples, or per-sample gradients would have no meaning."""
    torch.manual_seed(0)
    model, inputs = BUILD[name]().double().eval(), inputs_for(name, 3)
    inputs = inputs if inputs.dtype == torch.int64 else inputs.double()
    together = model(inputs)
    apart = torch.cat([model(inputs[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
    assert together.shape == ((3, 16, 65) if "transformer" in name else (3, 3 if name == "mlp" else 100))


@pytest.mark.parametrize("name", BUILD)
def test_every_parameter_belongs_to_a_standard_layer_and_gets_a_gradient(name: str) -> None:
    model = BUILD[name]()
    model(inputs_for(name, 2)).square().sum().backward()
    standard = (nn.Linear, nn.Conv2d, nn.Embedding, nn.LayerNorm)
    owned = {id(p) for m in model.modules() if type(m) in standard for p in m.parameters(recurse=False)}
    for parameter_name, parameter in model.named_parameters():
        assert id(parameter) in owned, parameter_name
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "needs", "has"),
    [
        (lambda: AlexNet(VECTORS), "alexnet needs images of 3 × 32 × 32", "heavy_tailed has vectors of 20"),
        (
            lambda: AlexNet(IMAGES._replace(shape=(3, 28, 28))),
            "alexnet needs images of 3 × 32 × 32",
            "cifar100 has images of 3 × 28 × 28",
        ),
        (
            lambda: AlexNetFC(TOKENS),
            "alexnet_fc needs images of 3 × 32 × 32",
            "shakespeare_char has sequences of 16",
        ),
        (lambda: MLP(TOKENS), "mlp needs vectors or images", "shakespeare_char has sequences of 16"),
        (lambda: Transformer(IMAGES), "transformer needs sequences", "cifar100 has images of 3 × 32 × 32"),
        (
            lambda: TorchvisionAlexNet(VECTORS),
            "torchvision_alexnet needs images",
            "heavy_tailed has vectors of 20",
        ),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(build: Build, needs: str, has: str) -> None:
    with pytest.raises(ValueError, match=f"^model {needs}, but dataset {has}$"):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AlexNetFC(IMAGES, width=0), "width must be >= 1, got 0"),
        (lambda: AlexNetFC(IMAGES, dropout=1.0), "dropout must be in [0, 1), got 1.0"),
        (lambda: MLP(VECTORS, widths=[4, 0]), "widths must be numbers >= 1, got [4, 0]"),
        (lambda: MLP(VECTORS, activation="gelu"), "activation must be one of relu, tanh, got gelu"),  # type: ignore[arg-type]
        (lambda: Transformer(TOKENS, layers=0), "layers must be >= 1, got 0"),
        (lambda: Transformer(TOKENS, heads=5), "width must be a multiple of heads (5), got 384"),
        (lambda: Transformer(TOKENS, dropout=-0.1), "dropout must be in [0, 1), got -0.1"),
        (lambda: TorchvisionAlexNet(IMAGES, size=62), "size must be >= 63, got 62"),
    ],
)
def test_bad_options(build: Build, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()


def test_tanh_and_relu_differ_only_in_the_activation() -> None:
    torch.manual_seed(0)
    relu, tanh = MLP(VECTORS, widths=[4]), MLP(VECTORS, widths=[4], activation="tanh")
    tanh.load_state_dict(relu.state_dict())
    inputs, layer = torch.randn(5, 20), relu.features[0]
    torch.testing.assert_close(relu(inputs), relu.head(layer(inputs).clamp_min(0)))
    torch.testing.assert_close(tanh(inputs), relu.head(torch.tanh(layer(inputs))))


def test_the_transformer_sees_only_the_past() -> None:
    model, tokens = Transformer(TOKENS, **SMALL_GPT).eval(), torch.randint(65, (1, 16))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 65
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[0, :9], after[0, :9])
    assert not torch.allclose(before[0, 9:], after[0, 9:])


def test_attention_equals_the_formula() -> None:
    """softmax(QKᵀ/√d + causal mask)·V, head by head, in plain matrix products."""
    torch.manual_seed(0)
    attention = Transformer(TOKENS, **SMALL_GPT, bias=False).double().blocks[0].attention.eval()
    hidden = torch.randn(1, 5, 8, dtype=torch.float64)
    layers = (attention.queries, attention.keys, attention.values)
    queries, keys, values = (hidden[0] @ layer.weight.T for layer in layers)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = queries[:, part] @ keys[:, part].T / math.sqrt(4)
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -math.inf)
        heads.append(scores.softmax(1) @ values[:, part])
    expected = torch.cat(heads, 1) @ attention.projection.weight.T
    torch.testing.assert_close(attention(hidden)[0], expected)


def test_transformer_initialisation() -> None:
    torch.manual_seed(0)
    model = Transformer(TOKENS, layers=8, heads=2, width=128, bias=True)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            residual = "projection" in name or "contract" in name
            expected = 0.02 / math.sqrt(16) if residual else 0.02
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.1), name
        else:
            assert torch.all(parameter == (0.0 if name.endswith("bias") else 1.0)), name


def test_a_tied_head_is_one_parameter() -> None:
    tied, untied = (Transformer(TOKENS, **SMALL_GPT, tied_head=flag) for flag in (True, False))
    assert tied.head.weight is tied.tokens.weight
    assert count(untied) - count(tied) == 65 * 8


@pytest.mark.parametrize("name", ["alexnet", "mlp"])
def test_default_initialisation_is_uniform_in_one_over_root_fan_in(name: str) -> None:
    torch.manual_seed(0)
    for module in BUILD[name]().modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert float(module.weight.detach().abs().max()) <= bound * (1 + 1e-6)
            if module.weight.numel() > 1000:
                assert float(module.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_dropout_acts_in_training_only() -> None:
    model, images = AlexNetFC(IMAGES, width=32), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    gpt, tokens = Transformer(TOKENS, **SMALL_GPT | {"dropout": 0.5}), torch.randint(65, (2, 16))
    assert not torch.equal(gpt.train()(tokens), gpt(tokens))
    assert torch.equal(gpt.eval()(tokens), gpt(tokens))


def test_torchvision_alexnet_is_torchvisions() -> None:
    import torchvision.models

    torch.manual_seed(0)
    ours = TorchvisionAlexNet(IMAGES, size=64).eval()
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=100).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
