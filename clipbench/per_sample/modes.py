"""Which of torch's dispatch modes a look at a backward pass runs under."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack


class OnlyFakeModes:
    """Leaves all dispatch modes (a tracer would record the pass) except those that make tensors without values."""

    def __enter__(self) -> None:
        self.fakes = [mode for mode in _get_current_dispatch_mode_stack() if hasattr(mode, "fake_tensor_converter")]
        self.left = _disable_current_modes()
        self.left.__enter__()
        for mode in self.fakes:
            mode.__enter__()

    def __exit__(self, *exc: Any) -> None:
        for mode in reversed(self.fakes):
            mode.__exit__(*exc)
        self.left.__exit__(*exc)
