"""A run that is wanted: its config, checked, and everything that follows from it before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipbench.config import schema
from clipbench.config.environment import referring
from clipbench.runs.fingerprint import fingerprint, together_fingerprint
from clipbench.runs.fit import told
from clipbench.runs.identity import counted, run_id


class Request(NamedTuple):
    """What to run, where, under which id, with the fingerprint of the code that it can reach.

    `recorded` is what config.yaml keeps of the config, with a reference where a value is the environment's. The run id
    is of the values: with another value it is another run, and a hash of the whole config shows none of them.
    """

    config: dict[str, Any]
    options: schema.Options
    device: Any  # torch.device
    run_id: str
    fingerprint: str
    recorded: dict[str, Any]

    @property
    def results(self) -> Path:
        """The results folder, "~" expanded."""
        return Path(self.options.paths.results)

    @property
    def folder(self) -> Path:
        """Where the record lies or will lie."""
        return self.results / "runs" / self.options.experiment / self.run_id

    @property
    def study(self) -> bool:
        """Whether this is a study, which trains no network."""
        return schema.is_study(self.config)

    @property
    def together_fingerprint(self) -> str:
        """That of the code that this run reaches as a member of a batch."""
        return together_fingerprint(self.config)

    @property
    def method(self) -> str:
        """The name under which tables show the run: the method's, or the study's; the environment's as a reference."""
        group = self.recorded["study" if self.study else "method"]
        return str(group.get("name") if isinstance(group, Mapping) else group)


def request(config: Mapping[str, Any]) -> Request:
    """The request for a resolved config (plain containers). Raises ConfigError for what cannot run."""
    from clipbench.config.device import pick_device
    from clipbench.runs.data_sum import sum_of

    options = schema.check(config)
    plain = schema.canonical(schema.used(config), options)
    device = pick_device(options.device)
    recorded = referring(counted(plain, "record"), options.environment)
    with told(plain):
        identity = run_id(plain, device.type, sum_of(plain, options))
    return Request(plain, options, device, identity, fingerprint(plain), recorded)
