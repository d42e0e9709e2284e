"""Fair tuning: a clipped method's trials contain its baseline, its thresholds clip, and a winner that does not clip is
its baseline."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra import initialize_config_dir

from clipbench.cli.compose import CONFIG_PATH, compose, compose_node, resolve
from clipbench.errors import ConfigError
from clipbench.runs.execute import execute
from clipbench.runs.finals import final_metrics, share_clipped
from clipbench.tuning import reference
from clipbench.tuning.plan import acts_below_threshold, plan
from clipbench.tuning.sequence import point
from clipbench.tuning.study import Choice, with_baseline_settings
from tests.tuning.helpers import SMALL, records, settings, tuned

COMMON = ("trials=8", "methods=sgd,norm_clip,ps_clip", "final_seeds=0,1")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair")
    tuned(folder, *COMMON)
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results" / "data").glob("*__tuning.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_first_quarter_are_the_baselines_trials_and_not_run_again(done: Path) -> None:
    trials: dict[str, list[int]] = {}
    for run, _ in records(done):
        if run["role"] == "tune":
            trials.setdefault(run["method"], []).append(run["trial"])
    assert sorted(trials["sgd"]) == list(range(8))
    for method in ("norm_clip", "ps_clip"):
        assert sorted(trials[method]) == list(range(2, 8)), method
        assert outcome(done)[method]["trials"] == 8


def test_every_trial_number_has_one_rate_whatever_the_dimensions(done: Path) -> None:
    rates: dict[int, set[float]] = {}
    for run, place in records(done):
        if run["role"] == "tune":
            config = yaml.safe_load((place / "config.yaml").read_text())
            rates.setdefault(run["trial"], set()).add(config["optimizer"]["lr"])
    assert all(len(found) == 1 for found in rates.values())
    assert len(rates) == 8


def test_thresholds_lie_between_those_that_clip_98_and_2_percent_of_the_reference_run(done: Path) -> None:
    plan = yaml.safe_load((done / "results" / "tune" / "heavy_tailed_mlp" / "smoke" / "plan.yaml").read_text())
    for method, path in (("norm_clip", "clipper.threshold"), ("ps_clip", "estimator.threshold.alpha")):
        node = plan["methods"][method]
        assert node["of_them_the_baselines"] == 2
        assert node["measured"]["steps"] == 20
        low, high = (node["space"][f"method.{path}"][end] for end in ("low", "high"))
        seen = []
        for run, place in records(done):
            if run["method"] == method and run["role"] == "tune":
                value: Any = yaml.safe_load((place / "config.yaml").read_text())["method"]
                for key in path.split("."):
                    value = value[key]
                seen.append(value)
                expected = low * (high / low) ** point(run["trial"], 2)[1]
                assert value == pytest.approx(expected, rel=1e-3)
        assert len(seen) == 6
        assert max(seen) / min(seen) > (high / low) ** 0.5


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("norm_clip", "method.clipper.threshold"),
        ("per_tensor_norm", "method.clipper.threshold"),
        ("spectral_clip", "method.clipper.threshold"),
        ("soft_spectral_clip", "method.clipper.threshold"),
        ("spectral_clip_randomized", "method.clipper.threshold"),
        ("micro_batch_clip", "method.estimator.clipper.threshold"),
        ("micro_batch_spectral", "method.estimator.clipper.threshold"),
        ("ps_clip_constant", "method.estimator.threshold"),
        ("ps_clip", "method.estimator.threshold.alpha"),
        ("ps_clip_spectral", "method.estimator.threshold.alpha"),
    ],
)
def test_measured_thresholds_clip_what_they_should_in_the_first_steps(method: str, path: str) -> None:
    """With the low end the method's own statistic is near 98 % at first, with the high end near 2 %."""
    words = [*SMALL, "accumulation=2", "batch_size=8", f"method={method}", "tuned=none", "optimizer.lr=1e-6"]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        node = compose_node(words)
        config = resolve(node, node.hydra.runtime.choices)
    found = reference.ranges_of(config, [path], {"optimizer.lr": 1e-6})
    low, high = found.ranges[path]
    assert 0 < low < high
    shares = [share(config, path, value) for value in (low, high)]
    # Where a layer is clipped is counted by layer, so the share of (step, layer) pairs is the same.
    assert shares[0] == pytest.approx(0.98, abs=0.06)
    assert shares[1] == pytest.approx(0.02, abs=0.06)


def share(config: dict[str, Any], path: str, value: float) -> float:
    """The share that the method clips in the reference run's steps with this threshold."""
    from clipbench.config import schema
    from clipbench.config.tuned import nested
    from clipbench.training.setup import build
    from clipbench.training.trainer import Trainer

    whole = nested({path: value}, config)
    if path.startswith("method.estimator"):
        whole["method"]["clipper"] = {"_target_": "clipbench.clipping.NoClip"}
    trainer = Trainer(build(whole, schema.check(whole)))
    figures = [trainer.step(step) for step in range(20)]
    shares = [max(float(v) for k, v in each.items() if k.endswith("clipped_fraction")) for each in figures]
    return sum(shares) / len(shares)


def test_the_share_clipped_is_the_mean_over_the_whole_run_by_steps() -> None:
    def row(step: int, name: str, value: float) -> dict[str, Any]:
        return {"step": step, "split": "train", "metric": name, "value": value}

    rows = [
        row(10, "clipped_fraction", 0.0), row(10, "sample_clipped_fraction", 1.0),
        row(14, "clipped_fraction", 0.0), row(14, "sample_clipped_fraction", 0.3),
    ]  # fmt: skip
    assert share_clipped(rows) == pytest.approx({"clipped_fraction": 0.0, "sample_clipped_fraction": 11.2 / 14})
    assert final_metrics(rows)["train_share_clipped"] == pytest.approx(0.8)
    assert "train_share_clipped" not in final_metrics([])


def test_shares_are_in_records_and_outcome_and_settings(done: Path) -> None:
    for method in ("norm_clip", "ps_clip"):
        winner = outcome(done)[method]
        if winner["is_baseline"]:
            continue
        (run,) = [
            r for r, _ in records(done) if (r["method"], r["role"], r["trial"]) == (method, "tune", winner["trial"])
        ]
        assert run["final"]["train_share_clipped"] == winner["share_clipped"] >= 0.01
        assert f"share clipped {100 * winner['share_clipped']:.3g} %" in settings(done)[method]


def choice(method: str, trial: int, share: float | None, lr: float) -> Choice:
    found = {"optimizer.lr": lr} | ({} if method == "sgd" else {"method.clipper.threshold": 5.0})
    return Choice(trial, 1.0, found, {"ok": 8}, "", method, share)


def test_a_winner_under_one_percent_is_the_baseline() -> None:
    base = choice("sgd", 3, 0.0, 0.1)
    chosen = {
        "sgd": base, "rare": choice("rare", 5, 0.0099, 0.2), "often": choice("often", 5, 0.0101, 0.2),
        "infinite": choice("sgd", 1, 0.0, 0.3), "unknown": choice("unknown", 5, None, 0.2),
    }  # fmt: skip
    plain: Any = SimpleNamespace(bases={key: {"method": {}} for key in chosen})
    found = with_baseline_settings(chosen, plain)
    for method in ("rare", "infinite"):
        assert (found[method].method, found[method].settings) == ("sgd", base.settings), method
    for method in ("sgd", "often", "unknown"):
        assert found[method] == chosen[method]
    without = with_baseline_settings({"rare": chosen["rare"]}, plain)
    assert (without["rare"].method, without["rare"].settings) == ("sgd", {"optimizer.lr": 0.2})


@pytest.mark.parametrize("share", [0.0, 0.004])
def test_a_small_share_of_entries_may_decide_a_step(share: float) -> None:
    node = {"clipper": {"_target_": "clipbench.clipping.ValueClip", "threshold": 1.0}}
    plain: Any = SimpleNamespace(bases={"sgd": {"method": {}}, "value_clip": {"method": node}})
    found = with_baseline_settings(
        {"sgd": choice("sgd", 3, 0.0, 0.1), "value_clip": choice("value_clip", 5, share, 0.2)}, plain
    )
    assert found["value_clip"].method == ("value_clip" if share else "sgd")


def test_a_method_whose_thresholds_never_clip_ends_as_its_baseline(tmp_path: Path) -> None:
    never = "+tuning.ours.methods.norm_clip={method: {clipper: {threshold: {low: 1e8, high: 1e9, measured: null}}}}"
    with pytest.raises(ConfigError, match="measured must be true and stand alone"):
        tuned(tmp_path, "trials=4", "methods=sgd,norm_clip", "final_seeds=0,1", never)
    never = never.replace(", measured: null", "")
    tuned(tmp_path, "trials=4", "methods=sgd,norm_clip", "final_seeds=0,1", never)
    found = outcome(tmp_path)
    assert found["norm_clip"]["is_baseline"]
    assert not found["sgd"]["is_baseline"]
    assert found["norm_clip"]["settings"] == found["sgd"]["settings"]
    assert found["norm_clip"]["final_runs"] == found["sgd"]["final_runs"]
    assert {run["method"] for run, _ in records(tmp_path) if run["role"] == "final"} == {"sgd"}
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        words = [*SMALL, f"paths.tuned={tmp_path}/tuned", "method=norm_clip"]
        said: list[str] = []
        node = compose_node(words)
        plain = resolve(node, node.hydra.runtime.choices, words, said.append)
    assert plain["tuned"] == "none"
    assert "is its baseline" in said[0]


def test_a_method_can_take_anothers_settings_without_trials(tmp_path: Path) -> None:
    tuned(tmp_path, "trials=4", "methods=sgd,spectral_clip,spectral_clip_randomized", "final_seeds=0,1",
          "+tuning.like.spectral_clip_randomized=spectral_clip")  # fmt: skip
    found = outcome(tmp_path)
    assert found["spectral_clip_randomized"]["settings"] == found["spectral_clip"]["settings"]
    assert not [r for r, _ in records(tmp_path) if r["method"] == "spectral_clip_randomized" and r["role"] == "tune"]
    finals = [r["method"] for r, _ in records(tmp_path) if r["role"] == "final"]
    assert finals.count("spectral_clip_randomized") == (0 if found["spectral_clip"]["is_baseline"] else 2)


def test_the_papers_protocol_has_no_trials_of_the_baseline(tmp_path: Path) -> None:
    paper = [
        "+tuning.paper.trials.sgd=2", "tuning.paper.trials.norm_clip=3", "+tuning.paper.methods.sgd={}",
    ]  # fmt: skip
    tuned(tmp_path, "protocol=paper", "methods=sgd,norm_clip", "final_seeds=0,1", *paper)
    trials = [(r["method"], r["trial"]) for r, _ in records(tmp_path) if r["role"] == "tune"]
    assert sorted(trials) == [("norm_clip", 0), ("norm_clip", 1), ("norm_clip", 2), ("sgd", 0), ("sgd", 1)]


def test_own_methods_are_found_in_a_config_dir(tmp_path: Path) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    text = (Path(CONFIG_PATH) / "method" / "norm_clip.yaml").read_text().replace("norm_clip", "my_clip", 1)
    (tmp_path / "mine" / "method" / "my_clip.yaml").write_text(text.replace("name: norm_clip", "name: my_clip"))
    tuned(tmp_path, "trials=2", "methods=my_clip", "final_seeds=0", "--config-dir", str(tmp_path / "mine"))
    assert {run["method"] for run, _ in records(tmp_path)} == {"my_clip"}


def test_values_that_do_not_differ_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="needs values that differ"):
        reference.interval(torch.full((30,), 2.0), "x")
    low, high = reference.interval(torch.arange(1.0, 101.0), "x")
    assert (low, high) == pytest.approx((2.98, 98.0), rel=1e-2)


@pytest.mark.parametrize(
    ("method", "acts"),
    [("median", True), ("medoid", True), ("normalized_momentum", True), ("smooth_clip_feedback", True),
     ("stable_spam", True), ("spectra_gradient", True), ("ps_smooth", True), ("norm_clip", False), ("zclip", False),
     ("ps_clip", False), ("spectral_clip_ema", False), ("micro_batch_clip", False)],
)  # fmt: skip
def test_a_rule_that_always_acts_is_never_taken_for_its_baseline(method: str, acts: bool) -> None:
    """It counts nothing as clipped, or little, and its runs are others than SGD's all the same."""
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        made = plan(["experiment=heavy_tailed_mlp/smoke", f"tuning.methods=[{method}]", "tuning.trials=8"])
    assert made.baseline_trials(method) == (0 if acts else 2)
    values = made.settings(method, {found.path: 0.1 for found in made.spaces[method].ranges})
    choice = Choice(5, 1.0, values, {"ok": 8}, "2026-01-01", method, 0.0)
    assert with_baseline_settings({method: choice}, made)[method].method == (method if acts else "sgd")


@pytest.mark.slow
def test_what_acts_without_counting_anything_as_clipped_says_so(tmp_path: Path) -> None:
    """Every method that clipped nothing in three steps ended as SGD did to the last bit, or its class says it acts."""
    ends: dict[str, tuple[float, float]] = {}
    acts: dict[str, bool] = {}
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        for name in sorted(path.stem for path in Path(CONFIG_PATH, "method").glob("*.yaml")):
            words = [*SMALL, f"method={name}", "tuned=none", "steps=3", "eval_every=3", "log_every=1",
                     "batch_size=8", "accumulation=3", f"paths.results={tmp_path}"]  # fmt: skip
            config = compose(words)
            acts[name] = acts_below_threshold(config["method"])
            final = execute(config, str).info["final"]
            ends[name] = (final["train_share_clipped"], final["validation_loss"])
    still = {name for name, (share, _) in ends.items() if share == 0.0}
    assert still >= {"sgd", "median", "medoid"}
    wrong = [name for name in still if ends[name][1] != ends["sgd"][1] and not acts[name]]
    assert wrong == []
    assert not acts["sgd"]
