"""Prompts that a runner may not survive: found out by running those that were there when it ended one by one.

When a runner ends, every prompt that ran there may be why. Most of them get further as soon as another one
goes on, and are no longer suspected. Those that were there when two runners in a row ended, and got no
further in between, are tried: on that device, each alone, before anybody else runs there. One that is alone
at the end of a third is the culprit, and is to be failed; the others go on. Who waits for the trial runs
nowhere else, lest one device after the other is lost; other prompts may.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.device import Device
from engine.prompt import Prompt

MAX_ENDS = 3  # of runners, with one prompt there each time and alone the last time


@dataclass(slots=True)
class _Record:
    device: Device  # where the last of them ended
    num_ends: int
    num_computed: int  # positions that were computed before the last end, at some time

    def clears(self, prompt: Prompt) -> bool:
        return prompt.finish is not None or prompt.peak_computed > self.num_computed


class Suspects:
    """Who was there when runners ended. A device's own suspects are those that are to be tried there."""

    def __init__(self) -> None:
        self._records: dict[Prompt, _Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def runner_ended(self, device: Device, running: Iterable[Prompt]) -> Prompt | None:
        """These prompts ran there. Returns the culprit, if one is found; it is suspected no more."""
        self.clear()
        last = list(running)
        for prompt in last:
            record = self._records.setdefault(prompt, _Record(device, 0, 0))
            record.device, record.num_ends = device, record.num_ends + 1
            record.num_computed = prompt.peak_computed
            if record.num_ends >= MAX_ENDS - 1:
                device.suspects[prompt] = None
        if len(last) == 1 and self._records[last[0]].num_ends >= MAX_ENDS:
            self._drop(last[0])
            return last[0]
        return None

    def clear(self) -> None:
        """Suspect those no more that got further, or ended."""
        for prompt in [prompt for prompt, record in self._records.items() if record.clears(prompt)]:
            self._drop(prompt)

    def release(self, device: Device) -> None:
        """No trial can be held there."""
        device.suspects.clear()

    def holds(self, prompt: Prompt) -> bool:
        """Whether the prompt is to wait for its trial."""
        record = self._records.get(prompt)
        return record is not None and prompt in record.device.suspects

    def _drop(self, prompt: Prompt) -> None:
        record = self._records.pop(prompt)
        record.device.suspects.pop(prompt, None)
