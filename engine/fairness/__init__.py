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
    request_ns: int | None = None,
    granularity_ns: int = 25_000_000,
    memory_ns: int = 600_000_000_000,
) -> Policy:
    """The policy called `name`. `slice_ns` is the longest slice under contention, `request_ns` the GPU time
    after which a prompt goes behind others of its tenant (None: a slice), `granularity_ns` the lead for which
    a running prompt is preempted; a tenant's debt outlives its last prompt by `memory_ns`. Raises
    ValueError for a name that is not in `POLICIES`."""
    times = {
        "slice_ns": slice_ns,
        "request_ns": slice_ns if request_ns is None else request_ns,
        "granularity_ns": granularity_ns,
        "memory_ns": memory_ns,
    }
    match name:
        case "cfs":
            return CfsPolicy(**times)
        case "eevdf":
            return EevdfPolicy(**times)
        case "fcfs":
            return FcfsPolicy()
        case "vtc":
            return VtcPolicy(memory_ns=memory_ns)
    raise ValueError(f"unknown policy {name!r}; allowed: {', '.join(POLICIES)}")
