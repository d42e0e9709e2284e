"""The experiments' settings are the papers': layers and their shapes, what is clipped, optimizers, data, schedules."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from torch import nn

from clipbench.cli.compose import CONFIG_PATH, compose, compose_node
from clipbench.clipping.selection import matches
from clipbench.config import schema
from clipbench.config.build import instantiate
from clipbench.data import Spec
from clipbench.tuning.plan import swept_methods
from clipbench.tuning.space import space

FOLDERS = sorted(path for path in (Path(CONFIG_PATH) / "experiment").iterdir() if path.is_dir())
SHARED = ("shakespeare", "gpt2_fineweb")  # hold what the experiments of several optimizers share
NAMES = [folder.name for folder in FOLDERS if folder.name not in SHARED]
NETWORKS = [name for name in NAMES if (Path(CONFIG_PATH) / "experiment" / name / "_base.yaml").exists()]


@functools.cache
def config(experiment: str, method: str = "sgd") -> dict[str, Any]:
    found = compose([f"experiment={experiment}", f"method={method}", "tuned=none"])
    schema.check(found)
    return found


def spec_of(whole: dict[str, Any]) -> Spec:
    return instantiate(whole["dataset"], "dataset").spec  # type: ignore[no-any-return]


def model_of(whole: dict[str, Any]) -> nn.Module:
    return instantiate(whole["model"], "model", spec=spec_of(whole))  # type: ignore[no-any-return]


def clipped(experiment: str, method: str) -> dict[str, tuple[int, ...]]:
    """Parameters that the method's clipper changes when every gradient is large, by name."""
    whole = config(experiment, method)
    model = model_of(whole)
    clipper = instantiate(whole["method"]["clipper"], "method.clipper", model=model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        parameter.grad = torch.full_like(parameter, 1e3)
    clipper(trained)
    return {name: tuple(p.shape) for name, p in trained if float(p.grad.abs().max()) < 999}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_experiment_has_its_sizes_and_every_number_its_source(name: str) -> None:
    folder = Path(CONFIG_PATH) / "experiment" / name
    own = name.startswith("leaderboard")  # which is the bench's: no paper states its size
    assert {"_base", "smoke", "cpu", *([] if own else ["paper"])} <= {path.stem for path in folder.glob("*.yaml")}
    for path in folder.glob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            value = line.split("#")[0].partition(":")[2].strip()
            if value.replace(".", "").replace("-", "").replace("e", "").isdigit():
                assert "#" in line, f"{path.name}: {line}"


def test_the_mlp_is_the_papers() -> None:
    whole = config("mlp_pareto/paper")
    model = model_of(whole)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(100, 100)] * 3 + [(1, 100)]
    assert all(m.bias is None for m in linear)
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 3
    assert (whole["batch_size"], whole["steps"], whole["eval_every"]) == (32, 30_000, 250)
    assert {k: whole["optimizer"][k] for k in ("name", "momentum", "nesterov", "weight_decay")} == {
        "name": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0,
    }  # fmt: skip
    assert whole["schedule"] == {"name": "constant", "_target_": "clipbench.training.schedules.Constant", "warmup": 0}
    noise = whole["noise"]
    assert (noise["name"], noise["probability"], noise["noise"], noise["index"], noise["scale"]) == (
        "rank_one", 0.1, "pareto", 1.1, 5.0,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["spectral_clip", "spectral_clip_ema", "spectral_clip_quantile", "norm_clip"])
def test_the_mlps_output_layer_is_clipped(method: str) -> None:
    whole = config("mlp_pareto/cpu", method)
    model = model_of(whole)
    names = [name for name, _ in model.named_parameters()]
    assert names[-1] == "head.weight"
    if method == "spectral_clip":
        assert sorted(clipped("mlp_pareto/cpu", method)) == sorted(names)
    assert whole["method"]["clipper"]["skip"] == []


def test_the_mlps_data_are_new_with_every_seed_and_fill_their_batches() -> None:
    whole = config("mlp_pareto/cpu")
    data = whole["dataset"]
    assert whole["data"]["split_seed"] is None
    assert (data["samples"], data["validation"]) == (8000, 2000), "80/20 of 10 000"
    assert data["samples"] % whole["batch_size"] == 0, "no epoch has a last part that could be left out"
    assert (data["teacher"], data["noise"], data["features"], data["problem"]) == ("product", "none", 100, "regression")


def test_the_mlps_search_is_the_papers() -> None:
    ranges = {m: space(config("mlp_pareto/paper", m), "paper").ranges for m in ("norm_clip", "spectral_clip")}
    for found in ranges.values():
        assert (found[0].low, found[0].high, found[0].log) == (1e-4, 0.1, True)
        assert (found[1].low, found[1].high, found[1].log) == (0.01, 10.0, False)
    quantile = space(config("mlp_pareto/paper", "spectral_clip_quantile"), "paper").ranges[1]
    assert (quantile.low, quantile.high, quantile.log) == (0.5, 0.99, False)
    assert config("mlp_pareto/paper", "spectral_clip_quantile")["method"]["clipper"]["threshold"]["window"] == 100
    assert len(space(config("mlp_pareto/paper", "spectral_clip_ema"), "paper").ranges) == 1
    trials = config("mlp_pareto/paper")["tuning"]["paper"]["trials"]
    adam = config("mlp_pareto_adam/paper")
    assert [trials[m] for m in ("norm_clip", "spectral_clip", "spectral_clip_ema", "spectral_clip_quantile")] == [
        300, 300, 100, 100,
    ]  # fmt: skip
    assert [adam["tuning"]["paper"]["trials"][m] for m in ("sgd", "norm_clip")] == [100, 300]
    assert {k: adam["optimizer"][k] for k in ("name", "betas", "eps", "weight_decay")} == {
        "name": "adam", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
    }  # fmt: skip


def test_the_small_gpt_is_the_papers() -> None:
    whole = config("shakespeare_muon/paper")
    model = model_of(whole)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert [len(model.blocks), model.blocks[0].attention.heads] == [6, 6]
    for name in ("queries", "keys", "values", "projection"):
        assert shapes[f"blocks.5.attention.{name}.weight"] == (384, 384)
    assert shapes["tokens.weight"] == (65, 384)
    assert shapes["positions.weight"] == (256, 384)
    assert model.head.weight is model.tokens.weight
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Linear) and m is not model.head)
    assert (whole["batch_size"], whole["steps"], whole["dataset"]["held_out"]) == (64, 10_000, 0.1)
    assert whole["schedule"]["name"] == "constant"
    assert whole["model"]["dropout"] == 0.2


@pytest.mark.parametrize("experiment", ["shakespeare_sgd/cpu", "shakespeare_muon/cpu", "shakespeare_adam/cpu"])
def test_of_the_small_gpt_matrices_only_are_clipped_by_layer(experiment: str) -> None:
    found = clipped(experiment, "spectral_clip")
    model = model_of(config(experiment))
    expected = {
        name for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith(("tokens", "positions"))
    }
    assert set(found) == expected
    assert len(expected) == 2 * 6
    assert set(clipped(experiment, "per_tensor_norm")) == expected
    assert config(experiment, "norm_clip")["method"]["clipper"]["skip"] == [], "norm clipping takes all parameters"


def test_the_small_gpts_optimizers_are_the_papers() -> None:
    muon = config("shakespeare_muon/paper")["optimizer"]
    keys = ("momentum", "nesterov", "weight_decay", "adjust_lr", "products", "adam_lr", "adam_betas")
    assert [muon[k] for k in keys] == [0.9, False, 0.1, "match_rms_adamw", "float32", None, [0.9, 0.95]]
    plain = config("shakespeare_sgd/paper")["optimizer"]
    assert [plain[k] for k in ("name", "momentum", "weight_decay", "adam_lr", "adam_betas")] == [
        "matrix_sgd", 0.9, 0.1, None, [0.9, 0.95],
    ]  # fmt: skip


def test_airbench_is_the_papers() -> None:
    whole = config("cifar10_airbench/paper")
    data = whole["dataset"]
    assert [data[k] for k in ("label_smoothing", "padding", "border", "flip")] == [0.2, 2, "reflect", "alternating"]
    assert (whole["batch_size"], whole["epochs"], whole["steps"]) == (2000, 20.0, None)
    assert whole["method"]["estimator"]["reduction"] == "sum"
    assert whole["schedule"]["name"] == "linear"
    assert whole["model"]["widths"] == [64, 256, 256]
    assert whole["model"]["averaged_views"]
    small = config("cifar10_airbench/cpu")
    assert (small["model"]["widths"], small["epochs"]) == ([16, 64, 64], 6.0)
    assert small["optimizer"]["whitening_span"] * small["epochs"] == 3
    assert whole["optimizer"]["whitening_span"] * whole["epochs"] == 3


@pytest.mark.parametrize("method", ["norm_clip", "spectral_clip", "per_tensor_norm"])
def test_of_airbench_filters_only_are_clipped(method: str) -> None:
    found = clipped("cifar10_airbench/cpu", method)
    assert sorted(found) == sorted(f"groups.{g}.{layer}.weight" for g in range(3) for layer in ("first", "second"))


def test_gpt2_is_the_papers() -> None:
    whole = config("gpt2_fineweb_muon/paper", "spectral_clip_randomized")
    assert [whole["model"][k] for k in ("layers", "heads", "width", "tied_head")] == [12, 12, 768, True]
    assert whole["batch_size"] * whole["accumulation"] == 128
    assert whole["dataset"]["context"] == 1024
    tokens = whole["steps"] * 128 * 1024
    assert abs(tokens - 2e9) < 128 * 1024, "2e9 tokens, to a step"
    assert (whole["precision"], whole["schedule"]["name"], whole["schedule"]["warmup"]) == ("bf16", "cosine", 200)
    assert [whole["optimizer"][k] for k in ("nesterov", "momentum", "weight_decay", "adam_betas")] == [
        True, 0.9, 0.0, [0.9, 0.99],
    ]  # fmt: skip
    adam = config("gpt2_fineweb_adam/paper")
    assert [adam["optimizer"][k] for k in ("name", "betas", "weight_decay")] == ["adamw", [0.9, 0.999], 0.0]
    lr = space(adam, "paper").ranges[0]
    assert (lr.low, lr.high) == (3e-5, 3e-3)


def test_of_gpt2_vectors_are_clipped_and_embeddings_are_not() -> None:
    found = clipped("gpt2_fineweb_muon/smoke", "spectral_clip_randomized")
    model = model_of(config("gpt2_fineweb_muon/smoke"))
    assert set(found) == {n for n, _ in model.named_parameters() if not n.startswith(("tokens", "positions"))}


def test_embedding_names_are_skipped_as_the_paper_lists_them() -> None:
    patterns = config("heavy_tailed_mlp/smoke")["skip"]["layers"]
    for name in ("wte", "wpe", "embed_tokens", "word_embeddings", "position_embeddings", "token_type_embeddings"):
        assert matches(f"transformer.{name}.weight", patterns), name
    assert matches("lm_head.weight", patterns)
    for name in ("head.weight", "classifier.1.weight", "fc.weight", "weight", "patch_embed.proj.weight"):
        assert not matches(name, patterns), name


def test_the_table_that_answers_spectral_or_ps_clip_has_all_of_them() -> None:
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        methods = swept_methods(compose_node(["experiment=ps_clip_alexnet_cifar100/cpu"]))
    assert methods == [
        "sgd", "norm_clip", "ps_clip", "per_tensor_norm",
        "spectral_clip", "spectral_clip_ema", "spectral_clip_randomized",
    ]  # fmt: skip
    whole = config("ps_clip_alexnet_cifar100/cpu", "spectral_clip_randomized")
    assert [whole["method"]["clipper"][k] for k in ("rank", "oversample", "iterations")] == [10, 5, 1]
    assert whole["tuning"]["like"] == {"spectral_clip_randomized": "spectral_clip"}
    assert whole["epochs"] == 10.0


@pytest.mark.parametrize(("name", "parts", "size"), [("4x128", 4, 128), ("8x64", 8, 64)])
def test_accumulation_has_512_samples_a_step(name: str, parts: int, size: int) -> None:
    whole = config(f"ps_clip_accumulation_{name}/cpu")
    assert (whole["accumulation"], whole["batch_size"], whole["epochs"]) == (parts, size, 8.0)
