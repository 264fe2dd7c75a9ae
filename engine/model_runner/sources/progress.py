"""How loading tells what it is doing."""

from collections.abc import Callable

OnProgress = Callable[[str, float | None], None]
"""Called with the stage in words, and how much is done (0 to 1) where that is known."""


def ignore_progress(stage: str, fraction: float | None) -> None:
    """For callers that show nothing."""
