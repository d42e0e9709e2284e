"""Classes from outside: what is kept, and for each promise a class that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipbench import check
from clipbench.config.trust import allow
from clipbench.contract import examine_dataset, examine_model, examine_outside, method_of
from clipbench.contract.promises import Finding
from clipbench.errors import ConfigError

HOME = "tests.contract.strangers"
SMALL = {"samples": 40, "validation": 10, "test": 10}


def broken(findings: list[Finding]) -> set[str]:
    return {each.promise for each in findings if each.held is False}


@pytest.mark.parametrize(
    ("name", "promises"),
    [
        ("DoesNothing", {"effect"}),
        ("NotTheIdentity", {"identity"}),
        ("Draws", {"repeats", "state"}),
        ("Reads", {"waits"}),
        ("Forgets", {"state"}),
        ("DividesByZero", {"finite"}),
        ("Raises", {"trains"}),
    ],
)
def test_a_clipper_that_breaks_a_promise_is_told_so(name: str, promises: set[str]) -> None:
    allow([HOME])
    found = broken(examine_outside(method_of(f"{HOME}.{name}", {"threshold": 1.0})))
    assert promises <= found
    assert found <= promises | {"identity", "composes", "waits"}


def test_a_good_clipper_keeps_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["clipbench.clipping.NormClip"]) == 0
    out = capsys.readouterr().out
    assert "trains with Batch, MicroBatch, PerSample, sgd, adam, adamw, muon, matrix_sgd" in out
    assert "times plain SGD's" in out
    assert out.endswith("nothing broken\n")


def test_the_exit_status_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([f"{HOME}.Reads", "threshold=0.5"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN  waits" in out
    assert "1 of 9 broken" in out


@pytest.mark.parametrize(
    "words", [["os.path.join"], ["clipbench.models.MLP", "kind=x"], ["clipbench.nothing"], ["x y"]]
)
def test_bad_input_is_one_line(words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check.main(words)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "promise"),
    [("Unshaped", "shape"), ("Together", "apart"), ("Unseeded", "repeats"), ("Detached", "trains")],
)
def test_a_model_that_breaks_a_promise_is_told_so(name: str, promise: str) -> None:
    allow([HOME])
    assert broken(examine_model(f"{HOME}.{name}", "vector", {})) == {promise}


def test_datasets(tmp_path: Path) -> None:
    allow([HOME])
    assert broken(examine_dataset("clipbench.data.HeavyTailed", tmp_path, SMALL)) == set()
    assert broken(examine_dataset(f"{HOME}.Careless", tmp_path, SMALL)) == {"repeats", "splits"}
