"""Weights: how many shares of the GPU a nice level or a tenant's weight stands for."""

NICE_MIN = -20
NICE_MAX = 19

NICE_0_LOAD = 1024
"""The load of nice level 0 and of a tenant of weight 1.0."""

_NICE_LOADS = (
    *(88761, 71755, 56483, 46273, 36291),  # -20
    *(29154, 23254, 18705, 14949, 11916),  # -15
    *(9548, 7620, 6100, 4904, 3906),  # -10
    *(3121, 2501, 1991, 1586, 1277),  # -5
    *(1024, 820, 655, 526, 423),  # 0
    *(335, 272, 215, 172, 137),  # 5
    *(110, 87, 70, 56, 45),  # 10
    *(36, 29, 23, 18, 15),  # 15
)
"""Linux's `sched_prio_to_weight` (kernel/sched/core.c): a step of 1 changes the load by about 1.25."""


def nice_load(nice: int) -> int:
    """The load of a nice level. Raises ValueError outside -20..19."""
    if not NICE_MIN <= nice <= NICE_MAX:
        raise ValueError(f"nice is {nice}; allowed: {NICE_MIN}..{NICE_MAX}")
    return _NICE_LOADS[nice - NICE_MIN]


def weight_load(weight: float) -> int:
    """The load of a tenant's weight, at least 1. Raises ValueError unless `weight` is positive and finite."""
    if not 0.0 < weight < float("inf"):
        raise ValueError(f"weight is {weight}; allowed: a finite number above 0")
    return max(1, round(weight * NICE_0_LOAD))


def virtual(service_ns: int, load: int) -> int:
    """`calc_delta_fair` of kernel/sched/fair.c: service as time on a clock that runs slower for a larger
    load. Rounded up, so that no service is free."""
    return -(-service_ns * NICE_0_LOAD // load)
