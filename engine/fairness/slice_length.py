"""How long a slice lasts: as long as contention allows."""


def slice_length_ns(
    *, num_running: int, num_waiting: int, target_ns: int, floor_ns: int, cap_ns: int, alone_ns: int
) -> int:
    """GPU time until a running prompt should make way, on the device's clock.

    Everybody should have had a slice within `target_ns`, and `num_running` have theirs at once, so the target
    is shared over (running + waiting) / running rotations; `sched_slice` of kernel/sched/fair.c shares its
    latency over the tasks of one CPU likewise. Never under `floor_ns` (a switch must be worth its cost: then
    the rotation takes longer than the target) nor over `cap_ns`. If nobody waits nothing rotates, and slices
    of `alone_ns` only renew a grant of pages.
    """
    if not num_waiting:
        return alone_ns
    at_once = max(1, num_running)
    length_ns = target_ns * at_once // (at_once + num_waiting)
    return max(floor_ns, min(cap_ns, length_ns))
