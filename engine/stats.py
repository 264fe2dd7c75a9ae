"""What the engine tells of itself: samples for Prometheus and a snapshot for people.

Names follow vLLM where the meaning is the same, so that its dashboards work; `fairslice:` is ours.
"""

from collections.abc import Iterator

from engine.admission import Admission
from engine.memory.lending import Lending
from engine.memory_stats import lending_samples, lending_status, memory_samples, memory_status
from engine.messages import Sample
from engine.model_host import ModelHost
from engine.scheduler import Scheduler


def collect_samples(hosts: list[ModelHost], admission: Admission, lending: Lending) -> list[Sample]:
    """All metrics of the engine."""
    samples = [
        Sample(
            name="fairslice:open_prompts",
            help="Prompts that were accepted and have not ended.",
            kind="gauge",
            value=float(admission.num_prompts),
        )
    ]
    for host in hosts:
        if host.scheduler is not None:
            samples += _of_scheduler(host.scheduler, host.name)
            samples.append(_counter("plans_sent", "Messages to runners.", host.messages_sent, host.name))
    samples += lending_samples(lending)
    return samples


def collect_status(hosts: list[ModelHost], lending: Lending) -> dict[str, object]:
    """A snapshot of models, devices, tiers and tenants, as plain values."""
    return {"models": {host.name: _status(host) for host in hosts}, "lenders": lending_status(lending)}


def _counter(name: str, text: str, value: float, model: str, **labels: str) -> Sample:
    return Sample(
        name=f"fairslice:{name}",
        help=text,
        kind="counter",
        value=float(value),
        labels={"model_name": model, **labels},
    )


def _gauge(name: str, text: str, value: float, model: str, **labels: str) -> Sample:
    labels = {"model_name": model, **labels}
    return Sample(name=name, help=text, kind="gauge", value=float(value), labels=labels)


def _of_scheduler(scheduler: Scheduler, model: str) -> Iterator[Sample]:
    counters, store = scheduler.counters, scheduler.store.counters
    running, waiting = scheduler.num_running(), scheduler.num_waiting()
    yield _gauge("vllm:num_requests_running", "Prompts that have a slice now.", running, model)
    yield _gauge("vllm:num_requests_waiting", "Prompts that wait for a slice.", waiting, model)
    yield _counter(
        "preemptions", "Turns that ended before their prompt.", scheduler.planner.num_preemptions, model
    )
    yield _counter("slices", "Slices given.", counters.slices, model)
    yield _counter("plans", "Plans sent to runners.", counters.plans, model)
    yield _counter("computed_tokens", "Positions computed.", counters.computed_tokens, model)
    yield _counter("recomputed_tokens", "Of those, computed again.", counters.recomputed_tokens, model)
    yield _counter("output_tokens", "Tokens sampled.", counters.output_tokens, model)
    yield _counter("evicted_pages", "Local pages dropped that had a mirror.", store.evicted_pages, model)
    yield _counter("dropped_contexts", "Contexts that found no place.", store.dropped_contexts, model)
    yield _counter("move_wait_seconds", "Compute waited for moves.", counters.wait_ns / 1e9, model)
    yield _gauge(
        "fairslice:vruntime_spread_seconds",
        "How far apart the GPU time per weight of the tenants that wait is.",
        scheduler.planner.policy.vruntime_spread_ns() / 1e9,
        model,
    )
    yield _counter("runners_lost", "Runners that died.", counters.runners_lost, model)
    yield _gauge(
        "fairslice:longest_gap_seconds",
        "Longest time between two tokens of a prompt so far.",
        counters.longest_gap_ns / 1e9,
        model,
    )
    yield from _of_prefixes(scheduler, model)
    yield from memory_samples(scheduler, model)
    for tenant, service_ns in scheduler.service_by_tenant().items():
        text = "GPU time charged."
        yield _counter("tenant_service_seconds", text, service_ns / 1e9, model, tenant=tenant)


def _of_prefixes(scheduler: Scheduler, model: str) -> Iterator[Sample]:
    prefixes = scheduler.planner.prefixes.counters
    for name, text, value in (
        ("queries", "Tokens of prompts that began.", prefixes.queried),
        ("hits", "Of those, the ones that the prefix cache had.", prefixes.hit),
    ):
        labels = {"model_name": model}
        kind, name = "counter", f"vllm:prefix_cache_{name}"
        yield Sample(name=name, help=text, kind=kind, value=float(value), labels=labels)
    cached = scheduler.store.num_cached_pages()
    text = "Pages, in all tiers, of contexts that no prompt needs."
    yield _gauge("fairslice:cached_pages", text, sum(cached.values()), model)
    yield from _of_devices(scheduler, model, cached)


def _of_devices(scheduler: Scheduler, model: str, cached: dict[int, int]) -> Iterator[Sample]:
    for device in scheduler.devices.values():
        pool = scheduler.store.local_pools[device.pool_id]
        name = device.name
        yield _gauge(
            "vllm:kv_cache_usage_perc",
            "Part of the page pool that prompts use, 0 to 1.",
            (pool.num_used - cached.get(pool.pool_id, 0)) / max(1, pool.num_usable),
            model,
            device=name,
        )
        yield _counter("busy_seconds", "Time in steps.", device.busy_ns / 1e9, model, device=name)
        yield _counter("idle_seconds", "Idle with work queued.", device.idle_ns / 1e9, model, device=name)
        yield _counter("steps", "Steps made.", device.num_steps, model, device=name)
        yield _gauge("fairslice:device_up", "Whether its runner works.", device.is_up, model, device=name)


def _status(host: ModelHost) -> dict[str, object]:
    scheduler = host.scheduler
    if scheduler is None:
        return {"ready": False, "progress": host.progress}
    devices = {
        device.name: {
            "up": device.is_up,
            "running": len(device.running),
            "step_ms": device.step_ns / 1e6,
            "pages_used": scheduler.store.local_pools[device.pool_id].num_used,
            "pages": scheduler.store.local_pools[device.pool_id].num_usable,
            "pid": host.runners[device.name].pid,
        }
        for device in scheduler.devices.values()
    }
    return {
        "ready": host.is_ready,
        "running": scheduler.num_running(),
        "waiting": scheduler.num_waiting(),
        "page_bytes": scheduler.store.layout.page_bytes,
        "devices": devices,
        **memory_status(scheduler),
    }
