"""Whether a model fits a dataset's Spec, and the message where it does not."""

from __future__ import annotations

from clipbench.data.base import Spec

WORDS = {"image": "images of", "vector": "vectors of", "tokens": "sequences of"}


def require_shape(model: str, spec: Spec, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the dataset has images of exactly `shape`, channels first."""
    if (spec.kind, spec.shape) != ("image", shape):
        _refuse(model, f"images of {_size(shape)}", spec)


def require_kind(model: str, spec: Spec, *kinds: str) -> None:
    """Raise ValueError unless the dataset's inputs are of one of `kinds`."""
    if spec.kind not in kinds:
        _refuse(model, " or ".join(f"{WORDS[kind].removesuffix(' of')}" for kind in kinds), spec)


def _refuse(model: str, needs: str, spec: Spec) -> None:
    has = f"{WORDS[spec.kind]} {_size(spec.shape)}"
    raise ValueError(f"model {model} needs {needs}, but dataset {spec.name} has {has}")


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
