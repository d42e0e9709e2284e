"""Changes bytes of CIFAR files at random and reads them; `python -m tests.data.fuzz FOLDER SEED CHANGES`.

In a process of its own, as what is feared is the end of the interpreter. Prints one JSON line: how many of the changed
files were read, and how many refused.
"""

from __future__ import annotations

import json
import pickle
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from clipbench.data import unpickle
from clipbench.data.cifar import _plausible
from tests.data.files import dump


def originals(folder: Path) -> list[bytes]:
    """A tiny file in each spelling that is about: text of protocol 2, bytes of protocol 3, frames of protocol 4."""
    content = {"data": np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), "fine_labels": [3, 99], "filenames": ["a"]}
    dump(folder / "file", content)
    return [(folder / "file").read_bytes(), *(pickle.dumps(content, protocol=protocol) for protocol in (3, 4))]


def changed(original: bytes, draws: random.Random) -> bytes:
    """One to four bytes changed, put in, taken out, or the end cut off; mostly where the pixels are not."""
    content = bytearray(original)
    edge = 300
    for _ in range(draws.randint(1, 4)):
        far = draws.random() < 0.1
        place = draws.randrange(len(content)) if far else draws.choice([*range(edge), *range(-edge, 0)]) % len(content)
        kind = draws.random()
        if kind < 0.8:
            content[place] = draws.choice([draws.randrange(256), content[place] ^ 1 << draws.randrange(8), 0, 255])
        elif kind < 0.88:
            content.insert(place, draws.randrange(256))
        elif kind < 0.96:
            del content[place]
        else:
            del content[place:]
        if len(content) < edge:
            break
    return bytes(content)


def main(folder: Path, seed: int, changes: int) -> None:
    draws, counts = random.Random(seed), Counter(read=0, refused=0, implausible=0)
    files = originals(folder)
    for _ in range(changes):
        try:
            content = unpickle.parse(changed(draws.choice(files), draws))
        except pickle.UnpicklingError:
            counts["refused"] += 1
            continue
        if _plausible(content, 100):
            content["data"].sum()  # every byte is there
            counts["read"] += 1
        else:
            counts["implausible"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
