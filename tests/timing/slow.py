"""A clipper that takes its time, as a method of known cost."""

from __future__ import annotations

import time
from typing import Any

from clipbench.clipping import NoClip


class SlowClip(NoClip):
    """Leaves the gradients alone and waits for `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def __call__(self, named: Any) -> Any:
        time.sleep(self.seconds)
        return super().__call__(named)
