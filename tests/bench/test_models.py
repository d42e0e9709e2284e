"""The command `python -m clipbench.bench models`: what it writes, when it fails, and the models themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from clipbench.bench import guard, models
from clipbench.bench.guard import ChildResult
from clipbench.bench.models import SMOKE, TIMED, main, options
from clipbench.bench.models_cell import doubled, exactness, slow_names
from clipbench.bench.models_zoo import RANDOM, zoo, zoo_problem
from clipbench.errors import ConfigError
from clipbench.per_sample import PerSampleClipper
from tests.per_sample.zoo import Rotated

FOUND = {
    "norm_error": 1e-14, "gradient_error": 2e-14, "slow": {}, "complaint": None, "parameters": 1000, "threshold": 1.0,
    "errors": {"sgd": 0.0, "clipbench": 1e-7, "vmap": 1e-7, "opacus_hooks": "failed: no rule"},
}  # fmt: skip


class Children:
    """In place of the child processes: answers at once, and remembers the jobs."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.found: dict[str, dict[str, Any]] = {}

    def __call__(self, arguments: Sequence[str], memory: float, seconds: float) -> ChildResult:
        job = json.loads(arguments[-1])
        self.jobs.append(f"{job['job']} {job['model'].removeprefix('zoo:')}")
        if job["job"] == "exactness":
            return ChildResult("ok", FOUND | self.found.get(job["model"].removeprefix("zoo:"), {}))
        if job["job"] == "memory":
            return ChildResult("ok", {"bytes": 100})
        return ChildResult("ok", {"seconds": {name: [1.0, 1.1, 0.9] for name in job["chunks"]}})


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    instead = Children()
    monkeypatch.setattr(guard, "guarded", instead)
    return instead


def frame_of(results: Path, name: str = "bench_models") -> pd.DataFrame:
    return pd.read_parquet(results / "data" / f"{name}.parquet")


def test_a_model_is_measured_and_kept(children: Children, tmp_path: Path) -> None:
    main(["--only", "gpt2", "lstm", "--results", str(tmp_path)])
    frame = frame_of(tmp_path)
    rows = {row.engine: row for row in frame[frame["model"] == "gpt2"].itertuples()}
    assert list(rows) == ["sgd", "clipbench", "vmap", "opacus_hooks"]
    assert (rows["clipbench"].status, rows["clipbench"].ratio, rows["clipbench"].norm_error) == ("ok", 1.0, 1e-14)
    assert rows["opacus_hooks"].status == "failed: no rule"
    text = (tmp_path / "tables" / "bench_models.md").read_text(encoding="utf-8")
    assert "| GPT | GPT-2 | 0.00 M | 1e-14, 2e-14 | none | 1.00 [" in text
    assert "Parameters on the slow path" not in text
    assert all((tmp_path / "figures" / f"bench_models.{kind}").stat().st_size > 0 for kind in ("png", "svg"))
    children.jobs.clear()
    main(["--only", "gpt2", "--results", str(tmp_path)])
    assert children.jobs == []
    main(["--only", "gpt2", "--results", str(tmp_path), "--fresh"])
    assert "exactness gpt2" in children.jobs


def test_errors_alone_are_not_timed_and_are_timed_later(children: Children, tmp_path: Path) -> None:
    main(["--only", "gpt2", "--errors-only", "--results", str(tmp_path)])
    assert children.jobs == ["exactness gpt2"]
    assert set(frame_of(tmp_path)["status"]) == {"not timed", "failed: no rule"}
    assert not (tmp_path / "figures").exists()
    main(["--only", "gpt2", "--results", str(tmp_path)])
    assert "timing gpt2" in children.jobs


@pytest.mark.parametrize(
    "found", [{"norm_error": 0.3}, {"gradient_error": 0.3}, {"norm_error": None, "complaint": "ValueError: refused"}]
)
def test_a_wrong_or_refused_model_fails_the_command(
    children: Children, tmp_path: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    children.found["gpt2"] = found
    with pytest.raises(SystemExit):
        main(["--only", "gpt2", "lstm", "--errors-only", "--results", str(tmp_path)])
    assert capsys.readouterr().out.endswith("clipbench: wrong or refused: gpt2\n")


def test_slow_parameters_are_listed_with_their_reasons(children: Children, tmp_path: Path) -> None:
    children.found["gpt2"] = {"slow": {"model.wte.weight": "read by FooBackward0"}}
    main(["--only", "gpt2", "--errors-only", "--results", str(tmp_path)])
    text = (tmp_path / "tables" / "bench_models.md").read_text(encoding="utf-8")
    assert text.endswith("- GPT-2: `model.wte.weight`, read by FooBackward0\n")


def test_smoke_is_twelve_models_of_which_two_are_timed(children: Children, tmp_path: Path) -> None:
    main(["--smoke", "--results", str(tmp_path)])
    assert [job.split()[1] for job in children.jobs if job.startswith("exactness")] == list(SMOKE)
    assert {job.split()[1] for job in children.jobs if job.startswith("timing")} == set(TIMED)
    assert len(SMOKE) == 12
    assert (tmp_path / "data" / "bench_models_smoke.parquet").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "resnet"], "only must be among .*, got resnet"),
        (["--rounds", "0"], "rounds must be > 0, got 0"),
        (["--memory", "-1"], "memory must be > 0, got -1.0"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        options(words)


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    monkeypatch.setattr(models, "zoo", missing)
    with pytest.raises(ConfigError, match=r"^models needs timm, which is not installed: pip install"):
        options([])


def test_the_zoo_is_wide() -> None:
    entries = zoo()
    assert len(entries) >= 70
    assert len({entry.family for entry in entries.values()}) >= 20
    assert len({entry.title for entry in entries.values()}) == len(entries)
    assert set(SMOKE) <= set(entries)


def test_a_model_is_the_same_at_every_call_and_draws_nothing_in_training() -> None:
    first, second = zoo_problem("beit", 3), zoo_problem("beit", 3)
    assert all(torch.equal(p, q) for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.model(first.inputs), first.model(first.inputs))
    assert first.losses(first.model(first.inputs), first.targets).shape == (3,)
    for module in zoo_problem("bert_classifier", 2).model.modules():
        assert all(getattr(module, name, 0.0) == 0.0 for name in RANDOM if isinstance(getattr(module, name, 0), float))


def test_slow_names_are_read_from_the_warning() -> None:
    model = Rotated()
    losses = model(torch.randn(4, 6)).square().sum(1)
    with pytest.warns(UserWarning, match="no per-sample rule") as caught:
        PerSampleClipper(model, 1.0).backward(losses)
    assert list(slow_names(str(caught[0].message))) == ["angle"]
    assert slow_names("no per-sample rule covers how these parameters are used: a.b (f(x), g), c (y); their gradients"
                      ) == {"a.b": "f(x), g", "c": "y"}  # fmt: skip
    assert slow_names("another warning") == {}


def test_exactness_of_a_small_model() -> None:
    found = exactness("zoo:bag", ["sgd", "clipbench", "vmap"])
    assert max(found["norm_error"], found["gradient_error"]) < 1e-12
    assert found["complaint"] is None
    assert found["errors"]["clipbench"] < 1e-5
    assert found["threshold"] > 0


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    main(["--only", "bag", "--rounds", "2", "--seconds", "0.2", "--results", str(tmp_path)])
    frame = frame_of(tmp_path).set_index("engine")
    assert frame.loc["clipbench", "status"] == "ok"
    assert frame.loc["clipbench", "ratio"] > 0


def test_exactness_is_measured_in_double_precision_complex_parameters_included() -> None:
    case = doubled(zoo_problem("fourier", 2))
    assert {p.dtype for p in case.model.parameters()} == {torch.float64, torch.complex128}
