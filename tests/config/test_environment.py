"""Values of the environment are used, and recorded as references; names stay within the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from clipbench.cli.command import condense
from clipbench.cli.compose import compose
from clipbench.config.environment import hidden, references, referring
from clipbench.errors import ConfigError
from clipbench.runs.execute import execute
from clipbench.runs.request import request
from clipbench.training.trainer import Trainer
from tests.runs.helpers import TINY


def test_whatever_way_a_value_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.setenv("RATE", "0.25")
    monkeypatch.setenv("NODE", "{a: s3cret}")
    monkeypatch.delenv("UNSET", raising=False)
    config = OmegaConf.create({
        "direct": "${oc.env:SECRET}", "through": "${direct}", "part": ["x-${through}", 1], "plain": "text",
        "number": "${oc.decode:${oc.env:RATE}}", "node": "${oc.decode:${oc.env:NODE}}",
        "default": "${oc.env:UNSET,seven}", "second": "${oc.env:UNSET,${oc.env:SECRET}}",
    })  # fmt: skip
    plain: Any = OmegaConf.to_container(config, resolve=True)
    assert (plain["number"], plain["node"], plain["part"][0]) == (0.25, {"a": "s3cret"}, "x-s3cret")
    shown = referring(plain, references(config, plain))
    assert shown == {
        "direct": "${oc.env:SECRET}", "through": "${oc.env:SECRET}", "part": ["x-${oc.env:SECRET}", 1],
        "plain": "text", "number": "${oc.env:RATE}", "node": "${oc.env:NODE}", "default": "seven",
        "second": "${oc.env:SECRET}",
    }  # fmt: skip
    assert OmegaConf.to_container(config, resolve=True) == plain


def test_the_record_has_the_reference_and_the_id_is_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*TINY, "device=cpu", f"paths.results={tmp_path}", "optimizer.lr='${oc.decode:${oc.env:RATE}}'"]
    monkeypatch.setenv("RATE", "0.0123456")
    outcome = execute(compose(words), say=lambda line: None)
    for path in outcome.folder.iterdir():
        assert b"0.0123456" not in path.read_bytes(), path
    recorded = yaml.safe_load((outcome.folder / "config.yaml").read_text())
    assert recorded["optimizer"]["lr"] == "${oc.env:RATE}"
    assert "environment" not in recorded
    plainly = request(compose([*words[:-1], "optimizer.lr=0.0123456"]))
    assert plainly.run_id == outcome.info["run_id"]
    assert execute(compose(words), say=lambda line: None).found
    monkeypatch.setenv("RATE", "0.02")
    assert request(compose(words)).run_id != outcome.info["run_id"]


@pytest.mark.parametrize("name", ["../../x", "..", "/x", "a/../../x", "a//b", ".x", "~/x", "a\\b"])
def test_an_experiment_s_name_cannot_leave_the_results(name: str, tmp_path: Path) -> None:
    config = compose([*TINY, f"paths.results={tmp_path}/results"]) | {"experiment": name}
    with pytest.raises(ConfigError, match="experiment must be plain names joined by /"):
        request(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("group", ["method", "dataset", "model", "optimizer"])
def test_a_group_s_name_is_a_plain_one(group: str) -> None:
    config = compose(TINY)
    with pytest.raises(ConfigError, match=rf"{group}.name must be a plain name, as of a file, got ../../x"):
        request(config | {group: config[group] | {"name": "../../x"}})


@pytest.mark.parametrize(
    "word",
    ["method.name=${oc.env:SECRET}", "model.name=x-${oc.env:SECRET}", "optimizer.name=${oc.env:SECRET}",
     "data.root=/x/${oc.env:SECRET}", "paths.results=${results}/${oc.env:SECRET}",
     "method='${oc.decode:${oc.env:NODE}}'"],
)  # fmt: skip
def test_no_name_and_no_path_in_a_record_is_the_environment_s(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's file could publish a variable by a name."""
    parts = "estimator: {_target_: clipbench.estimators.Batch}, clipper: {_target_: clipbench.clipping.NoClip}"
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("NODE", f"{{name: {SECRET}, {parts}}}")
    said: list[str] = []
    words = [*TINY, "device=cpu", f"paths.results={tmp_path}", word.replace("${results}", str(tmp_path))]
    if word.startswith("method="):
        config = compose(words[:-1])
        config["method"] = OmegaConf.to_container(OmegaConf.create(f"{{name: {SECRET}, {parts}}}"))
        config["environment"] = config["environment"] | {"method": "${oc.env:NODE}"}
    else:
        config = compose(words)
    outcome = execute(config, say=said.append)
    for path in outcome.folder.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in json.dumps(outcome.info)
    assert execute(config, say=said.append).found


def test_an_experiment_s_name_is_written_out() -> None:
    """Folders and files are called by it."""
    config = compose(TINY)
    config["environment"] = {"experiment": "${oc.env:SECRET}"}
    with pytest.raises(ConfigError, match=r"^experiment must be written out"):
        request(config)


@pytest.mark.parametrize("word", ["experiment=../experiment/spectrum/smoke", "method=../method/sgd"])
def test_a_choice_is_a_name_within_its_group(word: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a name within conf/"):
        compose([word])


SECRET = "hunter2-and-more"
DECODED = "optimizer.lr='${oc.decode:${oc.env:RATE}}'"
ERRORS = [
    # (overrides, values by variable, what is said)
    (["device=${oc.env:WHERE}"], {"WHERE": SECRET}, "device must be auto, cpu, cuda or cuda:N, got ${oc.env:WHERE}"),
    (["precision=${oc.env:HOW}"], {"HOW": SECRET},
     "precision must be one of 'fp32', 'tf32', 'bf16', 'fp64', got ${oc.env:HOW}"),
    ([DECODED], {"RATE": "-1.0"}, "optimizer.lr must be finite and > 0, got ${oc.env:RATE}"),
    ([DECODED], {"RATE": "-1e3"}, "optimizer.lr must be finite and > 0, got ${oc.env:RATE}"),
    (["optimizer.lr='${oc.env:RATE}'"], {"RATE": SECRET}, "optimizer.lr must be a number, got ${oc.env:RATE}"),
    (["batch_size='${oc.decode:${oc.env:SIZE}}'"], {"SIZE": "0"}, "batch_size must be >= 1, got ${oc.env:SIZE}"),
    (["model._target_=${oc.env:WHAT}"], {"WHAT": f"os.{SECRET.replace('-', '')}"}, "${oc.env:WHAT}"),
    (["model.name=a/${oc.env:WHAT}"], {"WHAT": SECRET},
     "model.name must be a plain name, as of a file, got a/${oc.env:WHAT}"),
    (["+model.nothing=1", "model.name=${oc.env:WHAT}"], {"WHAT": SECRET}, "model.nothing is not an option"),
    (["skip.layers='${oc.decode:${oc.env:NAMES}}'"], {"NAMES": f"{{a: {SECRET}}}"},
     "skip.layers must be a valid list, got ${oc.env:NAMES}"),
    (["method=${oc.env:WHAT}"], {"WHAT": SECRET}, "${oc.env:WHAT}"),
    (["experiment=${oc.env:WHAT}"], {"WHAT": SECRET}, "${oc.env:WHAT}"),
    ([DECODED], {"RATE": f"[{SECRET}"}, "missing BRACKET_CLOSE at '<EOF>' full_key: optimizer.lr"),
    (["optimizer.lr='${oc.env:RATE}'"], {"RATE": f"{SECRET}\nand a second line"},
     "optimizer.lr must be a number, got ${oc.env:RATE}"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "variables", "line"), ERRORS, ids=[" ".join(words) for words, _, _ in ERRORS])
def test_an_error_shows_the_reference(
    words: list[str], variables: dict[str, str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the line is what is checked
        execute(compose([*TINY, "device=cpu", f"paths.results={tmp_path}", *words]), say=lambda text: None)
    said = condense(raised.value)
    assert said is not None
    assert line in said
    for value in variables.values():
        assert value.splitlines()[0] not in said.replace(">= 1", "")
    assert SECRET not in said


def test_a_failed_run_s_record_shows_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Trainer, number: int) -> object:
        raise MemoryError(f"no room for {SECRET} here")

    monkeypatch.setenv("WHAT", SECRET)
    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(MemoryError):
        execute(
            compose([*TINY, "device=cpu", f"paths.results={tmp_path}", "model.name=${oc.env:WHAT}"]), lambda text: None
        )
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["error"] == "MemoryError: no room for ${oc.env:WHAT} here"
    assert "no room for ${oc.env:WHAT} here" in (record.parent / "error.txt").read_text()
    for path in record.parent.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path


def test_what_is_hidden_is_the_environment_s_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"A": "1", "B": "adam", "C": "adam/x", "CLIPBENCH_DATA": "/data/here"}.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.create({key: f"${{oc.env:{key}}}" for key in ("A", "B", "C", "CLIPBENCH_DATA")})
    references(config, OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    assert hidden("steps must be >= 1, got 1") == "steps must be >= 1, got ${oc.env:A}"
    assert hidden("adam/x is there, madam and adamant, got 'adam'") == (
        "${oc.env:C} is there, madam and adamant, got '${oc.env:B}'"
    )
    assert hidden("/data/here/x is no file") == "/data/here/x is no file"
    monkeypatch.setenv("B", "sgd")
    assert hidden("got adam") == "got adam"
