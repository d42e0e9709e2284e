"""Builds the members of a batch; members with the same data share them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from clipbench.runs.request import Request
from clipbench.training.setup import Setup, build


def build_all(requests: Sequence[Request]) -> list[Setup]:
    """One Setup a request. Raises ConfigError for what does not fit."""
    first: dict[str, Setup] = {}
    setups = []
    for request in requests:
        drawn = [request.config["dataset"], request.config["data"], request.options.data_seed]
        key = json.dumps(drawn, sort_keys=True, default=str)
        known = first.get(key)
        setup = build(request.config, request.options, None if known is None else known.data)
        if known is not None:
            setup.dataset = known.dataset  # which knows what was loaded
        first.setdefault(key, setup)
        setups.append(setup)
    return setups
