"""Random streams: one for each purpose, each a function of (seed, stream, step) and of nothing else.

Methods with the same seed therefore see the same initial weights and the same batches, whatever else they draw,
and a resumed run draws what the undisturbed one would have drawn, without any generator state in the checkpoint.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import torch

Stream = Literal["data", "split", "initialisation", "order", "augmentation", "dropout", "noise", "clipper", "tuning"]
STREAMS: tuple[str, ...] = get_args(Stream)


def derive(seed: int, stream: Stream, step: int = 0, part: int = 0) -> int:
    """A 63-bit seed for `stream` at `step`; `part` tells micro-batches of one step apart.

    A cryptographic hash (BLAKE2b) mixes the words, so neighbouring seeds and steps give unrelated streams.
    Raises ValueError for an unknown stream or a negative number.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream must be one of {', '.join(STREAMS)}, got {stream}")
    if min(seed, step, part) < 0:
        raise ValueError(f"seed must be >= 0, as step and part, got {seed}, {step}, {part}")
    words = f"{seed} {stream} {step} {part}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest()) >> 1


def generator(
    seed: int, stream: Stream, step: int = 0, part: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh torch.Generator on `device` for (seed, stream, step, part)."""
    return torch.Generator(device=device).manual_seed(derive(seed, stream, step, part))


def seed_global(seed: int, stream: Stream, step: int = 0, part: int = 0) -> None:
    """Seed torch's global generators (CPU, and CUDA where it is in use), which dropout and initialisers draw from.

    Not by `torch.manual_seed`: that formats a traceback each time CUDA is not initialised, 0.6 ms a step.
    """
    number = derive(seed, stream, step, part)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        for each in torch.cuda.default_generators:
            each.manual_seed(number)
