"""What the engine tells of its memory: pages per tier and lender, bytes per path, leases and reclaims."""

from collections.abc import Iterator

from engine.memory.lender import Lender
from engine.memory.lending import Lending
from engine.messages import Sample
from engine.scheduler import Scheduler

Path = tuple[str, str]


def memory_samples(scheduler: Scheduler, model: str) -> Iterator[Sample]:
    """Metrics of one model's tiers and moves."""
    for tier, (used, pages) in pages_by_tier(scheduler).items():
        text = "Pages of a tier that are in use."
        yield _sample("tier_pages_used", text, used, "gauge", model_name=model, tier=tier)
        text = "Pages of a tier that the model may use, leased ones of a lender."
        yield _sample("tier_pages", text, pages, "gauge", model_name=model, tier=tier)
    for (src, dst), (num_bytes, seconds) in bytes_by_path(scheduler).items():
        labels = {"model_name": model, "src": src, "dst": dst}
        yield _sample("moved_bytes", "Bytes of pages moved.", num_bytes, **labels)
        yield _sample("move_seconds", "Time that moves took.", seconds, **labels)
    counters = scheduler.store.counters
    for name, text, value in (
        (
            "relocated_pages",
            "Pages moved out of memory that its lender wanted back.",
            counters.relocated_pages,
        ),
        ("redundant_pages", "Mirrored pages given up while local.", counters.redundant_pages),
        ("lost_pages", "Mirrored pages that went with their lender.", counters.lost_pages),
    ):
        yield _sample(name, text, value, model_name=model)


def lending_samples(lending: Lending) -> Iterator[Sample]:
    """Metrics of leases."""
    for lender in lending.lenders.values():
        text = "Segments of a lender that a model has leased."
        for borrower, pool in lender.pools.items():
            labels = {"lender": lender.name, "model_name": borrower}
            yield _sample("leased_segments", text, len(pool.segments), "gauge", **labels)
        on_offer = lending.book.num_on_offer(lender.name)
        yield _sample("offered_segments", "Segments on offer.", on_offer, "gauge", lender=lender.name)
        text = "Segments out of use, so that their memory can be given back."
        yield _sample("withdrawn_segments", text, len(lender.withdrawn), "gauge", lender=lender.name)
    counters = lending.counters
    for name, text, value in (
        ("segments_granted", "Segments leased.", counters.granted),
        ("segments_recalled", "Leased segments that were wanted back.", counters.recalled),
        ("segments_returned", "Of those, the ones that came back.", counters.returned),
        ("leases_expired", "Leases that ended with their borrower.", counters.expired),
        ("reclaim_seconds", "From recall to return, summed over segments.", counters.reclaim_ns / 1e9),
    ):
        yield _sample(name, text, value)
    longest_s = counters.longest_reclaim_ns / 1e9
    yield _sample("longest_reclaim_seconds", "Longest wait for a recalled segment.", longest_s, "gauge")


def memory_status(scheduler: Scheduler) -> dict[str, object]:
    """A snapshot of one model's tiers and paths for people."""
    tiers = {
        name: {"pages_used": used, "pages": pages} for name, (used, pages) in pages_by_tier(scheduler).items()
    }
    paths = [
        {
            "src": src,
            "dst": dst,
            "bytes": num_bytes,
            "gb_per_s": num_bytes / seconds / 1e9 if seconds else None,
        }
        for (src, dst), (num_bytes, seconds) in bytes_by_path(scheduler).items()
    ]
    return {"tiers": tiers, "paths": paths, "wait_s": scheduler.counters.wait_ns / 1e9}


def lending_status(lending: Lending) -> dict[str, object]:
    """A snapshot of lenders and leases for people."""
    return {name: _lender_status(lending, lender) for name, lender in lending.lenders.items()}


def _lender_status(lending: Lending, lender: Lender) -> dict[str, object]:
    return {
        "device": lender.device,
        "segment_bytes": lender.segment_bytes,
        "segments": lender.num_segments,
        "on_offer": lending.book.num_on_offer(lender.name),
        "recalled": len(lender.recalls),
        "withdrawn": len(lender.withdrawn),
        "leased": {borrower: len(pool.segments) for borrower, pool in lender.pools.items() if pool.segments},
    }


def pages_by_tier(scheduler: Scheduler) -> dict[str, tuple[int, int]]:
    """By device or "host": pages used, and pages."""
    tiers: dict[str, tuple[int, int]] = {}
    for pool in scheduler.store.tiers.values():
        name = scheduler.pool_name(pool.pool_id)
        used, pages = tiers.get(name, (0, 0))
        tiers[name] = (used + pool.num_used, pages + pool.num_usable)
    return tiers


def bytes_by_path(scheduler: Scheduler) -> dict[Path, tuple[int, float]]:
    """By (from, to): bytes moved, and seconds that it took."""
    counters, page_bytes = scheduler.store.counters, scheduler.store.layout.page_bytes
    paths: dict[Path, tuple[int, float]] = {}
    for (src, dst), num_pages in counters.moved_pages.items():
        path = (scheduler.pool_name(src), scheduler.pool_name(dst))
        num_bytes, seconds = paths.get(path, (0, 0.0))
        seconds += counters.moved_ns[src, dst] / 1e9
        paths[path] = (num_bytes + num_pages * page_bytes, seconds)
    return paths


def _sample(name: str, text: str, value: float, kind: str = "counter", **labels: str) -> Sample:
    return Sample(name=f"fairslice:{name}", help=text, kind=kind, value=value, labels=labels)
