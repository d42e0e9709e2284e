"""What every rule tells of a step, refuses, hands on to others, and takes where nothing is given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import clipbench.clipping
from clipbench.clipping import (
    AdaGC,
    AdaptiveGradientClip,
    AutoClip,
    Chain,
    Clipper,
    ClipStats,
    DeltaClip,
    EmaThreshold,
    ErrorFeedback,
    MixClip,
    NoClip,
    NormalizedUpdate,
    NormClip,
    PerTensorNorm,
    QuantileThreshold,
    RmsClip,
    SoftSpectralClip,
    SpectralClip,
    SpikeClip,
    StableSpikeClip,
    ValueClip,
    ZClip,
    base,
)
from tests.clipping.test_rules import SHAPES, TWINS, gradients, module, run
from tests.reference import rules


def told(clipper: Clipper, steps: list[rules.Arrays]) -> list[tuple[rules.Arrays, rules.Arrays, ClipStats]]:
    """Gradients before, gradients after and what the rule says, of every step."""
    holder, out = module(), []
    for grads in steps:
        for name, parameter in holder.named_parameters():
            parameter.grad = torch.tensor(grads[name], dtype=parameter.dtype)
        stats = clipper(holder.named_parameters())
        out.append((grads, {name: p.grad.numpy().copy() for name, p in holder.named_parameters()}, stats))
    return out


@pytest.mark.parametrize("name", TWINS)
def test_what_a_rule_says_of_each_step(name: str) -> None:
    """The norm is the whole gradient's before clipping; where nothing counts as clipped, nothing is changed, or the
    class says that it acts there too."""
    clipper, steps = TWINS[name][0](), gradients()
    quiet, shares = 0, []
    carried = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    for grads, after, stats in told(clipper, steps):
        seen = {key: grads[key] + carried[key] for key in SHAPES} if name == "u_clip" else grads
        if name == "u_clip":
            carried = {key: seen[key] - after[key] for key in SHAPES}
        assert stats.norm is not None
        assert stats.norm.dtype == stats.clipped_fraction.dtype == torch.float64
        assert stats.norm.shape == stats.clipped_fraction.shape == ()
        assert float(stats.norm) == pytest.approx(rules.total_norm(seen), rel=1e-6)
        shares.append(float(stats.clipped_fraction))
        changed = any(not np.allclose(after[key], seen[key], rtol=1e-12, atol=0) for key in SHAPES)
        assert 0 <= shares[-1] <= 1
        assert changed or shares[-1] == 0
        quiet += shares[-1] == 0 and changed
    assert max(shares) > 0
    assert bool(quiet) == getattr(type(clipper), "acts_below_threshold", False)


def test_what_rules_on_the_update_say() -> None:
    """The update is twice the gradient: its norm (MixClip: that of m, a tenth of it), and what was clipped of it."""
    holder, mix, normalized, rms = module(), MixClip(3.0, 0.7, 0.1), NormalizedUpdate(), RmsClip(0.9)
    squares: rules.Arrays = {}
    seen = set()
    for step, grads in enumerate(gradients()[:20], 1):
        beta = 0.9 * (1 - 0.9 ** (step - 1)) / (1 - 0.9**step)
        squares = {key: beta * squares.get(key, 0.0) + (1 - beta) * grads[key] ** 2 for key in SHAPES}
        over = [np.sqrt(np.mean(grads[key] ** 2 / np.maximum(squares[key], 1e-12))) > 1 + 1e-12 for key in SHAPES]
        norm = rules.total_norm({key: 2 * grads[key] for key in SHAPES})
        expected = {mix: (0.1 * norm, 0.1 * norm > 3.0), normalized: (norm, 1.0), rms: (norm, np.mean(over))}
        for rule, (length, share) in expected.items():
            for name, parameter in holder.named_parameters():
                parameter.grad = torch.tensor(grads[name])
            if not isinstance(rule, NormalizedUpdate):
                rule.observe(list(holder.named_parameters()))
            for parameter in holder.parameters():
                parameter.grad = 2 * parameter.grad
            stats = rule(holder.named_parameters())
            assert float(stats.norm) == pytest.approx(length)
            assert stats.clipped_fraction.dtype == torch.float64
            assert float(stats.clipped_fraction) == pytest.approx(float(share))
            seen.add((type(rule).__name__, float(stats.clipped_fraction)))
    assert {("MixClip", 0.0), ("MixClip", 1.0)} <= seen
    assert len([1 for name, share in seen if name == "RmsClip"]) > 2


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_an_update_without_a_direction_stays(bad: float) -> None:
    holder = module()
    for parameter in holder.parameters():
        parameter.grad = torch.full_like(parameter, bad)
    stats = NormalizedUpdate()(holder.named_parameters())
    assert float(stats.clipped_fraction) == 0
    for parameter in holder.parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, bad), equal_nan=True)


def test_which_rules_say_that_they_act_below_their_threshold() -> None:
    acting = {
        name
        for name in clipbench.clipping.__all__
        if getattr(getattr(clipbench.clipping, name), "acts_below_threshold", False)
    }
    assert acting == {"MixClip", "NormalizedUpdate", "SmoothClip", "SoftSpectralClip", "StableSpikeClip"}


def test_spikes_are_counted_by_entry() -> None:
    entries = sum(math.prod(shape) for shape in SHAPES.values())
    for before, after, stats in told(SpikeClip(4.0, 0.9, 5), gradients()):
        changed = sum(int((before[key] != after[key]).sum()) for key in SHAPES)
        assert float(stats.clipped_fraction) == pytest.approx(changed / entries)


@pytest.mark.parametrize(
    "make",
    [*(make for make, _ in TWINS.values()), lambda: NormalizedUpdate(), lambda: RmsClip(), lambda: PerTensorNorm(1.0),
     lambda: SpectralClip(1.0), lambda: Chain([NormClip(1.0), ValueClip(1.0)])],
)  # fmt: skip
def test_without_any_gradient_there_is_nothing_to_clip(make: Callable[[], Clipper]) -> None:
    stats = make()(list(module().named_parameters()))
    assert stats.norm is not None
    assert (float(stats.norm), float(stats.clipped_fraction)) == (0.0, 0.0)


def test_a_chain_carries_the_state_the_seeds_and_the_layers_of_its_links() -> None:
    def make() -> Chain:
        return Chain([NormClip(1e9), SpectralClip(EmaThreshold(0.5), "randomized"), SpectralClip(1.0, "randomized")])

    steps, first, second = gradients()[:6], make(), make()
    whole = run(make(), steps)
    run(first, steps[:3])
    assert set(first.state_dict()) == {"0", "1", "2"}
    assert set(first.layer_stats()) == set(SHAPES)
    first_threshold = first.clippers[1].layer_stats()["matrix"]["threshold"]
    assert torch.equal(first.layer_stats()["matrix"]["threshold"], first_threshold)
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(run(second, steps[3:]), whole[3:], strict=True):
        for key in SHAPES:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-6)
    second.reseed(5)
    links: list[Any] = second.clippers
    assert [link.generator.initial_seed() for link in links[1:]] == [6, 7]
    assert Chain([NormClip(1.0), ValueClip(1.0)]).layer_stats() == {}


def test_error_feedback_wants_names_and_hands_on_seeds_and_layers() -> None:
    holder = module()
    for parameter in holder.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="named_parameters must be named"):
        ErrorFeedback(NormClip(1.0))(holder.parameters())
    inner = SpectralClip(1.0)
    outer = ErrorFeedback(inner)
    outer(holder.named_parameters())
    outer.reseed(11)
    assert inner.generator.initial_seed() == 11
    assert set(outer.layer_stats()) == set(inner.layer_stats()) == set(SHAPES)


@pytest.mark.parametrize("make", [AdaptiveGradientClip, SpikeClip, StableSpikeClip, NormalizedUpdate])
def test_rules_that_want_dense_real_gradients_refuse_others_by_name(make: Callable[[], Clipper]) -> None:
    sparse, wave = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    sparse.grad = torch.sparse_coo_tensor(
        [[1, 3, 1]], torch.ones(3, 2), (4, 2), check_invariants=True
    )  # as an embedding gives it
    wave.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"must have dense gradients, got torch.sparse_coo for table"):
        make()([("table", sparse)])
    sparse.grad = sparse.grad.coalesce()  # as norm clipping leaves it
    with pytest.raises(ValueError, match=r"must have dense gradients, got torch.sparse_coo for table"):
        make()([("table", sparse)])
    with pytest.raises(ValueError, match=r"must have real gradients, got torch.complex64 for wave"):
        make()([("wave", wave)])


DEFAULTS: dict[type, dict[str, object]] = {
    AdaGC: {"relative": 1.05, "absolute": 1.0, "coefficient": 0.98, "warmup": 100, "skip": ()},
    AdaptiveGradientClip: {"clipping": 0.01, "eps": 1e-3},
    AutoClip: {"percentile": 10.0},
    DeltaClip: {"least": 1e-3},
    EmaThreshold: {"coefficient": 0.9, "epsilon": 0.0, "include_current": False, "feed_clipped": False},
    MixClip: {"mix": 0.7, "scale": 0.1},
    QuantileThreshold: {"quantile": 0.85, "window": 100, "interpolation": "lower", "include_current": False,
                        "feed_clipped": False},
    RmsClip: {"coefficient": 0.99, "eps": 1e-6},
    SoftSpectralClip: {"backend": "auto"},
    SpectralClip: {"backend": "auto", "rank": None, "oversample": 5, "iterations": 1},
    SpikeClip: {"factor": 5000.0, "coefficient": 0.999, "warmup": 20},
    StableSpikeClip: {"entry": 0.999, "first": 0.7, "second": 0.9, "eps": 1e-8},
    ZClip: {"coefficient": 0.97, "score": 2.5, "warmup": 25, "most": 1.0, "eps": 1e-6},
}  # fmt: skip


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_defaults_are_those_of_the_sources(kind: type) -> None:
    """A default is part of a method: papers' and public codes' values, on which published runs may rest."""
    known = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    assert {name: known[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]
    for_model = getattr(kind, "for_model", None)
    if for_model is not None:
        same = {name: parameter.default for name, parameter in inspect.signature(for_model).parameters.items()}
        assert {name: same[name] for name in DEFAULTS[kind]} == DEFAULTS[kind]


@pytest.mark.parametrize("place", [clipbench.clipping, base])
def test_the_table_of_contents_names_what_is_there(place: Any) -> None:
    assert all(hasattr(place, name) for name in place.__all__)
    assert len(set(place.__all__)) == len(place.__all__)


def test_the_ends_of_a_range_are_in_it() -> None:
    assert (MixClip(1.0, 0.0).mix, MixClip(1.0, 1.0).mix, DeltaClip(1.0, 0.0).least) == (0.0, 1.0, 0.0)
    assert (AutoClip(0).percentile, AutoClip(100).percentile, SpikeClip(warmup=0).warmup) == (0.0, 100.0, 0)


def test_no_clipping_keeps_its_zero_where_the_parameters_are() -> None:
    there = nn.Parameter(torch.empty(2, device="meta"))
    assert NoClip()([("w", there)]).clipped_fraction.device.type == "meta"
