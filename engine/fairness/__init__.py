"""Who runs next, and for how long. Pure: no torch, no asyncio, no wall clock."""

from engine.fairness.cfs import CfsPolicy
from engine.fairness.eevdf import EevdfPolicy
from engine.fairness.fcfs import FcfsPolicy
from engine.fairness.policy import Policy, Task
from engine.fairness.vtc import VtcPolicy

__all__ = ["POLICIES", "Policy", "Task", "make_policy"]

POLICIES = ("cfs", "eevdf", "fcfs", "vtc")


def make_policy(
    name: str,
    *,
    slice_ns: int = 200_000_000,
    granularity_ns: int = 25_000_000,
    memory_ns: int = 600_000_000_000,
) -> Policy:
    """The policy called `name`. `slice_ns` is the longest slice under contention, `granularity_ns` the lead
    for which a running prompt is preempted; a tenant's debt outlives its last prompt by `memory_ns`. Raises
    ValueError for a name that is not in `POLICIES`."""
    match name:
        case "cfs":
            return CfsPolicy(slice_ns=slice_ns, granularity_ns=granularity_ns, memory_ns=memory_ns)
        case "eevdf":
            return EevdfPolicy(slice_ns=slice_ns, granularity_ns=granularity_ns, memory_ns=memory_ns)
        case "fcfs":
            return FcfsPolicy()
        case "vtc":
            return VtcPolicy(memory_ns=memory_ns)
    raise ValueError(f"unknown policy {name!r}; allowed: {', '.join(POLICIES)}")
