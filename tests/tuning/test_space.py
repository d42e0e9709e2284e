"""Search spaces: where ranges come from, what they give, and what a bad one is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipbench.cli.compose import compose
from clipbench.errors import ConfigError
from clipbench.tuning.space import Fixed, Range, space


def config(method: str = "norm_clip", own: Any = None, **protocols: Any) -> dict[str, Any]:
    node = {"shared": {"optimizer": {"lr": {"low": 0.01, "high": 1, "log": True}}}, "methods": {}}
    return {"tuning": {"ours": node, "paper": None} | protocols, "method": {"name": method, "tuning": own}}


def test_shared_ranges_come_first_and_the_method_s_own_after() -> None:
    own = {"clipper": {"threshold": {"low": 0.1, "high": 10, "log": True}}}
    found = space(config(own=own), "ours")
    assert [r.path for r in found.ranges] == ["optimizer.lr", "method.clipper.threshold"]
    assert found.ranges[1] == Range("method.clipper.threshold", 0.1, 10.0, True)


def test_the_experiment_replaces_narrows_fixes_and_removes() -> None:
    own = {"clipper": {"threshold": {"low": 0.1, "high": 10, "log": True}, "other": {"low": 0, "high": 1}}}
    methods = {
        "norm_clip": {
            "optimizer": {"momentum": 0.7716},
            "method": {"clipper": {"threshold": {"low": 1, "high": 2}, "other": None}},
        }
    }
    shared = {"optimizer": {"lr": {"low": 0.01, "high": 1, "log": True}}}
    found = space(config(own=own, ours={"shared": shared, "methods": methods}), "ours")
    assert found.ranges[1] == Range("method.clipper.threshold", 1.0, 2.0, False)
    assert len(found.ranges) == 2
    assert found.fixed == (Fixed("optimizer.momentum", 0.7716),)


def test_the_paper_s_protocol_takes_nothing_of_ours() -> None:
    own = {"clipper": {"threshold": {"low": 0.1, "high": 10}}}
    paper = {"trials": {}, "shared": {}, "methods": {"norm_clip": {"optimizer": {"lr": {"low": 0.1, "high": 0.2}}}}}
    found = space(config(own=own, paper=paper), "paper")
    assert found.ranges == (Range("optimizer.lr", 0.1, 0.2, False),)
    with pytest.raises(ConfigError, match=r"must state the ranges of sgd .*methods it states: norm_clip"):
        space(config("sgd", paper=paper), "paper")


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({"low": 1, "high": 1}, r"optimizer\.lr\.low must be < high, got 1 and 1"),
        ({"low": 2, "high": 1}, r"optimizer\.lr\.low must be < high, got 2 and 1"),
        ({"low": 0, "high": 1, "log": True}, r"optimizer\.lr\.low must be > 0 for a logarithmic range, got 0"),
        ({"low": "a", "high": 1}, r"optimizer\.lr\.low must be a finite number, got a"),
        ({"low": True, "high": 1}, r"optimizer\.lr\.low must be a finite number, got True"),
        ({"low": 0, "high": math.inf}, r"optimizer\.lr\.high must be a finite number, got inf"),
        ({"low": 0}, r"optimizer\.lr\.high must be a finite number, got null"),
        ({"low": 0, "high": 1, "log": 1}, r"optimizer\.lr\.log must be true or false, got 1"),
        ({"low": 0, "high": 1, "step": 1}, r"optimizer\.lr\.step is not an option of a range"),
    ],
)
def test_a_bad_range_is_named(node: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        space(config(ours={"shared": {"optimizer": {"lr": node}}, "methods": {}}), "ours")


@pytest.mark.parametrize("key", ["steps", "epochs", "batch_size", "seed", "model"])
def test_what_changes_the_work_cannot_be_tuned(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} cannot be tuned"):
        space(config(ours={"shared": {key: {"low": 1, "high": 2}}, "methods": {}}), "ours")


def test_a_space_without_a_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one range"):
        space(config(ours={"shared": {"optimizer": {"lr": 0.1}}, "methods": {}}), "ours")


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e6), st.floats(0, 1, exclude_max=True), st.booleans())
def test_values_lie_within_the_range_and_grow_with_the_position(low: float, factor: float, u: float, log: bool) -> None:
    found = Range("x", low, low * factor, log)
    assert found.low <= found.at(u) <= found.high
    assert found.at(u / 2) <= found.at(u)
    assert found.at(0.0) == pytest.approx(low, rel=1e-3)


def test_a_logarithmic_range_is_even_in_the_logarithm() -> None:
    assert Range("x", 0.01, 1.0, True).at(0.5) == 0.1
    assert Range("x", 0.0, 10.0, False).at(0.25) == 2.5


@pytest.mark.parametrize("experiment", ["heavy_tailed_mlp/smoke", "ps_clip_alexnet_cifar100/smoke"])
def test_the_experiments_own_ranges_hold_their_defaults(experiment: str) -> None:
    for method in ("sgd", "norm_clip", "ps_clip"):
        whole = compose([f"experiment={experiment}", f"method={method}", "tuned=none"])
        for found in space(whole, "ours").ranges:
            node: Any = whole
            for key in found.path.split("."):
                node = node[key]
            assert found.low <= node <= found.high, found
