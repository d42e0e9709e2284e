"""The configs of a tuning's runs are what Hydra composes for them, and Hydra composes once for a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir

from clipbench.cli import compose as composing
from clipbench.cli.compose import CONFIG_PATH, Compositions, compose
from clipbench.errors import ConfigError
from clipbench.tuning import plan
from clipbench.tuning.plan import words
from tests.tuning.helpers import arguments

METHODS = ("sgd", "norm_clip", "ps_clip")


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The overrides of every composition that Hydra makes."""
    made: list[Sequence[str]] = []
    genuine = composing.hydra_compose

    def counting(name: str, overrides: list[str], **options: Any) -> Any:
        made.append(overrides)
        return genuine(name, overrides, **options)

    monkeypatch.setattr(composing, "hydra_compose", counting)
    return made


def test_the_configs_of_all_trials_take_one_composition_a_method(composed: list[Sequence[str]], tmp_path: Path) -> None:
    typed = [*arguments(tmp_path), "noise=rank_one", "tuning.methods=[sgd,norm_clip,ps_clip]"]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        made = plan(typed)
        assert made.methods == list(METHODS)
        for method in METHODS:
            ranges = made.spaces[method].ranges
            for trial in range(40):
                params = {each.path: 0.001 * (trial + 1) for each in ranges}
                found = made.config(method, made.settings(method, params), role="tune", trial=trial, seed=1000)
                assert (found["trial"], found["method"]["name"]) == (trial, method)
                assert found["optimizer"]["lr"] == 0.001 * (trial + 1)
    assert len(composed) == len(METHODS) + 1  # the plan's own is the first


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("marks", [{"role": "tune", "trial": 3, "seed": 1000}, {"role": "final", "trial": None}])
def test_a_config_is_what_hydra_composes(method: str, marks: dict[str, Any], tmp_path: Path) -> None:
    typed = arguments(tmp_path)
    settings = {"optimizer.lr": 1e-05, "optimizer.momentum": 0.5, "model.bias": False, "epochs": None}
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        made = plan(typed)
        found = made.config(method, settings, **marks)
        hydra = compose([*typed, f"method={method}", "tuned=none", *words(marks), *words(settings)])
    assert found == hydra
    assert isinstance(found["optimizer"]["lr"], float)


def test_values_are_laid_over_a_copy_and_a_slip_is_named() -> None:
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        compositions = Compositions()
        first = compositions.config(["method=sgd"], {"optimizer.lr": 0.5, "steps": 7})
        second = compositions.config(["method=sgd"], {})
        assert (first["optimizer"]["lr"], first["steps"]) == (0.5, 7)
        assert second == compose(["method=sgd"]) != first
        for option in ("optimizer.lrr", "nothing.at.all", "seeds"):
            with pytest.raises(ConfigError, match=f"{option} is not an option"):
                compositions.config(["method=sgd"], {option: 1})
