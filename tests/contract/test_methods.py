"""The contract: every method file keeps it, and rules that break it are told apart, each by the promise it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipbench.cli.compose import CONFIG_PATH
from clipbench.config.trust import allow
from clipbench.contract import Bench, Finding, examine, promises
from clipbench.contract.parts import taus
from clipbench.training.trainer import Trainer
from tests.composed import composed
from tests.contract import broken

METHODS = sorted(path.stem for path in (Path(CONFIG_PATH) / "method").glob("*.yaml"))
# No number is τ here: means of another kind, rules that follow the gradients alone, and plain SGD. A method that is
# neither is examined at τ = ∞, so a new one cannot come in here unseen.
WITHOUT_TAU = {
    "autoclip", "median", "medoid", "normalized_momentum", "ps_clip_ema", "ps_clip_quantile", "ps_clip_share",
    "rms_clip", "sgd", "spectral_clip_ema", "spectral_clip_quantile", "stable_spam",
}  # fmt: skip
ADAPTIVE = {
    "adagc", "autoclip", "ps_clip_ema", "ps_clip_quantile", "ps_clip_share", "ps_clip_spectral", "rms_clip",
    "smooth_clip_feedback", "spam", "spectral_clip_ema", "spectral_clip_quantile", "stable_spam", "u_clip", "zclip",
}  # fmt: skip
SCALED_BY_TAU = {"automatic", "mix_clip", "psac", "sample_normalized"}
NORM = {"_target_": "clipbench.clipping.NormClip", "threshold": 1.0}
BATCH = {"_target_": "clipbench.estimators.Batch"}
NO_CLIP = {"_target_": "clipbench.clipping.NoClip"}


@pytest.fixture(autouse=True)
def _own_rules_are_allowed() -> None:
    allow([broken.__name__])


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_the_contract(method: str, bench: Bench) -> None:
    config = composed(f"method={method}")["method"]
    assert bool(taus(config)) == (method not in WITHOUT_TAU)
    findings = examine(config, bench)
    assert [each for each in findings if each.held is False] == []
    silent = {each.promise for each in findings if each.held is None}
    expected = {"identity"} if method in (WITHOUT_TAU - {"sgd"}) | SCALED_BY_TAU else set()
    assert silent == expected | ({"effect"} if method == "sgd" else set())


def ours(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"{broken.__name__}.{name}", **options}


def plain(**parts: Any) -> dict[str, Any]:
    return {"name": "own", "estimator": BATCH, "clipper": NO_CLIP, **parts}


BROKEN = {
    "does nothing": (plain(clipper=ours("Nothing", threshold=1.0)), {"effect", "share"}),
    "does nothing and boasts": (plain(clipper=ours("Boasts", threshold=1.0)), {"effect"}),
    "does nothing to the update": (plain(update=ours("Boasts", threshold=1.0)), {"effect"}),
    "always clips": (plain(clipper=ours("Always", threshold=1.0)), {"identity"}),
    "always clips the update": (plain(update=ours("Always", threshold=1.0)), {"identity"}),
    "halves": (plain(clipper=ours("Halves", threshold=1.0)), {"identity"}),
    "hears no tau": (plain(clipper=ours("Deaf", threshold=1.0)), {"effect"}),
    "forgets": (plain(clipper=ours("Forgets", threshold=broken.EMA)), {"state"}),
    "does not load": (plain(clipper=ours("Half", threshold=broken.EMA)), {"state"}),
    "forgets after the step": (plain(update=ours("Forgets", threshold=broken.EMA)), {"state"}),
    "forgets samples": (plain(estimator=ours("ForgetsSamples", threshold=broken.SAMPLE_EMA)), {"state"}),
    "forgets inside": (
        plain(estimator=ours("ForgetsInside", clipper=NORM | {"threshold": broken.EMA})),
        {"state"},
    ),
    "reports nothing": (plain(clipper=ours("Silent", threshold=1.0)), {"share"}),
    "reports percent": (plain(clipper=ours("Percent", threshold=1.0)), {"share"}),
    "reports no number": (plain(clipper=ours("Undefined", threshold=1.0)), {"identity", "share"}),
    "does nothing beside others": (
        plain(clipper={
            "_target_": "clipbench.clipping.Chain",
            "clippers": [
                NORM, ours("Boasts", threshold=1.0),
            ],
        }),
        {"effect"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_caught_by_the_promise_it_breaks(name: str, bench: Bench) -> None:
    method, expected = BROKEN[name]
    assert {each.promise for each in examine(method, bench) if each.held is False} == expected


def test_the_same_rules_unbroken_keep_the_contract(bench: Bench) -> None:
    """So that it is the fault that is caught, and not the company it is in."""
    good, ema = NORM, NORM | {"threshold": broken.EMA}
    chain = {"_target_": "clipbench.clipping.Chain", "clippers": [good, good | {"threshold": 0.5}]}
    micro = {"_target_": "clipbench.estimators.MicroBatch", "clipper": ema}
    samples = {"_target_": "clipbench.estimators.PerSample", "threshold": broken.SAMPLE_EMA}
    both = {"_target_": "clipbench.clipping.Chain", "clippers": [ema, good]}
    for method in (
        plain(clipper=good), plain(update=good), plain(clipper=ema), plain(update=ema), plain(clipper=chain),
        plain(estimator=micro), plain(estimator=samples, clipper=good),
        plain(estimator=micro, clipper=both, update=ema),
    ):  # fmt: skip
        assert [each for each in examine(method, bench) if each.held is False] == []


def test_a_finding_says_where(bench: Bench) -> None:
    (finding,) = [each for each in examine(BROKEN["always clips"][0], bench) if each.held is False]
    assert finding == Finding("identity", False, "at clipper.threshold = ∞ the weights are not plain SGD's")


def test_an_own_class_may_name_its_tau_and_say_that_it_scales(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken.Always, "identity_at_infinity", False, raising=False)
    findings = {each.promise: each.held for each in examine(BROKEN["always clips"][0], bench)}
    assert findings == {"identity": None, "effect": True, "share": True, "state": True}
    monkeypatch.setattr(broken.Always, "taus", ("limit",), raising=False)
    assert taus(BROKEN["always clips"][0]) == []


class Forgetful(Trainer):
    """Continues with weights and optimizer, and forgets what the method knew."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        super().load_state_dict(state | {part: own[part] for part in own if part in ("estimator", "clipper", "update")})


@pytest.mark.parametrize("method", sorted(ADAPTIVE))
def test_every_rule_that_remembers_would_be_caught_forgetting(
    method: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"method={method}")["method"]
    monkeypatch.setattr("clipbench.contract.bench.Trainer", Forgetful)
    assert promises.state(config, bench).held is False
