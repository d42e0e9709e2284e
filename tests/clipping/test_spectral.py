"""Spectral clippers on a module with layers of every kind, against a twin that clips one layer after the other."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from clipbench.clipping import EmaThreshold, NormClip, QuantileThreshold, SoftSpectralClip, SpectralClip
from clipbench.clipping.layers import LayerClip
from tests.clipping.gradients import fill, largest_difference, model, now
from tests.reference import norm as norms
from tests.reference import spectral as reference
from tests.reference import thresholds

CLIPPED = [name for name, _ in model().named_parameters() if not name.startswith(("wte", "lm_head"))]


def matrix(array: np.ndarray) -> np.ndarray:
    """(shape[0], everything else)."""
    return array.reshape(array.shape[0], -1)


def twin_step(
    before: dict[str, np.ndarray], tau: dict[str, float], rule: Callable[[np.ndarray, float], np.ndarray]
) -> dict[str, np.ndarray]:
    """Each clipped layer by itself; the others as they are."""
    return before | {
        name: rule(matrix(before[name]), tau[name]).reshape(before[name].shape)
        for name in CLIPPED
        if math.isfinite(tau[name])
    }


@pytest.mark.parametrize("backend", ["svd", "exact", "newton_schulz", "randomized", "auto"])
def test_a_constant_threshold_against_the_twin(backend: str) -> None:
    module = model()
    before = fill(module, 1)
    expected = twin_step(before, dict.fromkeys(CLIPPED, 3.0), reference.clip)
    stats = SpectralClip.for_model(module, 3.0, backend=backend)(module.named_parameters())  # type: ignore[arg-type]
    assert largest_difference(now(module), expected) <= (2e-4 if backend == "randomized" else 1e-5)
    share = np.mean([reference.sigma_max(matrix(before[name])) > 3.0 for name in CLIPPED])
    assert float(stats.clipped_fraction) == pytest.approx(share)
    assert float(stats.norm) == pytest.approx(norms.total_norm(list(before.values())), rel=1e-6)


def test_clipping_the_norm_instead_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: norm clipping layer by layer in the place of the spectral rule."""
    module = model()
    before = fill(module, 1)
    expected = twin_step(before, dict.fromkeys(CLIPPED, 3.0), reference.clip)

    def by_norm(self: SpectralClip, names: list[str], matrices: list[torch.Tensor], *_: torch.Tensor) -> object:
        for one in matrices:
            NormClip(3.0)([("w", _with_grad(one))])
        return inner(self, names, matrices, *_)

    inner = SpectralClip.clip_matrices
    monkeypatch.setattr(SpectralClip, "clip_matrices", by_norm)
    SpectralClip.for_model(module, 3.0)(module.named_parameters())
    assert largest_difference(now(module), expected) > 1e-2


def _with_grad(gradient: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("rule", ["ema", "lower", "linear"])
@pytest.mark.parametrize("backend", ["exact", "newton_schulz"])
def test_adaptive_thresholds_against_the_twin_across_a_checkpoint(rule: str, backend: str) -> None:
    def make() -> SpectralClip:
        adaptive = EmaThreshold(0.9) if rule == "ema" else QuantileThreshold(0.85, 10, rule)  # type: ignore[arg-type]
        return SpectralClip.for_model(module, adaptive, backend=backend)  # type: ignore[arg-type]

    module = model()
    clip = make()
    twins = {name: thresholds.Ema(0.9) if rule == "ema" else thresholds.Quantile(0.85, 10, rule) for name in CLIPPED}
    for step in range(24):
        if step == 13:
            file = io.BytesIO()
            torch.save(clip.state_dict(), file)
            file.seek(0)
            clip = make()
            clip.load_state_dict(torch.load(file, weights_only=True))
        before = fill(module, step)
        tau = {name: twin.current() for name, twin in twins.items()}
        sigma = {name: reference.sigma_max(matrix(before[name])) for name in CLIPPED}
        for name, twin in twins.items():
            twin.update(sigma[name])
        clip(module.named_parameters())
        assert largest_difference(now(module), twin_step(before, tau, reference.clip)) <= 2e-5
        stats = clip.layer_stats()
        assert list(stats) == CLIPPED
        for name in CLIPPED:
            assert float(stats[name]["sigma_max"]) == pytest.approx(sigma[name], rel=2e-4)
            assert float(stats[name]["threshold"]) == pytest.approx(tau[name], rel=2e-4)
            above = int((reference.values(matrix(before[name])) > tau[name]).sum())
            assert int(stats[name]["count_above"]) == above
    assert all(0 < float(row["clipped_share"]) < 1 for row in stats.values())


def test_soft_clipping_against_the_twin() -> None:
    for backend in ("exact", "newton_schulz"):
        module = model()
        before = fill(module, 2)
        expected = twin_step(before, dict.fromkeys(CLIPPED, 5.0), reference.soft_clip)
        # The paper's public code leaves a vector of norm ≤ c alone, and damps a longer one as a matrix.
        expected |= {n: before[n] for n in CLIPPED if before[n].ndim == 1 and np.linalg.norm(before[n]) <= 5.0}
        assert any(expected[n] is before[n] for n in CLIPPED)
        SoftSpectralClip.for_model(module, 5.0, backend=backend)(module.named_parameters())  # type: ignore[arg-type]
        assert largest_difference(now(module), expected) <= 1e-5


def test_layers_without_a_gradient_come_and_go() -> None:
    module, clip = model(), SpectralClip(EmaThreshold(0.5), skip=[])
    for step, missing in enumerate(["", "first.weight", "", "conv.weight"]):
        fill(module, step)
        if missing:
            module.get_parameter(missing).grad = None
        clip(module.named_parameters())
    stats = clip.layer_stats()
    assert set(stats) == {name for name, _ in module.named_parameters()}
    assert clip.state_dict()["threshold"]["first.weight"]["count"] == 3


def test_what_is_skipped_and_what_is_not() -> None:
    module = model()
    everything = [name for name, _ in module.named_parameters()]
    cases: list[tuple[LayerClip, list[str]]] = [
        (SpectralClip(1.0), ["wte.weight", "lm_head.weight", "lm_head.bias"]),
        (SpectralClip(1.0, skip=[]), []),
        (SpectralClip(1.0, skip=["*"]), everything),
        (SpectralClip(1.0, skip=["first*", "conv.bias"]), ["conv.bias", "first.weight", "first.bias"]),
        (SpectralClip.for_model(module, 1.0, skip=[]), ["wte.weight"]),
        (SpectralClip.for_model(module, 1.0, skip=[], skip_types=["LayerNorm"]), ["norm.weight", "norm.bias"]),
        (SoftSpectralClip.for_model(module, 1.0, skip=[], skip_types=[]), []),
    ]
    for clip, skipped in cases:
        fill(module, 3, scale=50.0)
        before = {name: grad.clone() for name, grad in now(module).items()}
        clip(module.named_parameters())
        left = [name for name, grad in now(module).items() if torch.equal(grad, before[name])]
        assert left == skipped
        assert set(clip.layer_stats()) == set(everything) - set(skipped)


def test_a_bare_weight_is_never_skipped_by_a_pattern_for_layers() -> None:
    layer = nn.Linear(30, 20)
    layer.weight.grad = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * 9
    SpectralClip(1.0, skip=["weigh?", "bia?"])(layer.named_parameters())
    assert reference.sigma_max(layer.weight.grad.numpy()) > 1.5  # the whole name matches: asked for
    SpectralClip(1.0)(layer.named_parameters())
    assert reference.sigma_max(layer.weight.grad.numpy()) <= 1.00001


@pytest.mark.parametrize("backend", ["exact", "newton_schulz", "randomized"])
def test_a_layer_that_is_not_finite_is_left_counted_and_not_averaged(backend: str) -> None:
    module = model()
    clip = SpectralClip(EmaThreshold(), backend=backend)  # type: ignore[arg-type]
    for step in range(4):
        fill(module, step)
        if step == 2:
            module.first.weight.grad[0, 0] = math.nan
            module.norm.bias.grad[0] = math.inf
            damaged = module.first.weight.grad.clone()
        clip(module.named_parameters())
        if step == 2:
            assert torch.equal(module.first.weight.grad.nan_to_num(5.0), damaged.nan_to_num(5.0))
            assert bool(module.norm.bias.grad[0].isinf())
    stats = clip.layer_stats()
    assert {name for name, row in stats.items() if int(row["non_finite"])} == {"first.weight", "norm.bias"}
    assert all(math.isfinite(float(row["threshold"])) for row in stats.values())


def test_channels_last_and_half_precision_gradients() -> None:
    weight = nn.Parameter(torch.zeros(6, 3, 5, 5))
    values = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 5
    expected = reference.clip(matrix(values.numpy()), 2.0).reshape(6, 3, 5, 5)
    weight.grad = values.to(memory_format=torch.channels_last)
    SpectralClip(2.0)([("w", weight)])
    assert np.abs(weight.grad.numpy() - expected).max() <= 1e-5
    half = nn.Parameter(torch.zeros(6, 75, dtype=torch.bfloat16))
    half.grad = values.reshape(6, 75).bfloat16()
    SpectralClip(2.0)([("w", half)])
    assert reference.sigma_max(half.grad.float().numpy()) <= 2.0 * 1.01


def test_the_gpu_path_reads_no_value() -> None:
    """What `auto` picks on a GPU, with every threshold rule, on tensors without values."""
    with FakeTensorMode():
        module = model()
        for parameter in module.parameters():
            parameter.grad = torch.empty_like(parameter)
        clips: list[LayerClip] = [
            SpectralClip.for_model(module, rule, backend="newton_schulz")
            for rule in (EmaThreshold(), QuantileThreshold(), QuantileThreshold(interpolation="linear"))
        ]
        clips.append(SoftSpectralClip(EmaThreshold(), backend="newton_schulz"))
        for clip in clips:
            for _ in range(2):
                stats = clip(module.named_parameters())
            assert all(isinstance(stat, FakeTensor) for stat in stats)
            assert all(isinstance(parameter.grad, FakeTensor) for parameter in module.parameters())
        with pytest.raises(DataDependentOutputException):
            stats.clipped_fraction.item()


def test_layers_of_one_shape_share_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    module, sizes = model(), []
    inner = SpectralClip.clip_matrices

    def watched(self: SpectralClip, names: list[str], *arguments: object) -> object:
        sizes.append(names)
        return inner(self, names, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(SpectralClip, "clip_matrices", watched)
    fill(module, 0)
    SpectralClip(1.0)(module.named_parameters())
    assert sizes == [["conv.weight"], ["first.weight", "second.weight"], ["tall.weight"]]


def test_a_constant_threshold_above_the_norm_costs_nothing_unless_layers_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, clip = model(), SpectralClip(1e6)
    before = fill(module, 0)
    with monkeypatch.context() as patch:
        patch.setattr("clipbench.clipping.spectral.clip_matrices_", None)  # calling it would raise
        clip(module.named_parameters())
    assert math.isnan(float(clip.layer_stats()["first.weight"]["sigma_max"]))
    clip.measure_layers()
    clip(module.named_parameters())
    module.zero_grad(set_to_none=True)  # as the trainer does before it logs
    for name in CLIPPED:
        sigma = float(clip.layer_stats()[name]["sigma_max"])
        assert sigma == pytest.approx(reference.sigma_max(matrix(before[name])), rel=1e-5)


@pytest.mark.parametrize("rule", [EmaThreshold, QuantileThreshold])
def test_a_threshold_that_includes_the_current_value_clips_by_it(rule: type) -> None:
    """With one value in it, that value is the threshold: the first step is not clipped, the next is by both."""
    module = model()
    clip = SpectralClip(rule(0.5, include_current=True), skip=[])
    for step in range(3):
        before = fill(module, step, scale=10.0**step)
        clip(module.named_parameters())
        sigma = {name: reference.sigma_max(matrix(array)) for name, array in before.items()}
        stats = clip.layer_stats()
        if step == 0:
            assert largest_difference(now(module), before) <= 1e-7
        for name, array in before.items():
            tau = float(stats[name]["threshold"])
            assert (tau < sigma[name]) == (step > 0) or tau == pytest.approx(sigma[name], rel=1e-5)
            expected = reference.clip(matrix(array), tau)
            found = matrix(now(module)[name].double().numpy())
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(array).max()


def test_randomized_draws_are_a_function_of_the_seed() -> None:
    def run(seed: int) -> torch.Tensor:
        module = model()
        clip = SpectralClip(1.0, backend="randomized", rank=2, oversample=1)
        fill(module, 0)
        torch.manual_seed(5)
        clip.reseed(seed)
        clip(module.named_parameters())
        return module.tall.weight.grad

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_a_resumed_randomized_clipper_continues_from_its_bases() -> None:
    module, clip = model(), SpectralClip(EmaThreshold(), backend="randomized")
    for step in range(3):
        fill(module, step)
        clip.reseed(step)
        clip(module.named_parameters())
    state = clip.state_dict()
    assert set(state["bases"]) == {name for name in CLIPPED if name.endswith("weight") and name != "norm.weight"}
    cold = SpectralClip(1.0, backend="randomized", rank=2)
    fill(module, 0)
    cold(module.named_parameters())
    assert cold.state_dict()["bases"] == {}
    results = []
    for each in (clip, SpectralClip(EmaThreshold(), backend="randomized")):
        each.load_state_dict(state)
        each.reseed(3)
        fill(module, 3)
        each(module.named_parameters())
        results.append(now(module)["conv.weight"].clone())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold must be > 0, got 0.0"),
        ({"threshold": 1.0, "backend": "lapack"}, "backend must be one of"),
        ({"threshold": 1.0, "skip": "head"}, "skip must be a list of name patterns, got 'head'"),
        ({"threshold": 1.0, "rank": 0}, "rank must be >= 1, got 0"),
        ({"threshold": 1.0, "oversample": -1}, "oversample must be >= 0"),
        ({"threshold": 1.0, "iterations": -1}, "iterations must be >= 0"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralClip(**options)  # type: ignore[arg-type]
    if "rank" not in options and "oversample" not in options and "iterations" not in options:
        with pytest.raises(ValueError, match=message.replace("one of", "")[:16]):
            SoftSpectralClip(**options)  # type: ignore[arg-type]
