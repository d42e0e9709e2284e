"""Without any extra the clippers work, and every command says in one line what it lacks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from clipbench.extras import EXTRAS, need
from tests.light.blocked import ROOT, run

PACKAGE = ROOT / "clipbench"
DISTRIBUTIONS = {"PIL": "pillow", "hydra": "hydra-core", "yaml": "pyyaml", "markdown_it": "markdown-it-py"}
ROOMS = ("analysis", "cli", "contract", "runs", "timing", "training", "tuning")
CLIPPING = """
import sys, torch
import clipbench
from clipbench import *

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
x = torch.randn(8, 4)
losses = lambda: model(x).square().sum(1)
stats = PerSampleClipper(model, PowerThreshold(0.01, 2.0), weight=SmoothWeight()).backward(losses())
assert stats.clipped_fraction > 0
for clip in (NormClip(0.01), SpectralClip(EmaThreshold(0.5)), Chain([ValueClip(1e-3), NormClip(1e-3)]), ZClip()):
    model.zero_grad()
    losses().sum().backward()
    clip(model.named_parameters())
PerSampleClipper(model, SampleQuantile(0.5)).backward(losses())
clipped, sigma = clip_singular_values(torch.randn(5, 3), 0.1)
assert torch.linalg.matrix_norm(clipped, 2) < 0.1001
clip_factored(torch.randn(8, 3), torch.randn(8, 2), 0.1)
loaded = {name.partition(".")[0] for name in sys.modules} & set(%r)
assert not loaded, loaded
found = suggest(model, [x, x], lambda model, x: model(x).square().sum(1))
assert found.norm > 0
print("clipped")
""".replace("from clipbench import *", "from clipbench import (\n%s\n)")


def commands() -> list[str]:
    """Every `python -m` for users: files beside the rooms that run as a script, and rooms with a __main__."""
    files = [
        path
        for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/__main__.py")]
        if '\nif __name__ == "__main__":' in path.read_text()
    ]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return sorted(name.removesuffix(".__main__") for name in names)


def test_type_checkers_are_told_of_the_annotations() -> None:
    assert (PACKAGE / "py.typed").exists()  # PEP 561


def test_commands_are_found() -> None:
    assert {"clipbench.run", "clipbench.tune", "clipbench.report", "clipbench.bench"} <= set(commands())


def test_the_clippers_need_no_extra(tmp_path: Path) -> None:
    names = (
        "Chain, EmaThreshold, NormClip, PerSampleClipper, PowerThreshold, SampleQuantile, SmoothWeight, "
        "SpectralClip, ValueClip, ZClip, clip_factored, clip_singular_values, suggest"
    )
    done = run(tmp_path, EXTRAS, "-c", CLIPPING % (names, sorted(EXTRAS)))
    assert (done.returncode, done.stdout.strip()) == (0, "clipped"), done.stderr


def test_the_list_of_commands_needs_no_extra(tmp_path: Path) -> None:
    done = run(tmp_path, EXTRAS, "-m", "clipbench")
    assert done.returncode == 0, done.stderr
    assert "clipbench.run" in done.stdout


@pytest.mark.parametrize("name", [name for name in commands() if name != "clipbench"])
def test_a_command_says_what_it_lacks(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, EXTRAS, "-m", name, "--help")
    assert done.returncode == 2
    assert re.fullmatch(r"clipbench: needs [\w, ]+ for this, which (is|are) not installed: "
                        r"pip install 'clipbench\[[\w,]+\]'\n", done.stderr), done.stderr  # fmt: skip
    assert done.stdout == ""


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_what_it_lacks(tmp_path: Path, name: str) -> None:
    done = run(tmp_path, EXTRAS, "-c", f"import clipbench.{name}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: clipbench needs ")
    assert last.endswith("pip install 'clipbench[bench]'")


def test_nothing_is_asked_for_that_is_there() -> None:
    need("torch", "hydra", "xml.dom")
    with pytest.raises(ImportError, match=r"needs no_such, nor_this for this, which are not installed: pip install no"):
        need("torch", "no_such", "nor_this")


def test_the_extras_are_those_of_the_package() -> None:
    """The table names the extra that holds each module, and the light install holds none of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {extra: {re.split(r"[<>=\[]", word)[0] for word in words}
             for extra, words in project["optional-dependencies"].items()}  # fmt: skip
    assert {re.split(r"[<>=]", word)[0] for word in project["dependencies"]} == {"torch", "numpy"}
    for module, extra in EXTRAS.items():
        assert DISTRIBUTIONS.get(module, module) in named[extra], module
    assert named["bench"] == {DISTRIBUTIONS.get(m, m) for m, e in EXTRAS.items() if e == "bench"} | {"hydra-core"}
    everything = project["optional-dependencies"]["dev"][0]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(named) - {"dev", "fineweb"}
