"""Batches of runs leave ordinary records: equal to lone ones, found again, killed and resumed, mixed and refused."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench.cli.compose import compose
from clipbench.runs import catalogue, kinship
from clipbench.runs.execute import execute
from clipbench.runs.record import Record
from clipbench.runs.request import Request, request
from clipbench.runs.together import run_together
from tests.runs.helpers import TINY, info, values

BASE = [*TINY, "device=cpu", "threads=1", "together=4"]


def asked(results: Path, *words: str) -> Request:
    return request(compose([*BASE, f"paths.results={results}", *words]))


def quiet(line: str) -> None:
    """Say nothing."""


def test_members_leave_the_records_of_lone_runs(tmp_path: Path) -> None:
    words = [["method=spectral_clip_ema", f"seed={seed}", f"optimizer.lr={0.001 * (seed + 1)}"] for seed in range(3)]
    batch = run_together([asked(tmp_path / "batch", *own) for own in words], quiet)
    assert [outcome.status for outcome in batch] == ["ok"] * 3
    assert not list((tmp_path / "batch").glob("runs/single/.together/*"))
    for own, outcome in zip(words, batch, strict=True):
        lone = execute(compose([*BASE, f"paths.results={tmp_path / 'lone'}", *own]), quiet)
        one, other = info(outcome.folder), info(lone.folder)
        assert one["together"] == 3
        assert "together" not in other
        assert one["run_id"] == other["run_id"]
        assert one["fingerprint"] == other["fingerprint"]
        assert set(other) - set(one) == set()
        assert one["data"] == other["data"]
        assert set(one["final"]) == set(other["final"])
        for name, value in one["final"].items():
            if not name.endswith("_per_second"):
                assert math.isclose(value, other["final"][name], rel_tol=1e-3), name
        assert [row[:5] for row in values(outcome.folder)] == [row[:5] for row in values(lone.folder)]


def test_what_is_done_is_found_and_only_the_rest_trained(tmp_path: Path) -> None:
    requests = [asked(tmp_path, f"seed={seed}") for seed in range(4)]
    assert len(run_together(requests[:2], quiet)) == 2
    assert {outcome.info["seed"] for outcome in run_together(requests, quiet)} == {2, 3}
    assert run_together(requests, quiet) == []


def test_other_code_of_the_batched_program_makes_its_runs_stale_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [asked(tmp_path, f"seed={seed}") for seed in range(3)]
    outcomes = run_together(requests[:2], quiet)
    execute(requests[2].config, quiet)
    assert outcomes[0].info["together_fingerprint"] == requests[0].together_fingerprint
    assert [catalogue.find(one, quiet) is not None for one in requests] == [True] * 3
    monkeypatch.setattr("clipbench.runs.request.together_fingerprint", lambda config: "0" * 12)
    assert [catalogue.find(one, quiet) is not None for one in requests] == [False, False, True]


def test_seconds_are_shares_of_the_program(tmp_path: Path) -> None:
    outcomes = run_together([asked(tmp_path, f"seed={seed}") for seed in range(4)], quiet)
    trains = [outcome.info["seconds"]["train"] for outcome in outcomes]
    assert len(set(trains)) == 1
    assert sum(trains) < outcomes[0].info["seconds"]["wall"] * 4


def test_a_member_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    words = [["seed=0"], ["seed=1"], ["seed=2"]]
    calm = run_together([asked(tmp_path / "calm", "method=norm_clip", *own) for own in words], quiet)
    wild_words = [["seed=0"], ["seed=1", "optimizer.lr=1e30"], ["seed=2"]]
    wild = run_together([asked(tmp_path / "wild", "method=norm_clip", *own) for own in wild_words], quiet)
    by_seed = {outcome.info["seed"]: outcome for outcome in wild}
    assert by_seed[1].status == "diverged"
    assert by_seed[1].info["steps_done"] < 30
    for outcome in calm:
        if outcome.info["seed"] != 1:
            assert values(by_seed[outcome.info["seed"]].folder) == values(outcome.folder)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_bit_identical(kills: int, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    long = ["steps=600", "eval_every=60", "log_every=20", "checkpoint_every=20", "dataset.samples=600",
            "device=cpu", "threads=1", "together=4", "method=spectral_clip_quantile", "noise=rank_one"]  # fmt: skip
    members = [
        ["+", *long, f"seed={place // 2}", f"optimizer.lr={rate}"] for place, rate in enumerate([1e-3, 1e30, 2e-3])
    ]
    command = [sys.executable, "-m", "tests.runs.batch_killer", str(tmp_path), str(kills), str(seed), "1.0"]
    done = subprocess.run(
        [*command, *itertools.chain(*members)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"reference": 0, "killed": 0, "kills": kills}, seed
    folders = sorted(path.name for path in (tmp_path / "reference/runs/single").iterdir() if path.name != ".together")
    assert len(folders) == 3
    statuses = []
    for name in folders:
        reference, killed = (tmp_path / place / "runs/single" / name for place in ("reference", "killed"))
        assert values(killed) == values(reference), f"seed of the kills: {seed}"
        statuses.append(info(killed)["status"])
        assert info(killed)["status"] == info(reference)["status"]
    assert sorted(statuses) == ["diverged", "ok", "ok"]
    assert not list((tmp_path / "killed/runs/single/.together").glob("*"))


def test_runs_are_grouped_by_what_they_share(tmp_path: Path) -> None:
    words = [
        ["method=sgd"], ["method=sgd", "optimizer.lr=0.1", "seed=5"], ["method=norm_clip"],
        ["method=norm_clip", "method.clipper.threshold=0.5"], ["method=norm_clip", "optimizer.nesterov=true"],
        ["method=sgd", "steps=31"],
    ]  # fmt: skip
    found = kinship.groups([asked(tmp_path, *own) for own in words], 4)
    assert [[one.method for one in batch] for batch in found] == [["sgd", "sgd"], ["norm_clip", "norm_clip"]]
    many = kinship.groups([asked(tmp_path, f"seed={seed}") for seed in range(9)], 4)
    assert [len(batch) for batch in many] == [3, 3, 3]


@pytest.mark.parametrize("words", [["compile=true"], ["precision=bf16"]])
def test_what_cannot_go_together_says_why(words: list[str], tmp_path: Path) -> None:
    lines: list[str] = []
    assert run_together([asked(tmp_path, *words, f"seed={seed}") for seed in range(2)], lines.append) == []
    assert any("go alone" in line and words[0].partition("=")[2] in line for line in lines), lines


def test_a_run_begun_alone_goes_on_alone(tmp_path: Path) -> None:
    requests = [asked(tmp_path, f"seed={seed}") for seed in range(3)]
    Record(requests[0].folder, quiet).folder.mkdir(parents=True)
    (requests[0].folder / "checkpoint.pt").write_bytes(b"of a lone run")
    assert {outcome.info["seed"] for outcome in run_together(requests, quiet)} == {1, 2}


def test_a_damaged_checkpoint_of_a_batch_is_set_aside(tmp_path: Path) -> None:
    requests = [asked(tmp_path, f"seed={seed}") for seed in range(2)]
    from clipbench.runs.batch_file import BatchFile

    file = BatchFile.of(requests)
    file.write_members()
    (file.folder / "checkpoint.pt").write_bytes(b"torn")
    lines: list[str] = []
    assert len(run_together(requests, lines.append)) == 2
    assert any("damaged" in line for line in lines)
