"""Device time: marks on a stream that say when the device came by."""

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A point in a stream's work."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def synchronize(self) -> None:
        """Wait until it has."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this mark to a later one of its kind; both passed."""


MakeMark = Callable[[], Mark]
"""Puts a mark at the end of what the current stream has to do."""


def cuda_mark() -> Mark:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between_ns(start: Mark, end: Mark) -> int:
    return max(0, round(start.elapsed_time(end) * 1e6))
