"""The scheduler of a model, as the configuration wishes it."""

from engine.config import Config
from engine.fairness import make_policy
from engine.memory.page import PageLayout
from engine.memory.placement import Links, Placement
from engine.memory.pool import PagePool
from engine.memory.store import ContextStore
from engine.planner import PlannerSettings
from engine.scheduler import Scheduler


def make_scheduler(
    config: Config, layout: PageLayout, host_pool: PagePool, links: Links, max_model_len: int
) -> Scheduler:
    """Without devices; its only tier is the host's memory."""
    store = ContextStore(layout, Placement(links), shares_prefixes=config.prefix_cache.enabled)
    store.add_tier(host_pool)
    scheduler = config.scheduler
    settings = PlannerSettings(
        target_ns=_ns(scheduler.target_ms),
        slice_ns=_ns(scheduler.slice_ms),
        request_ns=_ns(scheduler.request_ms),
        min_slice_ns=_ns(scheduler.min_slice_ms),
        gap_ns=_ns(scheduler.gap_ms),
        patience_ns=_ns(scheduler.patience_ms),
        floor_tokens_per_s=scheduler.floor_tokens_per_s,
        first_slices=scheduler.first_slices,
        max_model_len=max_model_len,
        reserve=config.memory.reserve,
    )
    policy = make_policy(
        scheduler.policy,
        slice_ns=settings.slice_ns,
        request_ns=settings.request_ns,
        granularity_ns=settings.min_slice_ns,
    )
    return Scheduler(policy, store, settings)


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)
