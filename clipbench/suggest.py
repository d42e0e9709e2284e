"""The command `python -m clipbench.suggest`: norms of an experiment's gradients, and thresholds for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from clipbench.cli.arguments import overrides
from clipbench.cli.command import command
from clipbench.errors import ConfigError

WORDS = {"batches": (int, "10"), "share": (float, "0.1")}
HELP = """\
usage: python -m clipbench.suggest experiment=<name>/<size> [batches=N] [share=S] [key=value …]

Measure the norms of samples, gradients and layers over some micro-batches at the model's initial weights, and propose
thresholds that clip a share of them: α and β of per-sample clipping, τ of norm clipping and of spectral clipping.
Nothing is trained and nothing written. Norms change in training: these are where a search begins.

  batches=10         micro-batches to look at
  share=0.1          share of samples, batches and layers to clip
  --config-dir DIR   a folder of methods and experiments of your own
  --allow PACKAGE    a package of your own that their files may name

Everything else is an option of the runs, as on the command line of clipbench.run.

examples:
  python -m clipbench.suggest experiment=heavy_tailed_mlp/smoke
  python -m clipbench.suggest experiment=ps_clip_alexnet_cifar100/cpu batches=20 share=0.05
"""


def main(arguments: Sequence[str]) -> None:
    """Measure and print the table. Raises ConfigError and RecordError for what cannot be done."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    own = {word: text for word, (_, text) in WORDS.items()}
    rest = []
    for each in arguments:
        word, equals, text = each.partition("=")
        if equals and word in WORDS:
            own[word] = text
        else:
            rest.append(each)
    batches, share = (_number(word, text) for word, text in own.items())

    from clipbench.cli.compose import compose, must_train
    from clipbench.config.schema import check
    from clipbench.suggestion import suggest
    from clipbench.training.setup import build

    config = compose(overrides(rest, "suggestion", WORDS))
    options = check(config)
    must_train(config)
    setup = build(config, options)
    setup.model.train()
    try:
        found = suggest(
            setup.model, _micro_batches(setup),
            lambda model, batch: setup.dataset.task.losses(model(batch.inputs), batch), batches, share,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(str(error)) from error
    print(found)


def _number(word: str, text: str) -> Any:
    kind = WORDS[word][0]
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{word} must be a {'whole ' * (kind is int)}number, got {text}") from None


def _micro_batches(setup: Any) -> Iterator[Any]:
    """Those of a run of the experiment, from its first step on."""
    from clipbench.training.batches import Batches

    options = setup.options
    batches = Batches(setup.data, options.seed, options.batch_size, options.accumulation, setup.device)
    for step in range(setup.steps):
        yield from batches.step(step)


class _Callable(ModuleType):
    """Once this module is imported it stands in the package where the function of its name did: it can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from clipbench.suggestion import suggest

        return suggest(*args, **kwargs)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
else:
    sys.modules[__name__].__class__ = _Callable
