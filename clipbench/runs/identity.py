"""Which options count where: the ONE table that identity, grouping, collecting and tracking read; and the run id.

Every option counts everywhere unless the table says otherwise. It counts

- for IDENTITY, where it can change a result: two runs that differ in it have two run ids;
- for a VARIANT, where tables tell two settings apart by it (a seed is what a variant repeats);
- for the RECORD, where config.yaml keeps it (a tuning's database may have a password in its URL);
- in PUBLIC, where collected files and trackers may show it (a path tells of its machine's owner).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

Use = Literal["identity", "variant", "record", "public"]
SHOWN: frozenset[Use] = frozenset({"record", "public"})
# Option → all that it counts for.
TABLE: dict[str, frozenset[Use]] = {
    "logger": frozenset({"record"}),
    "paths": frozenset({"record"}),
    "data.root": frozenset({"record"}),
    "data.download": SHOWN,
    "data.verify": SHOWN | {"identity"},  # where it is false, the id has the sum of the data
    "log_every": SHOWN,
    "log_layers": SHOWN,
    "checkpoint_every": SHOWN,
    "stale": SHOWN,
    "retry": SHOWN,
    "threads": SHOWN,
    "together": SHOWN,
    "tuned": SHOWN,
    "tuning": frozenset(),
    "calibration": frozenset(),
    "method.tuning": frozenset(),
    "environment": frozenset(),
    "seed": SHOWN | {"identity"},
    "experiment": SHOWN | {"identity"},
    "role": SHOWN | {"identity"},
    "trial": SHOWN | {"identity"},
    # Decides at which steps a curve has points; what a metric means does not depend on it.
    "eval_every": SHOWN | {"identity"},
    # "cuda:1" and "auto" name a place; the device's type is put into the identity by `run_id`.
    "device": SHOWN,
}


def counted(config: Mapping[str, Any], use: Use, above: str = "") -> dict[str, Any]:
    """The part of a config that counts for `use`, laid out as the config."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{above}{key}"
        if use not in TABLE.get(path, {use}):
            continue
        inner = isinstance(value, Mapping) and any(name.startswith(f"{path}.") for name in TABLE)
        kept[str(key)] = counted(value, use, f"{path}.") if inner else value
    return kept


def effective(config: Mapping[str, Any], device_type: str) -> dict[str, Any]:
    """The config without what another option makes void: epochs where steps wins, tf32 where there is none."""
    found = dict(config)
    if found.get("steps") is not None:
        found.pop("epochs", None)
    if device_type == "cpu" and found.get("precision") == "tf32":
        found["precision"] = "fp32"
    return found


def run_id(config: Mapping[str, Any], device_type: str, data_sum: str | None = None) -> str:
    """16 hexadecimal digits: SHA-256 of what counts for identity, the device's type and, where given, the data's sum.

    Numbers are to have their options' types already (`schema.canonical`): lr=1 and lr=1.0 are one run.
    """
    kept = counted(effective(config, device_type), "identity") | {"device": device_type}
    if data_sum is not None:
        kept["data"] = {**kept.get("data", {}), "sum": data_sum}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
