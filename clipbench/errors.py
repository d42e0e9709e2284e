"""Errors a user can cause, which the command line shows as one line with exit status 2."""

from __future__ import annotations


class ConfigError(ValueError):
    """An option or a combination of them that cannot run; the message names option, value and what is allowed."""


class RecordError(RuntimeError):
    """A file of the results that cannot be written or read; the message names it."""


class Unwritable(RecordError):
    """A results folder in which nothing can be written: the user named it, so it counts as bad input."""


class RunLocked(RecordError):
    """Another process is executing this run."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM reached a run, which wrote its checkpoint; not an Exception, so a sweep ends too."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Stopped(Exception):
    """The caller's `watch` ended a run, which wrote its checkpoint and may be continued."""


class JobError(BaseException):
    """Carries a single run's error past Hydra, which would print a line of its own for an Exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
