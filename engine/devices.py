"""All devices of a model: those that something happened to, and those that have a place for one more prompt.

There may be a thousand of them, so no plan goes through all. It looks at those that were touched since the
last one, and finds places in orders that are brought up to date where something has changed.
"""

from collections.abc import Iterator, Sequence
from heapq import merge
from typing import NamedTuple

from sortedcontainers import SortedList

from engine.device import Device
from engine.memory.context import Context
from engine.memory.store import ContextStore
from engine.prompt import Prompt


class _Entry(NamedTuple):
    """What the place of a device in the orders goes by."""

    num_running: int
    reserve: int  # pages
    num_available: int | None  # pages; None: the batch is full


class Devices:
    """A device is *touched* when its runner comes or goes, or reports what a plan would answer there, when
    something is written for it, and when pages of its pool change hands. Starts leave the share `reserve` of
    a pool to those who run there.
    """

    def __init__(self, store: ContextStore, *, reserve: float) -> None:
        self.up: dict[int, Device] = {}  # those that work, by pool id
        self.num_slots = 0  # of their batches
        self.num_running = 0  # turns there
        self._store = store
        self._pools = store.local_pools
        self._reserve = reserve
        self._serials: dict[Device, int] = {}  # in order of their coming
        self._by_pool: dict[int, Device] = {}
        self._narrowest_tokens = self._widest_tokens = 0  # the contexts that devices which are up can hold
        self._touched: dict[Device, None] = {}
        self._unfiled: dict[Device, None] = {}  # that may have another place in the orders now
        self._entries: dict[Device, _Entry] = {}  # of those that are up
        self._by_load = SortedList()  # (prompts that run, pool id, device)
        self._by_room: dict[int, SortedList] = {}  # by reserve: (-available pages, pool id, device)

    def __iter__(self) -> Iterator[Device]:
        return iter(self._serials)

    def come(self, device: Device) -> None:
        """The device's runner is ready, for the first time or again."""
        assert not device.running
        device.is_up = True
        self._serials.setdefault(device, len(self._serials))
        self._by_pool[device.pool_id] = self.up[device.pool_id] = device
        self._measure()
        self.touch(device)

    def go(self, device: Device) -> None:
        """The device's runner is gone, or about to be. Its turns do not count any more."""
        if device.is_up:
            self.num_running -= len(device.running)
        device.is_up = False
        self.up.pop(device.pool_id, None)
        self._measure()
        self.touch(device)

    def _measure(self) -> None:
        lengths = [device.max_context_tokens for device in self.up.values()]
        self._narrowest_tokens, self._widest_tokens = min(lengths, default=0), max(lengths, default=0)
        self.num_slots = sum(device.max_batch for device in self.up.values())

    def begin_turn(self, device: Device, prompt: Prompt) -> None:
        """The prompt runs there, which is up, from now on."""
        device.running[prompt] = None
        self.num_running += 1
        self.touch(device)

    def end_turn(self, device: Device, prompt: Prompt) -> None:
        """It does not any more."""
        del device.running[prompt]
        self.num_running -= device.is_up
        self.touch(device)

    @property
    def are_all_full(self) -> bool:
        """Whether no batch has a place."""
        return self.num_running >= self.num_slots

    def can_all_hold(self, prompt: Prompt) -> bool:
        """Whether the prompt's context fits wherever there is a device that is up."""
        return prompt.expected_tokens <= self._narrowest_tokens

    def can_some_hold(self, prompt: Prompt) -> bool:
        """Whether the prompt's context fits on some device that is up."""
        return prompt.expected_tokens <= self._widest_tokens

    def home_of(self, context: Context) -> Device | None:
        """The device that has the context's pages, or had them last, if it is up."""
        pool_id = context.home if context.home is not None else context.indexed_at
        return self.up.get(pool_id) if pool_id is not None else None

    # ------------------------------------------------------------------ where something happened

    def touch(self, device: Device) -> None:
        """Something happened to the device, and the next plan should look at it."""
        self._touched[device] = None
        self._unfiled[device] = None

    def touch_all(self) -> None:
        for device in self.up.values():
            self.touch(device)

    def touched(self, besides: Sequence[Device] = ()) -> list[Device]:
        """Devices that are up and were touched since `take_touched`, and those `besides`, in order of their
        coming."""
        for pool_id in self._store.take_changed_pools():
            self.touch(self._by_pool[pool_id])
        touched = [device for device in {**dict.fromkeys(besides), **self._touched} if device.is_up]
        return sorted(touched, key=self._serials.__getitem__) if len(touched) > 1 else touched

    def changed(self) -> list[Device]:
        """Devices with pools of which pages have changed hands since the last plan."""
        return [self._by_pool[pool_id] for pool_id in self._store.changed_pools]

    def take_touched(self) -> list[Device]:
        """Devices that were touched since the last call."""
        touched = self.touched()
        self._touched.clear()
        return touched

    # ------------------------------------------------------------------ places

    def reserve_pages(self, device: Device) -> int:
        """Pages of the device's pool that are for those who run there."""
        if not self._reserve:
            return 0
        return round(self._reserve * self._pools[device.pool_id].num_usable)

    def least_busy(self) -> Device | None:
        """The device on which the fewest prompts run; None if none is up."""
        if len(self.up) == 1:
            return next(iter(self.up.values()))
        self._file()
        return self._by_load[0][2] if self._by_load else None

    def least_busy_for(self, prompt: Prompt) -> Device | None:
        """Of those that can hold the prompt."""
        self._file()
        return next((device for _, _, device in self._by_load if device.can_hold(prompt)), None)

    def are_all_busy(self) -> bool:
        """Whether something runs on each that is up."""
        device = self.least_busy()
        return device is None or bool(device.running)

    def with_room(self, num_pages: int) -> Iterator[Device]:
        """Devices with a place in the batch where so many pages are available beside what is reserved for
        those who run, most available first. As of now: not to be used on after anything was touched."""
        self._file()
        orders = [
            order.irange(maximum=(-num_pages - reserve + 1,), inclusive=(True, False))
            for reserve, order in self._by_room.items()
        ]
        return (device for _, _, device in merge(*orders))

    def _file(self) -> None:
        """Bring the orders up to date."""
        for pool_id in self._store.take_changed_pools():
            self.touch(self._by_pool[pool_id])
        for device in self._unfiled:
            old, new = self._entries.get(device), self._entry(device) if device.is_up else None
            if old != new:
                if old is not None:
                    self._take_out(device, old)
                if new is not None:
                    self._put_in(device, new)
        self._unfiled.clear()

    def _entry(self, device: Device) -> _Entry:
        num_running = len(device.running)
        is_full = device.num_slots_free <= 0
        reserve = self.reserve_pages(device) if num_running else 0
        return _Entry(num_running, reserve, None if is_full else self._store.num_available(device.pool_id))

    def _put_in(self, device: Device, entry: _Entry) -> None:
        self._entries[device] = entry
        self._by_load.add((entry.num_running, device.pool_id, device))
        if entry.num_available is not None:
            order = self._by_room.setdefault(entry.reserve, SortedList())
            order.add((-entry.num_available, device.pool_id, device))

    def _take_out(self, device: Device, entry: _Entry) -> None:
        del self._entries[device]
        self._by_load.remove((entry.num_running, device.pool_id, device))
        if entry.num_available is not None:
            order = self._by_room[entry.reserve]
            order.remove((-entry.num_available, device.pool_id, device))
            if not order:
                del self._by_room[entry.reserve]

    def check_integrity(self) -> None:
        """The orders agree with the devices. Raises AssertionError."""
        self._file()
        assert list(self.up.values()) == [device for device in self.up.values() if device.is_up]
        assert len(self.up) == sum(device.is_up for device in self)
        assert self.num_slots == sum(device.max_batch for device in self if device.is_up)
        assert self.num_running == sum(len(device.running) for device in self if device.is_up)
        assert self._entries == {device: self._entry(device) for device in self.up.values()}
        assert [device for _, _, device in self._by_load] == sorted(
            self._entries, key=lambda device: (len(device.running), device.pool_id)
        )
        filed = [device for order in self._by_room.values() for _, _, device in order]
        assert len(filed) == len(set(filed))
        assert set(filed) == {device for device in self._entries if device.num_slots_free > 0}
