"""Clocks set back, a silent W&B server, one method of ten that breaks, code in data, and secrets."""

from __future__ import annotations

import ast
import json
import math
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from clipbench.analysis.collect import read_record
from clipbench.cli.compose import CONFIG_PATH, compose
from clipbench.clipping import NoClip
from clipbench.runs.execute import execute
from clipbench.runs.provenance import PACKAGE
from clipbench.training import clock as clocks
from tests.acceptance.sweeps.helpers import finished, sweep
from tests.runs.helpers import TINY, values
from tests.tuning.helpers import tuned

SMALL = [*TINY, "device=cpu"]


def test_a_clock_that_goes_backwards_takes_no_seconds_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, now = random.Random(0), [1e6]

    def jump() -> float:
        now[0] += draws.uniform(-50, 10)
        return now[0]

    for name in ("perf_counter", "monotonic", "time"):
        monkeypatch.setattr(clocks.time, name, jump)  # the module that all of the package shares
    outcome = execute(compose([*SMALL, f"paths.results={tmp_path}"]), say=lambda line: None)
    monkeypatch.undo()
    rows = [json.loads(json.dumps(row)) for row in _rows(outcome.folder)]
    seconds = [row["train_seconds"] for row in rows]
    assert outcome.status == "ok"
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0
    assert outcome.info["seconds"]["train"] >= 0
    assert outcome.info["seconds"]["evaluation"] >= 0
    quiet = execute(compose([*SMALL, f"paths.results={tmp_path}/quiet"]), say=lambda line: None)
    assert values(outcome.folder) == values(quiet.folder), "no result depends on a clock"


def _rows(folder: Path) -> list[dict[str, float]]:
    from clipbench.runs.record import Record

    rows = Record(folder).metrics()
    assert rows is not None
    return rows


@pytest.fixture(params=["hangs", "refuses"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that takes connections and never answers, or of one that is not there."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    kept = []

    def accept() -> None:
        while True:
            try:
                kept.append(server.accept())
            except OSError:
                return

    if request.param == "hangs":
        threading.Thread(target=accept, daemon=True).start()
    else:
        server.close()
    yield address
    server.close()


@pytest.mark.slow
def test_a_server_of_wandb_that_does_not_answer_costs_no_result(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", endpoint)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    timeout = 4.0
    online = ["logger=wandb", "logger.mode=online", f"logger.timeout={timeout}"]
    started = time.monotonic()
    outcome = execute(compose([*SMALL, *online, f"paths.results={tmp_path}/with"]), say=lambda line: None)
    assert time.monotonic() - started < timeout + 15
    assert outcome.status == "ok"
    without = execute(compose([*SMALL, f"paths.results={tmp_path}/without"]), say=lambda line: None)
    assert outcome.info["run_id"] == without.info["run_id"]
    assert values(outcome.folder) == values(without.folder)
    assert outcome.info["seconds"]["train"] < 10 * without.info["seconds"]["train"] + 1


class NotFinite(NoClip):
    """Turns the gradients into NaN and infinity from its fourth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __call__(self, named: object) -> object:  # type: ignore[override]
        named = list(named)  # type: ignore[call-overload]
        self.calls += 1
        if self.calls > 3:
            for number, (_, parameter) in enumerate(named):
                parameter.grad.fill_(float("inf") if number % 2 else float("nan"))
        return super().__call__(named)


METHODS = ["sgd", "norm_clip", "value_clip", "ps_clip", "not_finite", "ps_clip_constant", "micro_batch_clip",
           "spectral_clip", "spectral_clip_ema", "spectral_clip_quantile"]  # fmt: skip


@pytest.mark.slow
def test_one_method_of_ten_with_non_finite_gradients(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    own = yaml.safe_load(Path(CONFIG_PATH, "method", "sgd.yaml").read_text())
    own |= {"name": "not_finite", "clipper": {"_target_": "tests.acceptance.faults.test_faults.NotFinite"}}
    (tmp_path / "conf" / "method" / "not_finite.yaml").write_text(yaml.safe_dump(own))
    words = ["--config-dir", f"{tmp_path}/conf", "--allow", "tests", f"method={','.join(METHODS)}", "seed=0"]
    out, errors = finished(sweep(tmp_path, *words))
    assert "sweep ended: 1 diverged, 9 ok" in out, errors
    runs = {run["method"]: run for run in (json.loads(path.read_text()) for path in tmp_path.rglob("run.json"))}
    assert sorted(runs) == sorted(METHODS)
    bad = runs.pop("not_finite")
    assert bad["status"] == "diverged"
    assert bad["steps_done"] < bad["steps"]
    assert all(math.isfinite(run["final"]["validation_loss"]) for run in runs.values())


def test_a_record_s_config_cannot_execute_code(tmp_path: Path) -> None:
    outcome = execute(compose([*SMALL, f"paths.results={tmp_path}/results"]), say=lambda line: None)
    trap = tmp_path / "executed"
    with (outcome.folder / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.system ['touch {trap}']\n")
    with pytest.raises(ValueError, match=r"config.yaml cannot be read"):
        read_record(outcome.folder)
    assert not trap.exists()


def test_nothing_in_the_package_reads_data_that_can_execute_code() -> None:
    """Calls that would: pickle's, torch.load without weights_only, yaml's unsafe loaders, eval, exec, numpy pickles."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _unsafe(node):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def _unsafe(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name == "torch.load":
        return keywords.get("weights_only") != "True"
    unsafe = {
        "pickle.load",
        "pickle.loads",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "eval",
        "exec",
        "pd.read_pickle",
    }
    return name in unsafe or keywords.get("allow_pickle") == "True"


def test_the_search_for_unsafe_calls_finds_them() -> None:
    for text in (
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "yaml.load(f)",
        "eval(x)",
        "np.load(p, allow_pickle=True)",
    ):
        assert _unsafe(ast.parse(text).body[0].value)  # type: ignore[attr-defined]
    for text in ("torch.load(p, weights_only=True)", "yaml.safe_load(f)", "model.eval()", "np.load(p)"):
        assert not _unsafe(ast.parse(text).body[0].value)  # type: ignore[attr-defined]


def test_no_secret_reaches_the_files_of_a_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of the environment nor the password in a database's URL (here a harmless part of a file's name)."""
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-of-the-environment")
    monkeypatch.setenv("SOME_TOKEN", "s3cret-of-the-environment")
    database = tmp_path / "s3cret-of-the-url.db"
    tuned(tmp_path, f"storage=sqlite:///{database}", "trials=1", "methods=sgd", "final_seeds=0")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert any(path.suffix == ".yaml" and "tuned" in path.parts for path in files)
    for path in files:
        assert b"s3cret" not in path.read_bytes(), path
    assert not any(
        "s3cret" in str(value) for value in yaml.safe_load(next(tmp_path.rglob("config.yaml")).read_text()).values()
    )


def test_a_checkpoint_holds_tensors_and_plain_values_only(tmp_path: Path) -> None:
    """So that weights_only can load it; what else it might hold is refused when it is read."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('executed')",)

    from clipbench.runs.record import Record

    torch.save({"trainer": Evil()}, tmp_path / "checkpoint.pt")
    said: list[str] = []
    assert Record(tmp_path, said.append).checkpoint() is None
    assert "is damaged" in said[0]
