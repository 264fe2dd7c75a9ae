"""A snapshot of the engine for the live page: devices, memory, links, tenants and the latest slices.

Made when an api asks, which it does only while somebody looks.
"""

from collections.abc import Iterable
from heapq import nlargest

from engine.device import Device
from engine.memory.lender import Lender
from engine.memory.lending import Lending
from engine.memory_stats import bytes_by_path, pages_by_tier
from engine.messages import Live, LiveDevice, LiveLender, LiveModel, LivePath, LiveTenant, LiveTier
from engine.model_host import ModelHost
from engine.scheduler import Scheduler

MAX_TENANTS = 64  # those with the most prompts, then those with the most service


def collect_live(
    engine_id: str, serial: int, hosts: Iterable[ModelHost], lending: Lending, since_ns: int, now_ns: int
) -> Live:
    """Everything now, and the slices that ended after `since_ns`."""
    return Live(
        serial=serial,
        engine_id=engine_id,
        now_ns=now_ns,
        models=[
            _loading(host.name, host.progress)
            if host.scheduler is None
            else live_model(host.name, host.scheduler, since_ns)
            for host in hosts
        ],
        lenders=[_lender(lending, lender) for lender in lending.lenders.values()],
    )


def live_model(name: str, scheduler: Scheduler, since_ns: int) -> LiveModel:
    """One model that has been ready."""
    counters = scheduler.counters
    return LiveModel(
        name=name,
        stage=None,
        page_bytes=scheduler.store.layout.page_bytes,
        devices=[_device(scheduler, device) for device in scheduler.devices.values()],
        tiers=[
            LiveTier(place=place, pages_used=used, pages=pages)
            for place, (used, pages) in pages_by_tier(scheduler).items()
        ],
        paths=[
            LivePath(src=src, dst=dst, num_bytes=num_bytes, move_ns=round(seconds * 1e9))
            for (src, dst), (num_bytes, seconds) in bytes_by_path(scheduler).items()
        ],
        tenants=_tenants(scheduler),
        output_tokens=counters.output_tokens,
        computed_tokens=counters.computed_tokens,
        recomputed_tokens=counters.recomputed_tokens,
        num_slices=counters.slices,
        num_preemptions=scheduler.planner.num_preemptions,
        move_wait_ns=counters.wait_ns,
        ended=scheduler.slice_log.ended_since(since_ns),
        in_force=scheduler.slice_log.in_force(),
    )


def _loading(name: str, stage: str) -> LiveModel:
    return LiveModel(
        name=name,
        stage=stage,
        page_bytes=0,
        devices=[],
        tiers=[],
        paths=[],
        tenants=[],
        output_tokens=0,
        computed_tokens=0,
        recomputed_tokens=0,
        num_slices=0,
        num_preemptions=0,
        move_wait_ns=0,
        ended=[],
        in_force=[],
    )


def _device(scheduler: Scheduler, device: Device) -> LiveDevice:
    store = scheduler.store
    pool = store.local_pools[device.pool_id]
    running = sum(prompt.context.num_local for prompt in device.running)
    return LiveDevice(
        name=device.name,
        is_up=device.is_up,
        num_running=len(device.running),
        max_batch=device.max_batch,
        step_ns=round(device.step_ns),
        busy_ns=device.busy_ns,
        idle_ns=device.idle_ns,
        num_steps=device.num_steps,
        pages_running=running,
        pages_idle=pool.num_used - running,
        pages_clean=sum(each.evictable for each in store.contexts if each.home == device.pool_id),
        pages_free=pool.num_free,
    )


def _tenants(scheduler: Scheduler) -> list[LiveTenant]:
    weights: dict[str, float] = {}
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for prompt in scheduler.prompts.values():
        if prompt.finish is None:
            tenant = prompt.task.tenant
            weights[tenant] = prompt.task.weight
            counts = waiting if prompt.turn is None else running
            counts[tenant] = counts.get(tenant, 0) + 1
    service_ns = scheduler.service_by_tenant()
    names = nlargest(
        MAX_TENANTS,
        weights.keys() | service_ns.keys(),
        key=lambda name: (running.get(name, 0) + waiting.get(name, 0), service_ns.get(name, 0), name),
    )
    return [
        LiveTenant(
            name=name,
            weight=weights.get(name),
            service_ns=service_ns.get(name, 0),
            num_running=running.get(name, 0),
            num_waiting=waiting.get(name, 0),
        )
        for name in names
    ]


def _lender(lending: Lending, lender: Lender) -> LiveLender:
    return LiveLender(
        name=lender.name,
        device=lender.device,
        segment_bytes=lender.segment_bytes,
        num_segments=lender.num_segments,
        own_segments=None if lender.owner is None else len(lender.owner.pool.segments),
        on_offer=lending.book.num_on_offer(lender.name),
        recalled=len(lender.recalls),
        leased={borrower: len(pool.segments) for borrower, pool in lender.pools.items() if pool.segments},
    )
