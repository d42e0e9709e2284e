"""The Python blocks of README.md run as they stand, on a small model with a loss for each sample."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_a_block_runs_and_where_it_steps_the_weights_change(block: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x, y = 1e3 * torch.randn(16, 4), torch.randint(0, 3, (16,))
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    names: dict[str, Any] = {
        "model": model, "x": x, "y": y, "criterion": criterion,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "loss": criterion(model(x), y).mean(),
    }  # fmt: skip
    before = [p.detach().clone() for p in model.parameters()]
    exec(compile(block, str(README), "exec"), names)
    assert "optimizer.step()" not in block or any(
        not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)
    )
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 2
