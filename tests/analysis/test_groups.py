"""What is compared with what: roles, panels, variants and baselines."""

from __future__ import annotations

import pytest

from clipbench.analysis import collect, load, panels
from clipbench.analysis.groups import baseline_of, method_order
from tests.analysis.synthetic import write_run


def only(root, experiment="toy/cpu"):
    collect(root)
    (panel,) = panels(load(root, experiment))
    return panel


def test_tuning_runs_are_never_compared(results):
    experiment = load(results, "toy/cpu")
    assert (experiment.runs["role"] == "tune").sum() == 36
    (panel,) = panels(experiment)
    assert {role for v in panel.variants for role in v.runs["role"]} == {"single"}


def test_final_runs_go_before_single_ones(tmp_path):
    write_run(tmp_path, seed=0, role="single")
    write_run(tmp_path, seed=1, role="final")
    panel = only(tmp_path)
    assert panel.variants[0].runs["seed"].tolist() == [1]
    assert panel.notes == ["1 single runs are not shown beside the final runs of the tuning."]


def test_an_experiment_with_tuning_runs_only_has_no_panel(tmp_path):
    write_run(tmp_path, role="tune", trial=0)
    collect(tmp_path)
    assert panels(load(tmp_path, "toy/cpu")) == []


def test_seeds_of_one_setting_are_one_variant(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path, seed=seed, config={"seed": seed, "eval_every": 10 + seed, "data": {"root": f"/d{seed}"}})
    (variant,) = only(tmp_path).variants
    assert variant.label == "sgd"
    assert variant.runs["seed"].tolist() == [0, 1, 2]


def test_how_tuning_and_calibration_go_about_it_is_no_setting(tmp_path):
    """Records of earlier versions hold it, later ones do not."""
    write_run(tmp_path, seed=0, config={"calibration": {"rounds": 30}, "tuning": {"final_seeds": [0, 1]}})
    write_run(tmp_path, seed=1)
    (variant,) = only(tmp_path).variants
    assert variant.runs["seed"].tolist() == [0, 1]


def test_settings_that_differ_are_never_averaged(tmp_path):
    for lr in (0.3, 0.02):
        for seed in (0, 1):
            write_run(tmp_path, seed=seed, lr=lr)
    panel = only(tmp_path)
    assert [v.label for v in panel.variants] == ["sgd, lr=0.02", "sgd, lr=0.3"]
    assert [len(v.runs) for v in panel.variants] == [2, 2]


def test_runs_on_different_devices_are_never_averaged(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, device={"type": "cuda", "name": "GPU", "threads": 2})
    assert [v.label for v in only(tmp_path).variants] == ["sgd, device=cpu", "sgd, device=cuda"]


def test_optimizers_are_named_where_there_are_several(tmp_path):
    write_run(tmp_path, "sgd", optimizer="sgd")
    write_run(tmp_path, "sgd", optimizer="adam", config={"optimizer": {"name": "adam", "lr": 0.01}})
    write_run(tmp_path, "ps_clip", optimizer="adam", config={"optimizer": {"name": "adam", "lr": 0.01}})
    panel = only(tmp_path)
    assert [v.label for v in panel.variants] == ["sgd with adam", "sgd with sgd", "ps_clip with adam"]
    base = baseline_of(panel.variants[2], panel)
    assert base is not None
    assert base.label == "sgd with adam"


def test_the_baseline_is_the_most_similar_one(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path, "sgd", lr=lr)
    write_run(tmp_path, "ps_clip", lr=0.2)
    panel = only(tmp_path)
    base = baseline_of(panel.variants[-1], panel)
    assert base is not None
    assert base.label == "sgd, lr=0.2"
    assert baseline_of(panel.variants[0], panel, "absent") is None


def test_single_runs_are_split_by_dataset_and_model(tmp_path):
    write_run(tmp_path, experiment="single", dataset="a", model="m")
    write_run(tmp_path, experiment="single", seed=1, dataset="b", model="m")
    collect(tmp_path)
    experiment = load(tmp_path, "single")
    assert [p.slug for p in panels(experiment)] == ["single__a__m", "single__b__m"]
    assert [p.title for p in panels(experiment, dataset="b")] == ["single: m on b"]


def test_methods_keep_one_order():
    names = ["zebra", "spectral_ema", "ps_clip", "sgd", "ps_clip_constant", "norm_clip", "spectral_clip"]
    assert sorted(names, key=method_order) == [
        "sgd", "norm_clip", "ps_clip", "ps_clip_constant", "spectral_clip", "spectral_ema", "zebra",
    ]  # fmt: skip


def test_an_experiment_that_was_not_collected_is_named_with_those_that_were(results):
    with pytest.raises(ValueError, match=r"^experiment must be one collected under .*\(toy/cpu\), got absent"):
        load(results, "absent")


def test_runs_of_two_batched_programs_are_noted(tmp_path):
    for seed, program in enumerate(("a" * 12, "b" * 12, None)):
        batch = {} if program is None else {"together": 20, "together_fingerprint": program}
        write_run(tmp_path, seed=seed, **batch)
    assert only(tmp_path).notes == ["The runs of sgd with sgd were made by 2 versions of its code."]


def test_lone_runs_and_those_of_one_program_are_of_one_code(tmp_path):
    write_run(tmp_path, seed=0, together=20, together_fingerprint="a" * 12)
    write_run(tmp_path, seed=1)
    assert only(tmp_path).notes == []
