"""Notices runners that say nothing any more: a device that hangs ends no process, and who runs there would
wait for ever.

Only time in which we looked counts: a machine that was asleep, or a container that was paused, ends nothing.
"""

SILENT_S = 300.0  # no step takes a hundredth of it on a GPU, or more than a part of it on a CPU
LOOK_S = 1.0  # between two looks


class Silence:
    """How long each runner of a model has been silent while it had work."""

    def __init__(self) -> None:
        self._num_heard: dict[str, int] = {}
        self._silent_s: dict[str, float] = {}

    def is_too_long(self, device: str, num_heard: int, *, is_busy: bool) -> bool:
        """To be asked every `LOOK_S`, with the number of messages that have come from the runner so far."""
        if not is_busy or num_heard != self._num_heard.get(device):
            self._num_heard[device], self._silent_s[device] = num_heard, 0.0
            return False
        self._silent_s[device] += LOOK_S
        return self._silent_s[device] >= SILENT_S
