"""Which tier takes a mirror: the better link first, equally good lenders in turn. The host comes last, but
for lenders whose link is known to be slower than that to the host.

Pure: links are what NVML or the configuration says of them, reach is what runners reported.
"""

from collections.abc import Mapping

DEFAULT_PEER_BYTES_PER_S = 1e11  # of a link that nobody described: any peer is better than the host

HOST = "host"

Links = Mapping[tuple[str, str], float]
"""(device, device or HOST) -> bytes per second, one entry for both directions or one for each."""


class Placement:
    """Knows which device each pool is on, and which pools each device can reach.

    A pool that a device cannot map is no tier for it: its mirrors fall back to the next best by themselves.
    """

    def __init__(self, links: Links | None = None) -> None:
        self._links = links or {}
        self._homes: dict[int, str] = {}
        self._tiers: dict[int, str | None] = {}  # None: the host
        self._owners: dict[int, int] = {}  # tier -> local pool in whose memory it lies
        self._unreachable: dict[int, frozenset[int]] = {}  # by local pool
        self._order: dict[int, list[list[int]]] = {}  # answers of `classes`, until something changes

    def add_home(self, pool_id: int, device: str) -> None:
        """The local pool of a device."""
        self._homes[pool_id] = device
        self._order.clear()

    def set_unreachable(self, pool_id: int, pools: frozenset[int]) -> None:
        """The pools that the device of this local pool has not mapped."""
        self._unreachable[pool_id] = pools
        self._order.clear()

    def add_tier(self, pool_id: int, device: str | None, owner: int | None = None) -> None:
        """A pool for mirrors, in the memory of `device` (None: of the host), lent by local pool `owner`."""
        self._tiers[pool_id] = device
        if owner is not None:
            self._owners[pool_id] = owner
        self._order.clear()

    def device_of(self, pool_id: int) -> str | None:
        """In whose memory a pool lies; None: the host's."""
        return self._homes.get(pool_id) or self._tiers.get(pool_id)

    def reaches(self, home: int, pool_id: int) -> bool:
        """Whether the runner of local pool `home` can move pages from and to this pool."""
        return pool_id not in self._unreachable.get(home, ())

    def reaches_all(self, home: int) -> bool:
        """Whether there is no pool out of reach."""
        return not self._unreachable.get(home)

    def classes(self, home: int) -> list[list[int]]:
        """Tiers for mirrors of contexts at `home`, best first; those in one list are equally good."""
        known = self._order.get(home)
        if known is None:
            known = self._order[home] = self._sort(home)
        return known

    def _sort(self, home: int) -> list[list[int]]:
        by_speed: dict[float, list[int]] = {}
        hosts: list[list[int]] = []
        for pool_id, device in self._tiers.items():
            if not self.reaches(home, pool_id) or self._owners.get(pool_id) == home:
                continue
            if device is None:
                hosts.append([pool_id])
            else:
                speed = self._bytes_per_s(home, device) or DEFAULT_PEER_BYTES_PER_S
                by_speed.setdefault(speed, []).append(pool_id)
        host_speed = self._bytes_per_s(home, HOST) or 0.0
        speeds = sorted(by_speed, reverse=True)
        better = [by_speed[speed] for speed in speeds if speed >= host_speed]
        return better + hosts + [by_speed[speed] for speed in speeds if speed < host_speed]

    def _bytes_per_s(self, home: int, device: str) -> float | None:
        """None if nobody described the link."""
        here = self._homes.get(home, "")
        return self._links.get((here, device), self._links.get((device, here)))
