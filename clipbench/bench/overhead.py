"""What the runner costs: the trainer against a bare hand-written loop on the same model, data and batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from clipbench.bench.overhead_report import tables
from clipbench.cli.compose import compose
from clipbench.cli.parser import Parser, positive, writable
from clipbench.config import schema
from clipbench.config.device import pick_device
from clipbench.data.images import Augmentation, ImageData, Images
from clipbench.runs.files import atomic_write
from clipbench.runs.provenance import device_info, versions
from clipbench.timing.interleaved import Ratio, interleave, ratio
from clipbench.training.setup import Setup, build
from clipbench.training.trainer import Trainer

NAME = "bench_overhead"
CASES = {
    "mlp, batch 32": ["dataset=heavy_tailed", "model=mlp", "batch_size=32"],
    "alexnet, batch 128": ["dataset=cifar100", "model=alexnet", "batch_size=128"],
}


def random_images(device: torch.device, samples: int = 4096) -> ImageData:
    """Images of CIFAR-100's shape, so that the benchmark needs no files."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (samples, 3, 32, 32), generator=draws, dtype=torch.uint8)
    images = Images(pixels, torch.randint(100, (samples,), generator=draws)).to(device)
    middle = [0.5, 0.5, 0.5]
    return ImageData({"train": images, "validation": images, "test": images}, middle, middle, Augmentation(padding=4))


def prepared(overrides: list[str]) -> Setup:
    """The run's objects; CIFAR-100 is replaced by random images."""
    config = compose([*overrides, "steps=1000000"])
    options = schema.check(config)
    data = random_images(pick_device(options.device)) if config["dataset"]["name"] == "cifar100" else None
    return build(config, options, data)


def trainer_steps(setup: Setup, count: int) -> Callable[[], None]:
    """`count` steps of the trainer, its clock, figures and boundaries included."""
    setup.options.log_every, setup.options.eval_every, setup.options.checkpoint_every = count, 10**9, 10**9
    trainer = Trainer(setup)
    trainer.clock.setting_up = False
    setup.model.train()

    def run() -> None:
        trainer.clock.start()
        trainer.clock.stop(trainer._to_boundary())
        trainer.rows += trainer._due_rows()

    return run


def bare_steps(setup: Setup, count: int) -> Callable[[], None]:
    """`count` steps of the loop anybody would write: batch, forward, mean loss, backward, torch's own optimizer."""
    model, data = setup.model, setup.data
    optimizer = torch.optim.SGD(model.parameters(), lr=setup.optimizer.param_groups[0]["lr"], momentum=0.9)
    order = torch.randperm(data.sizes["train"], device=setup.device)
    draws = torch.Generator(setup.device).manual_seed(0)
    width, position = setup.options.batch_size, 0
    regression = setup.dataset.spec.kind == "vector"
    model.train()

    def run() -> None:
        nonlocal position
        for _ in range(count):
            rows = order[position : position + width]
            position = position + width if position + 2 * width <= len(order) else 0
            inputs, targets = data.batch(rows, draws)[:2]
            outputs = model(inputs)
            loss = F.mse_loss(outputs, targets) if regression else F.cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def measure(name: str, rounds: int, count: int) -> Ratio:
    """Seconds of the trainer over seconds of the bare loop, for `count` steps a round."""
    steps = {
        "trainer": trainer_steps(prepared(CASES[name]), count),
        "bare": bare_steps(prepared(CASES[name]), count),
    }
    seconds = interleave(steps, rounds)
    return ratio(seconds["trainer"], seconds["bare"])


def main(argv: list[str]) -> None:
    """Measure every case and write results/data/bench_overhead.parquet and its table."""
    parser = Parser(prog="python -m clipbench.bench overhead", description=__doc__)
    parser.add_argument(
        "--results", type=writable, default="results", help="folder for data/ and tables/ (default: results)"
    )
    parser.add_argument("--rounds", type=positive, default=30, help="interleaved rounds a case (default: 30)")
    parser.add_argument("--smoke", action="store_true", help="a few rounds, for tests")
    arguments = parser.parse_args(argv)
    rounds = 2 if arguments.smoke else arguments.rounds
    rows = []
    for name in CASES:
        count = 2 if arguments.smoke else 10 if name.startswith("alexnet") else 200
        found = measure(name, rounds, count)
        rows.append({"case": name, **found._asdict(), "threads": torch.get_num_threads()})
        speed = 1 / found.estimate
        interval = f"[{found.low:.3f}, {found.high:.3f}]"
        print(f"{name}: trainer {found.estimate:.3f} × the bare loop's time {interval},", end=" ")
        print(f"{speed:.1%} of its steps per second (n = {found.n} rounds of {count} steps)", flush=True)
    write(pd.DataFrame(rows), Path(arguments.results))


def write(frame: pd.DataFrame, results: Path) -> None:
    """The parquet file and the Markdown table."""
    info = device_info(torch.device("cpu"))
    frame["device"], frame["torch"] = info["name"], versions()["torch"]
    (results / "data").mkdir(parents=True, exist_ok=True)
    atomic_write(results / "data" / f"{NAME}.parquet", lambda path: frame.to_parquet(path))
    tables(frame, results, NAME)
