"""Who runs next, and for how long. Pure: no torch, no asyncio, no wall clock."""

from engine.fairness.cfs import CfsPolicy
from engine.fairness.fcfs import FcfsPolicy
from engine.fairness.policy import Policy, Task

__all__ = ["POLICIES", "Policy", "Task", "make_policy"]

POLICIES = ("cfs", "fcfs")

DEBT_MEMORY_NS = 600 * 10**9
"""How long a tenant's debt outlives its last prompt."""


def make_policy(name: str, *, slice_ns: int, granularity_ns: int, memory_ns: int = DEBT_MEMORY_NS) -> Policy:
    """The policy called `name`, with the longest slice and the minimum granularity of the configuration.
    Raises ValueError for a name that is not in `POLICIES`."""
    match name:
        case "cfs":
            return CfsPolicy(slice_ns=slice_ns, granularity_ns=granularity_ns, memory_ns=memory_ns)
        case "fcfs":
            return FcfsPolicy()
    raise ValueError(f"unknown policy {name!r}; allowed: {', '.join(POLICIES)}")
