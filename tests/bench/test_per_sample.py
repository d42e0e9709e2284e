"""The command `python -m clipbench.bench per_sample`: limits, resuming, tables, and how rounds are shared out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clipbench.bench import cell, guard, per_sample
from clipbench.bench.guard import ChildResult
from clipbench.bench.per_sample import Limits, main, options
from clipbench.errors import ConfigError

LIMITS = Limits(memory=2 * 2**30, step=1.0, budget=1.0, rounds=3, threads=1)
FOUND = {"threshold": 1.0, "errors": {"sgd": 0.0, "clipbench": 1e-7, "vmap": 1e-7, "opacus_hooks": 1e-7}}
FULL = ChildResult("out of memory (limit 2 GiB)", {}, memory=True)


class Children:
    """In place of the child processes: answers at once, and remembers the jobs."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.too_large: set[tuple[str, int]] = set()  # engine and chunk that do not fit
        self.together = 9  # engines that fit in one process

    def __call__(self, arguments: Sequence[str], memory: float, seconds: float) -> ChildResult:
        job = json.loads(arguments[-1])
        self.jobs.append(job)
        if job["job"] == "errors":
            return ChildResult("ok", FOUND)
        if job["job"] == "memory":
            size = {"sgd": 100, "clipbench": 120}.get(job["engine"], 1000)
            return FULL if (job["engine"], job["chunk"]) in self.too_large else ChildResult("ok", {"bytes": size})
        if len(job["chunks"]) > self.together:
            return FULL
        seconds_of = {"sgd": [1.0, 1.1, 0.9], "clipbench": [1.2, 1.3, 1.1]}
        return ChildResult("ok", {"seconds": {name: seconds_of.get(name, [20.0, 22.0]) for name in job["chunks"]}})

    def kinds(self) -> list[str]:
        kinds = [f"{job['job']} {job.get('engine', '')}".strip() for job in self.jobs]
        self.jobs.clear()
        return kinds


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    instead = Children()
    monkeypatch.setattr(guard, "guarded", instead)
    return instead


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest of a test."""
    monkeypatch.setattr(per_sample, "figure", lambda *arguments: [])


def by_engine(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["engine"]: row for row in rows}


def test_ratios_are_to_plain_sgd(children: Children) -> None:
    rows = by_engine(per_sample.cell("mlp_8", 64, ["clipbench", "vmap"], FOUND, LIMITS))
    assert list(rows) == ["sgd", "clipbench", "vmap"]
    assert rows["clipbench"]["ratio"] == pytest.approx(1.2)
    assert rows["clipbench"]["memory_ratio"] == pytest.approx(1.2)
    assert (rows["vmap"]["n"], rows["vmap"]["ratio"]) == (2, pytest.approx(21 / 1.05))  # over the same two rounds


def test_what_does_not_fit_is_written_and_vmap_goes_on_in_parts(children: Children) -> None:
    children.too_large = {("opacus_hooks", 0), ("vmap", 0), ("vmap", 16)}
    rows = by_engine(per_sample.cell("mlp_8", 64, ["vmap", "opacus_hooks"], FOUND, LIMITS))
    assert rows["opacus_hooks"]["status"] == "out of memory (limit 2 GiB)"
    assert "ratio" not in rows["opacus_hooks"]
    assert (rows["vmap"]["status"], rows["vmap"]["chunk"]) == ("ok", 4)
    assert children.jobs[-1]["chunks"] == {"sgd": 0, "vmap": 4}
    assert "out of memory (limit 2 GiB)" in per_sample.describe(rows["opacus_hooks"])


def test_engines_that_fit_alone_only_are_timed_apart(children: Children) -> None:
    children.together = 2
    rows = by_engine(per_sample.cell("mlp_8", 64, ["clipbench", "vmap", "opacus_hooks"], FOUND, LIMITS))
    assert all(row["status"] == "ok" and row["ratio"] > 0 for row in rows.values())
    assert [len(job["chunks"]) for job in children.jobs if job["job"] == "timing"] == [4, 2, 3, 2, 2]


def test_an_engine_too_large_beside_plain_sgd_is_written(children: Children) -> None:
    children.together = 1
    rows = by_engine(per_sample.cell("mlp_8", 64, ["vmap"], FOUND, LIMITS))
    assert rows["vmap"]["status"] == "out of memory (limit 2 GiB)"


def test_an_engine_that_is_not_installed_is_written(children: Children) -> None:
    found = {**FOUND, "errors": {**FOUND["errors"], "vmap": "not installed: opacus"}}
    rows = by_engine(per_sample.cell("mlp_8", 64, ["vmap"], found, LIMITS))
    assert rows["vmap"]["status"] == "not installed: opacus"


def arguments(results: Path, *more: str) -> list[str]:
    fixed = ["--models", "mlp_8", "--batches", "4", "8", "--scaling", "without", "--results", str(results)]
    return [*fixed, "--engines", "sgd", "clipbench", *more]


@pytest.mark.usefixtures("no_figure")
def test_finished_cells_are_kept(children: Children, tmp_path: Path) -> None:
    main(arguments(tmp_path))
    cells = ["memory sgd", "memory clipbench", "timing"]
    assert children.kinds() == ["errors", *cells, *cells]
    path = tmp_path / "data" / "bench_per_sample.parquet"
    before = pd.read_parquet(path)
    main(arguments(tmp_path))
    assert children.kinds() == []
    pd.testing.assert_frame_equal(pd.read_parquet(path), before)
    main([*arguments(tmp_path), "vmap"])  # only what is missing
    assert "memory clipbench" not in children.kinds()
    assert set(pd.read_parquet(path)["engine"]) == {"sgd", "clipbench", "vmap"}
    main(arguments(tmp_path, "--fresh"))
    assert children.kinds() == ["errors", *cells, *cells]


@pytest.mark.usefixtures("no_figure")
def test_what_did_not_fit_is_tried_again_with_another_limit(children: Children, tmp_path: Path) -> None:
    children.too_large = {("clipbench", 0)}
    main(arguments(tmp_path, "--memory", "2"))
    children.kinds()
    main(arguments(tmp_path, "--memory", "2"))
    assert children.kinds() == []
    main(arguments(tmp_path, "--memory", "3"))
    assert "memory clipbench" in children.kinds()


@pytest.mark.usefixtures("no_figure")
def test_rows_of_another_machine_are_measured_again(children: Children, tmp_path: Path) -> None:
    main(arguments(tmp_path))
    path = tmp_path / "data" / "bench_per_sample.parquet"
    pd.read_parquet(path).assign(threads=99).to_parquet(path)
    children.kinds()
    main(arguments(tmp_path))
    assert "timing" in children.kinds()
    assert 99 not in set(pd.read_parquet(path)["threads"])


def test_tables_and_figure_name_what_did_not_fit(children: Children, tmp_path: Path) -> None:
    children.too_large = {("opacus_hooks", 0)}
    main(["--models", "mlp_8", "--batches", "64", "--engines", "clipbench", "opacus_hooks", "--memory", "2",
          "--results", str(tmp_path)])  # fmt: skip
    text = (tmp_path / "tables" / "bench_per_sample.md").read_text(encoding="utf-8")
    assert "| MLP, width 8 | 64 | 1e+03 | 1.20 [" in text
    assert "out of memory (limit 2 GiB)" in text
    assert all((tmp_path / "figures" / f"bench_per_sample.{kind}").stat().st_size > 0 for kind in ("png", "svg"))
    scaling = pd.read_parquet(tmp_path / "data" / "bench_per_sample_scaling.parquet")
    assert len(scaling) == 2 * len(per_sample.SCALING)
    assert (tmp_path / "tables" / "bench_per_sample_scaling.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "resnet"], "models must be .*, got resnet"),
        (["--engines", "jax"], "engines must be among .*, got jax"),
        (["--batches", "0"], "batches must be >= 1, got 0"),
        (["--rounds", "0"], "rounds must be > 0, got 0"),
        (["--memory", "-1"], "memory must be > 0, got -1.0"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        options(words)


def test_rounds_follow_the_first_steps() -> None:
    rounds = cell.rounds_within({"sgd": 0.05, "clipbench": 0.05, "vmap": 2.5, "opacus_hooks": 0.5}, budget=20, most=40)
    assert rounds == {"sgd": 40, "clipbench": 40, "vmap": 3, "opacus_hooks": 10}
    slow = cell.rounds_within({"sgd": 2.0, "clipbench": 2.0, "vmap": 90.0}, budget=20, most=40)
    assert slow == {"sgd": 15, "clipbench": 15, "vmap": 3}
    assert set(cell.rounds_within({"sgd": 2.0, "vmap": 90.0}, budget=20, most=2).values()) == {2}


def test_rounds_beyond_an_engines_own_go_on_without_it() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in ("sgd", "vmap", "opacus_hooks")}
    seconds = cell.in_blocks(steps, {"sgd": 5, "vmap": 2, "opacus_hooks": 3})
    assert {name: len(each) for name, each in seconds.items()} == {"sgd": 5, "vmap": 2, "opacus_hooks": 3}
    assert calls.count("vmap") == 2
    assert set(calls[:6]) == set(steps)
    assert calls[-2:] == ["sgd", "sgd"]


def test_the_jobs_of_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the child processes do, done here."""
    monkeypatch.setattr(cell, "CALL", 1e-4)
    job = {"job": "timing", "model": "mlp_8", "batch": 2, "chunks": {"sgd": 0, "clipbench": 0}, "threshold": 1.0}
    seconds = cell.run({**job, "budget": 0.1, "most": 2, "threads": 1})["seconds"]
    assert {name: len(each) for name, each in seconds.items()} == {"sgd": 2, "clipbench": 2}
    size = cell.run({"job": "memory", "model": "mlp_8", "batch": 2, "engine": "sgd", "chunk": 0, "threshold": 1.0,
                     "threads": 1})  # fmt: skip
    assert size["bytes"] is None or size["bytes"] >= 0


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    main(["--smoke", "--results", str(tmp_path)])
    frame = pd.read_parquet(tmp_path / "data" / "bench_per_sample_smoke.parquet")
    assert list(frame["status"]) == ["ok"] * 5
    assert (frame["ratio"] > 0).all()
    assert (frame["bytes"] > 0).all()
