"""What `device` means on this machine."""

from __future__ import annotations

import torch

from clipbench.errors import ConfigError


def pick_device(wanted: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; ConfigError where it is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ConfigError(f"device must be there, got {wanted} (this machine has {found} CUDA devices; use device=cpu)")
    return device
