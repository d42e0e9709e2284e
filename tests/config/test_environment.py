"""Values of the environment are used, and recorded as references; names stay within the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from clipbench.cli.compose import compose
from clipbench.config.environment import references, referring
from clipbench.errors import ConfigError
from clipbench.runs.execute import execute
from clipbench.runs.request import request
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


@pytest.mark.parametrize("word", ["experiment=../experiment/spectrum/smoke", "method=../method/sgd"])
def test_a_choice_is_a_name_within_its_group(word: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a name within conf/"):
        compose([word])
