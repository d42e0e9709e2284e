"""Runs that go together against one by one: steps per core-second of every method, and a whole sweep both ways.

Steps are those of paper 2's MLP, four linear layers 100 → 100 → 100 → 100 → 1 with rank-one noise. Lone and batched
steps alternate in one process on one thread, and what is counted is the thread's own time, which other programs on the
machine disturb less than the wall clock.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from clipbench.bench.together_report import tables
from clipbench.cli.compose import CONFIG_PATH, compose
from clipbench.cli.parser import Parser, positive, writable
from clipbench.runs.execute import execute
from clipbench.runs.files import atomic_write
from clipbench.runs.provenance import device_info, versions
from clipbench.runs.request import Request, request
from clipbench.runs.together import run_together
from clipbench.training.setup import build
from clipbench.training.together.building import build_all
from clipbench.training.together.members import Unbatchable
from clipbench.training.together.trainer import TogetherTrainer
from clipbench.training.trainer import Trainer

NAME = "bench_together"
MLP = [
    "model.widths=[100,100,100]", "model.bias=false", "dataset.features=100", "dataset.teacher=product",
    "dataset.noise=none", "noise=rank_one", "steps=30000", "device=cpu", "threads=1",
]  # fmt: skip
SWEEP = ["steps=400", "eval_every=200", "log_every=50", "checkpoint_every=400", "device=cpu", "threads=1"]
SPECIAL: dict[str, list[str]] = {"micro_batch_clip": ["batch_size=16", "accumulation=2"]}
# Beside every method as it is: thresholds that seldom and that always clip, and the other optimizers.
MORE: dict[str, list[str]] = {
    "spectral_clip 5": ["method=spectral_clip", "method.clipper.threshold=5.0"],
    "spectral_clip 0.05": ["method=spectral_clip", "method.clipper.threshold=0.05"],
    "sgd adam": ["method=sgd", "optimizer=adam"],
    "sgd adamw": ["method=sgd", "optimizer=adamw"],
    "sgd muon": ["method=sgd", "optimizer=muon"],
    "norm_clip adam": ["method=norm_clip", "optimizer=adam"],
}


def cases() -> dict[str, list[str]]:
    """Overrides by name: every method there is, and `MORE`."""
    methods = sorted(path.stem for path in (Path(CONFIG_PATH) / "method").glob("*.yaml"))
    return {name: [f"method={name}", *SPECIAL.get(name, [])] for name in methods} | MORE


def members(words: Sequence[str], count: int, seeds: int) -> list[Request]:
    """`count` runs that differ in rate and share `seeds` seeds."""
    return [
        request(compose([*MLP, *words, f"optimizer.lr={1e-4 * 1.1**place}", f"seed={place % seeds}"]))
        for place in range(count)
    ]


def speed(words: Sequence[str], count: int, seeds: int, rounds: int) -> dict[str, float]:
    """Trial-steps per core-second, lone and together (medians over interleaved rounds), and the ratio's quartiles."""
    requests = members(words, count, seeds)
    lone = Trainer(build(requests[0].config, requests[0].options))
    lone.setup.model.train()
    batch = TogetherTrainer(build_all(requests), lambda line: None)
    times: list[tuple[float, float]] = []
    for place in range(rounds + 1):
        times.append((_timed(lone.step, place * 40, 40), _timed(batch.step, place * 10, 10) / count))
    ratios = [one / many for one, many in times[1:]]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "lone_per_second": 1 / statistics.median(one for one, _ in times[1:]),
        "together_per_second": 1 / statistics.median(many for _, many in times[1:]),
        "ratio": middle, "ratio_low": low, "ratio_high": high,
    }  # fmt: skip


def _timed(step: Callable[[int], Any], first: int, count: int) -> float:
    start = time.thread_time()
    for place in range(first, first + count):
        step(place)
    return (time.thread_time() - start) / count


def sweep(count: int, size: int) -> dict[str, float]:
    """Seconds of `count` small runs one by one and together, and the largest relative difference of a final metric."""
    with tempfile.TemporaryDirectory() as folder:
        requests = {
            way: [
                compose([*SWEEP, f"paths.results={folder}/{way}", f"together={size}", f"method={method}",
                         f"optimizer.lr={0.001 * (1 + place % 4)}", f"seed={place // 4}"])
                for method in ("sgd", "norm_clip", "spectral_clip_ema", "ps_clip")
                for place in range(count // 4)
            ]
            for way in ("lone", "together")
        }  # fmt: skip
        start = time.perf_counter()
        lone = [execute(config, lambda line: None) for config in requests["lone"]]
        middle = time.perf_counter()
        batch = run_together([request(config) for config in requests["together"]], lambda line: None)
        end = time.perf_counter()
    own = {outcome.info["run_id"]: outcome.info["final"] for outcome in batch}
    pairs = [(outcome.info["final"], own[outcome.info["run_id"]]) for outcome in lone]
    return {
        "runs": count, "lone_seconds": middle - start, "together_seconds": end - middle,
        "largest_difference": max(_difference(one, other) for one, other in pairs),
    }  # fmt: skip


def _difference(one: dict[str, float], other: dict[str, float]) -> float:
    names = [name for name in one if not name.endswith("_per_second")]
    return max(abs(one[name] - other[name]) / max(abs(one[name]), 1e-12) for name in names if math.isfinite(one[name]))


def main(argv: list[str]) -> None:
    """Measure, print, and write results/data/bench_together.parquet and its table."""
    parser = Parser(prog="python -m clipbench.bench together", description=__doc__)
    parser.add_argument(
        "--results", type=writable, default="results", help="folder for data/ and tables/ (default: results)"
    )
    parser.add_argument("--members", type=positive, default=32, help="runs in a batch (default: 32)")
    parser.add_argument(
        "--seeds", type=positive, default=1, help="distinct seeds among them (default: 1, as in a tuning)"
    )
    parser.add_argument("--only", nargs="*", help="names of cases (default: all)")
    parser.add_argument("--smoke", action="store_true", help="two cases, a few steps, for tests")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    wanted = arguments.only or (["sgd", "norm_clip"] if arguments.smoke else list(cases()))
    rows = []
    for name in wanted:
        try:
            figures = speed(cases()[name], arguments.members, arguments.seeds, 2 if arguments.smoke else 8)
        except Unbatchable as why:
            print(f"{name}: goes alone: {why}")
            continue
        rows.append({"case": name, "members": arguments.members, "seeds": arguments.seeds, **figures})
        print(
            "{case}: {lone_per_second:.0f} alone, {together_per_second:.0f} together, {ratio:.1f} ×".format(**rows[-1])
        )
    whole = sweep(8 if arguments.smoke else 64, arguments.members)
    print("{runs:.0f} runs: {lone_seconds:.1f} s one by one, {together_seconds:.1f} s together".format(**whole))
    write(pd.DataFrame(rows), whole, Path(arguments.results))


def write(frame: pd.DataFrame, whole: dict[str, float], results: Path) -> None:
    """The parquet file and the Markdown table."""
    info = device_info(torch.device("cpu"))
    frame["device"], frame["torch"] = info["name"], versions()["torch"]
    for name, value in whole.items():
        frame[f"sweep_{name}"] = value
    (results / "data").mkdir(parents=True, exist_ok=True)
    atomic_write(results / "data" / f"{NAME}.parquet", lambda path: frame.to_parquet(path))
    tables(frame, results, NAME)
