"""Builds the members of a batch; members with the same data share them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from clipbench.data.base import Data
from clipbench.runs.request import Request
from clipbench.training.setup import Setup, build


def build_all(requests: Sequence[Request]) -> list[Setup]:
    """One Setup a request. Raises ConfigError for what does not fit."""
    loaded: dict[str, tuple[Data, dict[str, Any]]] = {}
    setups = []
    for request in requests:
        drawn = [request.config["dataset"], request.config["data"], request.options.data_seed]
        key = json.dumps(drawn, sort_keys=True, default=str)
        data, provenance = loaded.get(key, (None, {}))
        setup = build(request.config, request.options, data)
        if data is not None:
            setup.dataset.provenance.update(provenance)
        loaded[key] = setup.data, setup.dataset.provenance
        setups.append(setup)
    return setups
