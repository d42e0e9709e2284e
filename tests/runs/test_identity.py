"""The run id and the one table: what is one run, whatever was typed, and what is not."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clipbench.analysis import collect
from clipbench.analysis.groups import variants
from clipbench.analysis.load import load
from clipbench.cli.compose import compose
from clipbench.runs.execute import execute
from clipbench.runs.identity import TABLE, counted, effective, run_id
from clipbench.runs.request import Request, request
from tests.runs.helpers import TINY, info

TEXT = Path(__file__).parents[1] / "data"


def wanted(*words: str) -> Request:
    return request(compose(["device=cpu", *words]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["optimizer.lr=1"], ["optimizer.lr=1.0"]),
        (["optimizer=adam", "optimizer.betas=[0,0.5]"], ["optimizer=adam", "optimizer.betas=[0.0,0.5]"]),
        (["method=norm_clip", "method.clipper.threshold=2"], ["method=norm_clip", "method.clipper.threshold=2.0"]),
        (["steps=50", "epochs=1"], ["steps=50", "epochs=3"]),
        (["steps=null", "epochs=1"], ["steps=null", "epochs=1.0"]),
        (["precision=fp32"], ["precision=tf32"]),
        (["together=1"], ["together=8"]),
        (["device=cpu"], ["device=auto"]),
        (["paths.results='~/x'"], ["paths.results=/y"]),
    ],
)
def test_one_run_however_it_is_asked_for(one: list[str], other: list[str]) -> None:
    assert wanted(*one).run_id == wanted(*other).run_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["steps=null", "epochs=1"], ["steps=null", "epochs=2"]),
        (["optimizer.lr=1"], ["optimizer.lr=1.5"]),
        (["precision=fp32"], ["precision=bf16"]),
        (["experiment=heavy_tailed_mlp/smoke"], ["experiment=heavy_tailed_mlp/cpu"]),
    ],
)
def test_two_runs(one: list[str], other: list[str]) -> None:
    assert wanted(*one).run_id != wanted(*other).run_id


def test_on_an_accelerator_tf32_is_another_run() -> None:
    config = compose([])
    assert run_id(config | {"precision": "tf32"}, "cuda") != run_id(config, "cuda")


def test_the_id_is_the_hash_of_what_counts() -> None:
    """Worked out anew: published records are found by it, so that its form is not to change."""

    def digest(**kept: Any) -> str:
        text = json.dumps({"seed": 1, "steps": 5, "method": {"name": "sgd"}} | kept, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    config = {
        "method": {"tuning": {"trials": 3}, "name": "sgd"}, "seed": 1, "steps": 5, "epochs": 3, "precision": "tf32",
        "device": "cuda:1", "log_every": 7, "data": {"root": "/x", "split_seed": 2, "verify": False},
    }  # fmt: skip
    data = {"split_seed": 2, "verify": False}
    assert run_id(config, "cpu") == digest(device="cpu", precision="fp32", data=data)
    assert run_id(config, "cuda") == digest(device="cuda", precision="tf32", data=data)
    assert run_id(config, "cpu", "5um") == digest(device="cpu", precision="fp32", data=data | {"sum": "5um"})
    bare = {"method": {"name": "sgd"}, "seed": 1, "steps": 5}
    assert run_id(bare, "cpu") == digest(device="cpu")
    assert run_id(bare, "cpu", "") == digest(device="cpu", data={"sum": ""})


def test_what_another_option_makes_void() -> None:
    both = {"steps": 5, "epochs": 3, "precision": "tf32"}
    assert effective(both, "cpu") == {"steps": 5, "precision": "fp32"}
    assert effective(both, "cuda") == {"steps": 5, "precision": "tf32"}
    assert effective({"steps": None, "epochs": 3, "precision": "bf16"}, "cpu") == {
        "steps": None, "epochs": 3, "precision": "bf16",
    }  # fmt: skip
    assert effective({"steps": 0, "epochs": 3}, "cpu") == {"steps": 0}
    assert both == {"steps": 5, "epochs": 3, "precision": "tf32"}, "the config given stays as it is"


NOWHERE = {"tuning", "calibration", "method.tuning", "environment"}
PLACES = {"logger", "paths", "data.root"}
HARMLESS = {"data.download", "log_every", "log_layers", "checkpoint_every", "stale", "retry", "threads", "together",
            "tuned", "device"}  # fmt: skip
REPEATED = {"data.verify", "seed", "experiment", "role", "trial", "eval_every"}


@pytest.mark.parametrize(
    ("use", "left_out"),
    [("identity", NOWHERE | PLACES | HARMLESS), ("variant", NOWHERE | PLACES | HARMLESS | REPEATED),
     ("record", NOWHERE), ("public", NOWHERE | PLACES)],
)  # fmt: skip
def test_what_is_left_out_of_each_use(use: Any, left_out: set[str]) -> None:
    config: dict[str, Any] = {"steps": 1, "data": {"split_seed": 0}, "method": {"name": "sgd"}}
    for path in TABLE:
        *above, key = path.split(".")
        (config.setdefault(above[0], {}) if above else config)[key] = path
    kept = counted(config, use)
    flat = {f"{key}.{inner}" if isinstance(value, dict) else key for key, value in kept.items() for inner in
            (value if isinstance(value, dict) else [""])}  # fmt: skip
    assert flat == {"steps", "data.split_seed", "method.name", *TABLE} - left_out
    assert set(TABLE) == NOWHERE | PLACES | HARMLESS | REPEATED


def test_every_row_of_the_table_is_an_option() -> None:
    config = compose(["method=ps_clip"])
    for path in TABLE:
        node = config
        for key in path.split("."):
            assert key in node, f"{path} is no option"
            node = node[key]


def test_what_counts_where() -> None:
    config = compose(["paths.results=/home/alice", "tuning.storage=sqlite:////secret"])
    assert "paths" in counted(config, "record")
    assert "alice" not in str(counted(config, "public"))
    assert "secret" not in str(counted(config, "record"))
    assert "seed" in counted(config, "identity")
    assert "seed" not in counted(config, "variant")
    assert set(counted(config, "variant")["data"]) == {"split_seed"}
    assert "tuning" not in counted(config, "identity")["method"]


def run(results: Path, *words: str) -> Path:
    outcome = execute(compose([*TINY, "device=cpu", f"paths.results={results}", *words]), say=lambda line: None)
    assert not outcome.found
    return outcome.folder


def test_final_metrics_do_not_depend_on_how_often_is_logged_or_evaluated(tmp_path: Path) -> None:
    finals = [
        info(run(tmp_path / str(number), *words))["final"]
        for number, words in enumerate((["log_every=5"], ["log_every=30"], ["eval_every=15"], ["log_every=7"]))
    ]
    assert finals[0] == finals[1] == finals[2] == finals[3]
    assert set(finals[0]) == {"validation_loss", "test_loss", "train_loss", "train_share_clipped"}


def test_nothing_is_final_of_a_run_that_diverged_whenever_that_was_seen(tmp_path: Path) -> None:
    words = ("optimizer.lr=1e3", "method=sgd", "eval_every=10")
    folders = [run(tmp_path / str(every), *words, f"log_every={every}") for every in (1, 7, 30)]
    records = [info(folder) for folder in folders]
    assert {record["status"] for record in records} == {"diverged"}
    assert len({record["steps_done"] for record in records}) > 1, "seen at other steps"
    assert all(math.isnan(record["final"][name]) for record in records for name in ("train_loss", "validation_loss"))
    assert [record["best"] for record in records] == [records[0]["best"]] * 3


def test_the_final_train_loss_is_the_mean_of_the_last_25_steps(tmp_path: Path) -> None:
    folder = run(tmp_path, "log_every=1")
    rows = pd.read_parquet(folder / "metrics.parquet")
    losses = rows[(rows["split"] == "train") & (rows["metric"] == "loss")].sort_values("step")["value"]
    assert len(losses) == 30
    assert info(folder)["final"]["train_loss"] == pytest.approx(losses.iloc[-25:].mean(), rel=1e-6)
    assert info(folder)["final"]["train_loss"] != pytest.approx(losses.mean(), rel=1e-3)


def test_other_data_under_another_root_are_another_run(tmp_path: Path) -> None:
    """Where files are not verified, what was loaded is part of the identity."""
    roots = [tmp_path / name for name in ("one", "two", "copy")]
    for root, text in zip(roots, ("to be or not ", "that is the x", "to be or not "), strict=True):
        (root / "shakespeare").mkdir(parents=True)
        (root / "shakespeare" / "input.txt").write_text(text * 400)
    words = ["dataset=shakespeare_char", "dataset.context=8", "model.layers=1", "model.heads=1", "model.width=8",
             "data.verify=false", "data.download=false"]  # fmt: skip
    one, two, copy = (wanted(*words, f"data.root={root}") for root in roots)
    assert one.run_id == copy.run_id != two.run_id
    tiny = [word for word in TINY if not word.startswith("dataset.")]
    found = execute(
        compose([*tiny, *words, "device=cpu", f"data.root={roots[0]}", f"paths.results={tmp_path}/r"]),
        say=lambda line: None,
    )
    assert found.info["data"]["sum"]
    shutil.rmtree(roots[2])
    assert info(found.folder)["run_id"] == one._replace(run_id=found.folder.name).run_id


def test_two_evaluation_intervals_are_one_variant_with_each_seed_once(tmp_path: Path) -> None:
    for words in (["seed=0"], ["seed=1"], ["seed=0", "eval_every=15"], ["seed=1", "eval_every=15"]):
        run(tmp_path, *words)
    collect(tmp_path)
    (variant,) = variants(load(tmp_path, "single").runs)
    assert variant.runs["seed"].tolist() == [0, 1]
    assert [config["eval_every"] for config in variant.runs["config"]] == [10, 10]
