"""Which parameters a layer-wise clipper leaves alone: by name patterns, and by the type of their module."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

logger = logging.getLogger(__name__)

# Embedding-like weights are left alone, by these names (arXiv 2605.11838, its public code); an MLP's or a classifier's
# output layer, a patch projection and norms beside an embedding are clipped.
SKIP = (
    "wte",
    "wpe",
    "embed_tokens",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "lm_head",
)
SKIP_TYPES = ("Embedding", "EmbeddingBag")
LISTED = 12  # names in the message; the number is always said


def check_patterns(skip: Sequence[str]) -> tuple[str, ...]:
    """The patterns as a tuple. Raises ValueError for one string, which would be read letter by letter."""
    if isinstance(skip, str):
        raise ValueError(f"skip must be a list of name patterns, got {skip!r}")
    return tuple(skip)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern (shell style) matches the whole dotted name or one of its parts.

    The last part counts only if it says something: `weight` and `bias` name a role, not a layer, so a bare `weight`
    is never skipped by accident.
    """
    parts = [name, *(part for part in name.split(".") if part not in ("weight", "bias"))]
    return any(fnmatchcase(part.lower(), pattern.lower()) for part in parts for pattern in patterns)


def parameters_of(model: nn.Module, types: Sequence[str]) -> list[str]:
    """Dotted names of the parameters that belong to modules of these classes, or of classes derived from them."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if any(base.__name__ in types for base in type(module).__mro__)
        for name, _ in module.named_parameters(recurse=False)
    ]


def skipped(model: nn.Module, skip: Sequence[str], types: Sequence[str]) -> tuple[str, ...]:
    """Both: the patterns, and the names of the parameters of these classes."""
    return (*check_patterns(skip), *parameters_of(model, types))


def tell(rule: str, names: Sequence[str]) -> None:
    """Log which parameters a rule leaves alone, in one line."""
    shown = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
    logger.warning("%s leaves %d parameters alone: %s", rule, len(names), shown)
