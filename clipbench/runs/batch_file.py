"""What an unfinished batch of runs keeps on disk: who its members are, in their order, and the batch's checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipbench.errors import ConfigError
from clipbench.runs import catalogue, equal
from clipbench.runs.files import atomic_text, atomic_write, set_aside
from clipbench.runs.recorder import Say
from clipbench.runs.request import Request, request

FOLDER = ".together"
LAYOUT = 1  # of the checkpoint
OWN = (
    "tuning",
    "calibration",
    "paths",
    "data",
    "stale",
    "retry",
    "environment",
)  # where a resumed member follows the new command


class BatchFile:
    """The folder `<results>/runs/<experiment>/.together/<batch id>/`."""

    def __init__(self, folder: Path, requests: Sequence[Request]) -> None:
        self.folder, self.requests = folder, list(requests)

    @classmethod
    def of(cls, requests: Sequence[Request]) -> BatchFile:
        """That of a new batch."""
        words = " ".join(one.run_id for one in requests)
        identity = hashlib.sha256(words.encode()).hexdigest()[:16]
        return cls(requests[0].folder.parent / FOLDER / identity, requests)

    def write_members(self) -> None:
        """Keep the list of members, before any of them has begun."""
        self.folder.mkdir(parents=True, exist_ok=True)
        members = [
            {
                "run_id": one.run_id,
                "fingerprint": one.fingerprint,
                "together_fingerprint": one.together_fingerprint,
                "config": one.recorded,
            }
            for one in self.requests
        ]
        atomic_text(self.folder / "members.json", json.dumps(members, indent=1, default=str) + "\n")

    def save(self, state: dict[str, Any], wall: float) -> None:
        """Write the checkpoint; wall: seconds spent so far."""
        import torch

        content = {"layout": LAYOUT, "batch": self.folder.name, "wall": wall, "state": state}

        def write(path: Path) -> None:
            with open(path, "wb") as file:  # given a path, torch would not say why it could not write
                torch.save(content, file)

        atomic_write(self.folder / "checkpoint.pt", write)

    def checkpoint(self, say: Say) -> dict[str, Any] | None:
        """The last checkpoint, None where there is none that can be used."""
        import torch

        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a parser makes of a damaged file
            say(f"{path} is damaged ({type(error).__name__}); moved to {set_aside(path).name}, the batch starts anew")
            return None
        own = isinstance(content, dict) and {"state", "wall"} <= set(content)
        if not own or (content.get("layout"), content.get("batch")) != (LAYOUT, self.folder.name):
            say(f"{path} is of another version; moved to {set_aside(path, 'foreign').name}, the batch starts anew")
            return None
        return content

    def remove(self) -> None:
        """Forget the batch, whose members have all ended."""
        shutil.rmtree(self.folder, ignore_errors=True)


def unfinished(wanted: Sequence[Request], say: Say) -> list[BatchFile]:
    """The stored batches with a run of `wanted` among their members; those of other code, and finished ones, go."""
    found = []
    own = {one.run_id: one for one in wanted}
    for parent in sorted({one.folder.parent / FOLDER for one in wanted}):
        for folder in sorted(parent.glob("*")):
            requests = _members(folder, wanted[0], say)
            if requests is not None and any(one.run_id in own for one in requests):
                found.append(BatchFile(folder, requests))
    return found


def _members(folder: Path, like: Request, say: Say) -> list[Request] | None:
    """A stored batch's members; None, and the folder is gone, where they cannot be rebuilt or nothing is left to do."""
    try:
        members = json.loads((folder / "members.json").read_text(encoding="utf-8"))
        own = {key: like.config[key] for key in OWN if key in like.config}
        requests = [_rebuilt(member["config"], own) for member in members]
        fits = [
            one.run_id == member["run_id"]
            and equal.same(one.fingerprint, member["fingerprint"])
            and equal.same(one.together_fingerprint, member["together_fingerprint"])
            for one, member in zip(requests, members, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        say(f"together: the batch {folder.name} cannot be rebuilt ({type(error).__name__}); its runs begin anew")
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if not all(fits):
        say(f"together: the batch {folder.name} was made by other code or options; its runs begin anew")
    if not all(fits) or all(catalogue.find(one, lambda _: None) for one in requests):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return requests


def _rebuilt(config: dict[str, Any], own: dict[str, Any]) -> Request:
    data = {**config.get("data", {}), **{k: v for k, v in own.get("data", {}).items() if k in ("root", "download")}}
    return request({**config, **own, "data": data})
