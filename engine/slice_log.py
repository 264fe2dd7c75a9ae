"""The slices of the last moments: what a timeline draws.

A record is made when a slice begins and kept when it ends; nothing is done per token. Prompts are named by
their serial number and nothing else: neither ids nor contents are kept.
"""

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from engine.messages import SliceFate, SliceRecord
from engine.prompt import Prompt

CAPACITY = 4096  # slices: a minute of a busy server


@dataclass(slots=True)
class _OpenSlice:
    """A slice in force. `computed` and `sampled` are the prompt's totals as it began, `pending` the tokens
    that were known and not computed: one, when it only had to go on."""

    prompt: Prompt
    device: str
    slot: int
    start_ns: int
    computed: int
    sampled: int
    pending: int
    first_token_ns: int | None = None

    def record(self, end_ns: int | None, fate: SliceFate | None) -> SliceRecord:
        computed = self.prompt.context.computed - self.computed
        return SliceRecord(
            prompt=self.prompt.task.serial,
            tenant=self.prompt.task.tenant,
            device=self.device,
            slot=self.slot,
            arrival_ns=self.prompt.arrival_ns,
            start_ns=self.start_ns,
            first_token_ns=self.first_token_ns,
            end_ns=end_ns,
            prefilled=min(computed, self.pending) if self.pending > 1 else 0,
            sampled=len(self.prompt.output_ids) - self.sampled,
            fate=fate,
        )


def _begun(prompt: Prompt, device: str, slot: int, start_ns: int, num_fed: int) -> _OpenSlice:
    """A slice whose first step has computed `num_fed` positions; its token does not count yet."""
    computed = prompt.context.computed - num_fed
    sampled, pending = len(prompt.output_ids), prompt.num_tokens - computed
    return _OpenSlice(prompt, device, slot, start_ns, computed, sampled, pending)


class _Slots:
    """Rows of a device's timeline: a prompt takes the lowest that is free, and keeps it while it runs."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._num_made = 0

    def take(self) -> int:
        if self._free:
            return heappop(self._free)
        self._num_made += 1
        return self._num_made - 1

    def give_back(self, slot: int) -> None:
        heappush(self._free, slot)


class SliceLog:
    """Told by the scheduler of every slice that begins, goes over into the next, and ends."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._ended: deque[SliceRecord] = deque(maxlen=capacity)
        self._open: dict[Prompt, _OpenSlice] = {}
        self._slots: dict[str, _Slots] = {}

    def begin(self, prompt: Prompt, device: str, start_ns: int, num_fed: int) -> None:
        """The first step of the prompt's turn was reported: it began at `start_ns` and computed `num_fed`
        positions."""
        assert prompt not in self._open
        slot = self._slots.setdefault(device, _Slots()).take()
        self._open[prompt] = _begun(prompt, device, slot, start_ns, num_fed)

    def first_token(self, prompt: Prompt, now_ns: int) -> None:
        """Until now the prompt's slice was prefill."""
        self._open[prompt].first_token_ns = now_ns

    def extend(self, prompt: Prompt, now_ns: int, num_fed: int) -> None:
        """The prompt's next slice has taken over, in the same place: its first step was reported."""
        ended = self._open[prompt]
        self._ended.append(ended.record(now_ns, SliceFate.EXTENDED))
        self._open[prompt] = _begun(prompt, ended.device, ended.slot, now_ns, num_fed)

    def end(self, prompt: Prompt, fate: SliceFate, now_ns: int) -> None:
        """The prompt's turn is over; nothing to note if it made no step."""
        ended = self._open.pop(prompt, None)
        if ended is not None:
            self._slots[ended.device].give_back(ended.slot)
            self._ended.append(ended.record(now_ns, fate))

    def ended_since(self, since_ns: int) -> list[SliceRecord]:
        """Slices that ended after this time and are still known, in order of their end."""
        records: list[SliceRecord] = []
        for record in reversed(self._ended):
            assert record.end_ns is not None
            if record.end_ns <= since_ns:
                break
            records.append(record)
        records.reverse()
        return records

    def in_force(self) -> list[SliceRecord]:
        """Slices that have not ended."""
        return [slice_.record(None, None) for slice_ in self._open.values()]

    def check_integrity(self, running: int) -> None:
        """At most the prompts that have a turn have a slice here. Raises AssertionError."""
        assert len(self._open) <= running
        places = [(slice_.device, slice_.slot) for slice_ in self._open.values()]
        assert len(set(places)) == len(places)
