"""Several models that lend each other memory, on fake runners: a tier is the very memory of its lender."""

import itertools
from collections.abc import Sequence

from engine.memory.lender import Owner
from engine.memory.lending import Lending
from engine.memory.page import PageLayout
from engine.memory.placement import Links, Placement
from engine.memory.pool import PagePool
from tests.engine.fake_runner import FULL
from tests.engine.rig import STEP_NS, Rig

SEGMENT_PAGES = 4


class LendingRig:
    """Models "m1", "m2", ..., each on a device with as many `local` pages, or on several, and lenders "l1",
    ... without a model, with `lenders` pages. Devices are "d1", "d2", ...; all pages have one size."""

    def __init__(
        self,
        *,
        local: Sequence[int | Sequence[int]],
        lenders: Sequence[int] = (),
        host: int = 400,
        seed: int = 0,
        term_ns: int = 10**12,
        links: Links | None = None,
        layout: PageLayout = FULL,
        shares_prefixes: bool = False,
        **changes,
    ) -> None:
        self.layout = layout
        self.lending = Lending(term_ns)
        self.now_ns = 1_000_000_000
        self.alive: set[str] | None = None
        self.rigs: dict[str, Rig] = {}
        self.model_of: dict[str, str] = {}  # by device
        for number, sizes in enumerate(local, start=1):
            rig = self.rigs[f"m{number}"] = Rig(
                layout,
                local=(sizes,) if isinstance(sizes, int) else sizes,
                host=host,
                seed=seed + number,
                first_pool=len(self.model_of) + 1,
                segment_pages=SEGMENT_PAGES,
                placement=Placement(links),
                shares_prefixes=shares_prefixes,
                **changes,
            )
            self.model_of |= dict.fromkeys(rig.ledgers, f"m{number}")
        self._tiers = itertools.count(200)
        self.lending.tick(self.now_ns)
        for name, rig in self.rigs.items():
            self.lending.add_borrower(name, rig.store)
        for number, size in enumerate(lenders, start=1):
            self._add(f"l{number}", size, [[-8] * layout.page_tokens for _ in range(size)], None)
        for device, model in self.model_of.items():
            rig = self.rigs[model]
            pool = rig.ledgers[device]
            owner = Owner(rig.store, pool, keep_pages=4, max_segments=1000)
            self._add(device, pool.num_pages, rig.pools[pool.pool_id], owner)

    def _add(self, name, num_pages, memory, owner) -> None:
        page_bytes = self.layout.page_bytes
        segment_bytes = SEGMENT_PAGES * page_bytes
        self.lending.add_lender(name, name, num_pages // SEGMENT_PAGES, segment_bytes, owner)
        for model, rig in self.rigs.items():
            if rig.ledgers.keys() == {name}:
                continue  # it has no other device that could borrow
            tier = next(self._tiers)
            rig.pools[tier] = memory
            pool = PagePool(tier, num_pages, page_bytes, segment_bytes=segment_bytes, is_leased=True)
            self.lending.connect(name, model, pool)

    def tick(self) -> None:
        changes = self.lending.num_changes
        self.now_ns += STEP_NS
        self.lending.tick(self.now_ns, self.alive)
        for rig in self.rigs.values():
            rig.scheduler.needs_plan |= rig.store.has_recalls or self.lending.num_changes != changes
            rig.tick()

    def run(self, max_ticks: int = 20_000, check_every: int = 50) -> None:
        """Until everything is finished and nothing touches a page any more."""
        for number in range(max_ticks):
            if not any(rig.scheduler.prompts or rig.store.contexts for rig in self.rigs.values()):
                return
            self.tick()
            if number % check_every == 0:
                self.check_integrity()
        raise AssertionError("not finished")

    def calm(self) -> None:
        """Long enough for what is free to be on offer."""
        for _ in range(450):
            self.tick()

    def check_integrity(self) -> None:
        self.lending.check_integrity()
        for rig in self.rigs.values():
            rig.scheduler.check_integrity()

    def paths(self, model: str) -> set[tuple[str, str]]:
        """(from, to) of all moves that the model's pages have made."""
        scheduler = self.rigs[model].scheduler
        pairs = self.rigs[model].store.counters.moved_pages
        return {(scheduler.pool_name(src), scheduler.pool_name(dst)) for src, dst in pairs}
