"""The command `python -m clipbench.new`: the files of a method of one's own, with a rule that works, to be changed."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from clipbench.cli.command import command
from clipbench.cli.compose import CONFIG_PATH
from clipbench.cli.outside import taken
from clipbench.errors import ConfigError, Unwritable

HELP = """\
usage: python -m clipbench.new method my_rule [--into DIR]

Write a method of your own into DIR (default: the current folder): a rule that works, to be changed into yours.

  my_rule.py                 the class
  conf/method/my_rule.yaml   the config, with the ranges of clipbench.tune
  twin_my_rule.py            the rule once more, in float64 NumPy, sharing no code with the class
  test_my_rule.py            class against twin, and the contract of every method

then, in DIR:
  python -m pytest test_my_rule.py
  python -m clipbench.run --config-dir conf --allow my_rule method=my_rule
"""
CLASS = '''\
"""Root clipping, the example rule: change it into yours. First line of the class: paper and equation."""

from __future__ import annotations

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, parts, scale_, total


class @Class@(Clipper):
    """g √(τ/‖g‖) where ‖g‖ > τ: norm clipping that keeps half of what is beyond τ, on a logarithmic scale.

    ‖g‖ is over all parameters together. A zero gradient is left alone; one whose norm is not finite too, so that
    divergence shows. Raises ValueError where threshold is not > 0.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = check_positive("threshold", threshold)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters)
        norm = total(found.norms())
        clipped = torch.isfinite(norm) & (norm > self.threshold)
        # No .item(), if or mask on a tensor: each waits for the device.
        scale_(found.local, torch.where(clipped, (self.threshold / norm).sqrt(), 1.0))
        return ClipStats(norm, clipped.to(norm.dtype))

    # A rule with a memory has state_dict() and load_state_dict(state); one that draws starts from reseed(seed).
'''
CONFIG = """\
# g √(τ/‖g‖) where ‖g‖ > τ
name: @name@
estimator:
  _target_: clipbench.estimators.Batch
clipper:
  _target_: @name@.@Class@
  threshold: 1.0   # our choice
tuning:            # ranges of clipbench.tune, laid out as the above
  clipper: {threshold: {low: 0.01, high: 100.0, log: true}}   # our choice
"""
TWIN = '''\
"""@Class@ once more, in float64 NumPy: written from the equation, sharing no code with the class."""

from __future__ import annotations

import math

import numpy as np


def twin(gradients: list[np.ndarray], threshold: float) -> list[np.ndarray]:
    """What the gradients are after the rule."""
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    factor = math.sqrt(threshold / norm) if norm > threshold else 1.0
    return [gradient * factor for gradient in gradients]
'''
TEST = '''\
"""@Class@ against its twin, and the contract of every method."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from @name@ import @Class@
from twin_@name@ import twin

from clipbench.config.trust import allow
from clipbench.contract import examine_outside, method_of


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("threshold", [1e-3, 1.0, math.inf])
def test_equals_its_twin(threshold: float, scale: float) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    (model(torch.randn(8, 4, dtype=torch.float64)).square().sum() * scale).backward()
    expected = twin([parameter.grad.numpy().copy() for parameter in model.parameters()], threshold)
    @Class@(threshold)(model.named_parameters())
    for parameter, right in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), right, rtol=1e-12)


def test_keeps_the_contract() -> None:
    allow(["@name@"])
    findings = examine_outside(method_of("@name@.@Class@", {"threshold": 1.0}))
    assert [each for each in findings if each.held is False] == []
'''


def files(name: str) -> dict[str, str]:
    """Path → content of the files of a method called `name`. Raises ConfigError for a name that cannot be one."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(f"the method's name must be lower-case words joined by _, as my_rule, got {name}")
    if importlib.util.find_spec(name) is not None and not Path(f"{name}.py").exists():
        raise ConfigError(f"the method's name must not be that of an installed module, which it would hide, got {name}")
    if (Path(CONFIG_PATH) / "method" / f"{name}.yaml").exists():
        raise ConfigError(f"the method's name must be a new one, got {name}, which clipbench has")
    made = {
        f"{name}.py": CLASS, f"conf/method/{name}.yaml": CONFIG, f"twin_{name}.py": TWIN, f"test_{name}.py": TEST,
    }  # fmt: skip
    kind = "".join(word.capitalize() for word in name.split("_"))
    return {path: text.replace("@name@", name).replace("@Class@", kind) for path, text in made.items()}


def main(arguments: Sequence[str]) -> None:
    """Write the files. Raises ConfigError for bad input, Unwritable where they cannot be written."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    words, folder = taken(arguments), Path()
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--into":
            end = place + (1 if equals else 2)
            folder = Path(value if equals else "".join(words[place + 1 : end])).expanduser()
            words = words[:place] + words[end:]
            break
    if len(words) != 2 or words[0] != "method":
        raise ConfigError(f"the arguments must be method NAME (--help tells more), got {' '.join(words) or 'nothing'}")
    made = files(words[1])
    if taken_already := [path for path in made if (folder / path).exists()]:
        raise ConfigError(f"--into must be a folder without {taken_already[0]}, got {folder}")
    for path, text in made.items():
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise Unwritable(f"--into must be a writable folder, got {folder} ({path}: {error.strerror})") from error
        print(folder / path)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
