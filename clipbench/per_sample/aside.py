"""Gradients set aside while a step's own contribution is formed, looked at or summed over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor


class Aside:
    """Takes every parameter's `.grad` away; then `merge` adds what has come since, or `restore` forgets it."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._kept = [(param, param.grad) for param in params if param.grad is not None]
        for param, _ in self._kept:
            param.grad = None

    def merge(self, only: Callable[[Tensor], bool] = lambda old: True) -> None:
        """Put back the old gradients that `only` asks for: the same tensors as before, with the new ones added."""
        rest = []
        for param, old in self._kept:
            if only(old):
                param.grad = old if param.grad is None else old.add_(param.grad)
            else:
                rest.append((param, old))
        self._kept = rest

    def restore(self, params: Iterable[Tensor]) -> None:
        """`.grad` of `params` is what it was."""
        for param in params:
            param.grad = None
        for param, old in self._kept:
            param.grad = old
