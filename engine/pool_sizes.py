"""How large the pools of each device are, now and by wish: gives memory back to other programs and takes it
again, in place.

The ledger empties segments and withdraws them (`engine.memory.withdrawals`); here their memory follows. To
shrink: runners let go of it, then the engine does. To grow: it is made, runners map it, and then the ledger
may use it. Contexts stay where they are or are moved aside, and stay good.
"""

import asyncio
import logging
import os
from dataclasses import dataclass, field
from enum import Enum

from engine.lenders import Lenders, Mapper, Region, make_gpu_memory
from engine.memory.lender import Lender
from engine.memory.regions import RegionError, punch_hole, require_available

log = logging.getLogger("fairslice.engine")


class ResizeError(Exception):
    """A device's pools cannot have the size that is wished. One line for the operator."""


class Stage(Enum):
    """Where a change of a region stands."""

    UNMAPPING = "unmapping"  # runners let go of memory
    MAKING = "making"  # the owner's runner, or a process of its own, allocates it
    MAPPING = "mapping"  # runners map it


@dataclass(slots=True)
class Change:
    """Memory of a region on its way out or in: whole `units` of it. What grows is for `segments`."""

    stage: Stage
    units: list[int]
    segments: set[int] = field(default_factory=set)
    descriptors: list[int] = field(default_factory=list)


class PoolSizes:
    """All regions of an engine. `tick` is called in every turn, `run` makes memory where no runner can."""

    def __init__(self, lenders: Lenders) -> None:
        self._lenders = lenders
        self._changes: dict[str, Change] = {}  # by region, one at a time
        self._orders: asyncio.Queue[tuple[Region, Change]] = asyncio.Queue()

    # ------------------------------------------------------------------ wishes

    def resize(self, device: str, num_bytes: int) -> int:
        """Have the device's pools take `num_bytes` in all, by and by; what that is in whole segments.

        Raises ResizeError.
        """
        regions = self._regions_of(device)
        if not regions:
            raise ResizeError(f"{device} has no pool whose size could be changed")
        most, least = self.capacity(device), self.least(device)
        if not least <= num_bytes <= most:
            raise ResizeError(
                f"the pools of {device} can have {_mib(least)} to {_mib(most)}, not {_mib(num_bytes)}"
            )
        for region in regions:
            least_here = self._least_segments(region)
            share = num_bytes * region.num_bytes // most // region.segment_bytes
            self._lenders.lending.resize(region.name, max(least_here, share))
        return self.wanted(device)

    def capacity(self, device: str) -> int:
        """What the device's pools had when they were made: they grow no further."""
        return sum(region.num_bytes for region in self._regions_of(device))

    def least(self, device: str) -> int:
        """What they cannot do without: models have to hold the longest context that they accept."""
        return sum(self._least_segments(r) * r.segment_bytes for r in self._regions_of(device))

    def segment_bytes(self, device: str) -> int:
        """In what portions they grow."""
        return max(region.segment_bytes for region in self._regions_of(device))

    def wanted(self, device: str) -> int:
        """What they will have."""
        found = [(region, self._lender(region)) for region in self._regions_of(device)]
        return sum(_bytes_with(region, lender.wanted_segments, lender) for region, lender in found)

    def held(self, device: str) -> int:
        """What they take of its memory now."""
        return sum(r.num_bytes - len(r.holes) * r.unit_bytes for r in self._regions_of(device))

    def status(self) -> dict[str, object]:
        """By device, what its pools have, what they are to have, and whether that is all there is to do."""
        devices = dict.fromkeys(region.device for region in self._lenders.regions.values())
        return {
            device: {
                "bytes": self.held(device),
                "wanted": self.wanted(device),
                "settled": all(self._is_as_wanted(region) for region in self._regions_of(device)),
            }
            for device in devices
        }

    def _is_as_wanted(self, region: Region) -> bool:
        lender = self._lender(region)
        has_begun = region.name in self._changes
        is_due = bool(_units_within(region, lender.withdrawn) - region.holes)  # at the next tick
        return lender.num_present == lender.wanted_segments and not has_begun and not is_due

    def _regions_of(self, device: str) -> list[Region]:
        return [region for region in self._lenders.regions.values() if region.device == device]

    def _least_segments(self, region: Region) -> int:
        return max(1, -(-region.least_bytes // region.segment_bytes))

    def _lender(self, region: Region) -> Lender:
        return self._lenders.lending.lenders[region.name]

    # ------------------------------------------------------------------ the turn

    def tick(self) -> None:
        """Go on with what is under way, and begin what is wished."""
        for region in self._lenders.regions.values():
            change = self._changes.get(region.name)
            if change is None:
                self._begin(region)
            elif change.stage is Stage.MAKING:
                self._take_made(region, change)
            elif self._is_settled(region):
                self._finish(region, change)

    @property
    def _mappers(self) -> list[Mapper]:
        return list(self._lenders.mappings.values())

    def _begin(self, region: Region) -> None:
        lender = self._lender(region)
        missing = lender.wanted_segments - lender.num_present
        free = _units_within(region, lender.withdrawn) - region.holes
        if missing > 0:
            self._begin_to_grow(region, set(sorted(lender.withdrawn)[:missing]))
        elif free:
            self._begin_to_shrink(region, sorted(free))

    def _begin_to_shrink(self, region: Region, units: list[int]) -> None:
        change = self._changes[region.name] = Change(Stage.UNMAPPING, units)
        region.holes.update(units)
        if region.kind == "cuda":
            for unit in units:
                descriptor, region.descriptors[unit] = region.descriptors[unit], None
                assert descriptor is not None
                change.descriptors.append(descriptor)
        for mapper in self._mappers:
            mapper.unmap(region.name, units)

    def _begin_to_grow(self, region: Region, segments: set[int]) -> None:
        units = sorted(_units_touching(region, segments) & region.holes)
        if not units:
            self._lenders.lending.restore(region.name, segments)
            return
        change = Change(Stage.MAKING, units, segments)
        if self._lender(region).owner is not None:
            if not any(mapper.make(region.name, units) for mapper in self._mappers):
                return  # its runner is not there: later
            self._changes[region.name] = change
            return
        self._changes[region.name] = change
        if region.kind == "cuda":
            self._orders.put_nowait((region, change))
            return
        try:
            require_available(len(units) * region.unit_bytes, region.name)
        except RegionError as error:
            self._give_up(region, str(error))
        else:
            self._map(region, change, [])

    def _take_made(self, region: Region, change: Change) -> None:
        """The memory is there, or its maker is gone, or there is none."""
        if self._lender(region).owner is None or not self._is_settled(region):
            return
        made = next(filter(None, (mapper.take_made(region.name) for mapper in self._mappers)), None)
        if made is None:
            del self._changes[region.name]  # its runner died
        elif made.error is not None:
            self._give_up(region, made.error)
        else:
            self._map(region, change, made.descriptors)

    def _is_settled(self, region: Region) -> bool:
        return all(mapper.is_settled(region.name) for mapper in self._mappers)

    def _map(self, region: Region, change: Change, descriptors: list[int]) -> None:
        change.stage = Stage.MAPPING
        region.holes.difference_update(change.units)
        for unit, descriptor in zip(
            change.units, descriptors, strict=False
        ):  # a cpu region needs no new ones
            region.descriptors[unit] = descriptor
        for mapper in self._mappers:
            mapper.remap(region.name, change.units, descriptors)

    def _give_up(self, region: Region, reason: str) -> None:
        log.warning("%s cannot grow: %s", region.name, reason)
        del self._changes[region.name]
        self._lenders.lending.resize(region.name, self._lender(region).num_present)

    def _finish(self, region: Region, change: Change) -> None:
        del self._changes[region.name]
        if change.stage is Stage.MAPPING:
            self._lenders.lending.restore(region.name, change.segments)
            log.info("%s has %s again", region.name, _mib(len(change.units) * region.unit_bytes))
            return
        for descriptor in change.descriptors:
            os.close(descriptor)
        if region.kind == "cpu":
            memory = region.descriptors[0]
            assert memory is not None
            for unit in change.units:
                punch_hole(memory, unit * region.unit_bytes, region.unit_bytes)
        log.info("%s gave %s back", region.name, _mib(len(change.units) * region.unit_bytes))

    # ------------------------------------------------------------------ memory that no runner makes

    async def run(self) -> None:
        """Make memory on GPUs on which no model runs, until cancelled."""
        while True:
            region, change = await self._orders.get()
            try:
                num_bytes = len(change.units) * region.unit_bytes
                _, descriptors = await make_gpu_memory(region.device, num_bytes, 1.0)
            except RegionError as error:
                self._give_up(region, str(error))
            else:
                self._map(region, change, descriptors)


def _units_within(region: Region, segments: set[int]) -> set[int]:
    """Units of which nothing lies outside these segments."""
    units: set[int] = set()
    for start, end in _byte_runs(region, segments):
        units.update(range(-(-start // region.unit_bytes), end // region.unit_bytes))
    return units


def _units_touching(region: Region, segments: set[int]) -> set[int]:
    """Units of which something lies in these segments."""
    units: set[int] = set()
    for start, end in _byte_runs(region, segments):
        units.update(range(start // region.unit_bytes, -(-end // region.unit_bytes)))
    return units


def _byte_runs(region: Region, segments: set[int]) -> list[tuple[int, int]]:
    """First byte and end of neighbouring segments, joined."""
    runs: list[tuple[int, int]] = []
    for number in sorted(segments):
        start = number * region.segment_bytes
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + region.segment_bytes)
        else:
            runs.append((start, start + region.segment_bytes))
    return runs


def _bytes_with(region: Region, num_segments: int, lender: Lender) -> int:
    """What the region takes with so many segments; what is less than a segment at its end always stays."""
    return region.num_bytes - (lender.num_segments - num_segments) * region.segment_bytes


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.4g} MiB"
