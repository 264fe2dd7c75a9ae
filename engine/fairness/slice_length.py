"""How long a slice is: by contention, as in Linux before EEVDF (`sched_slice` in kernel/sched/fair.c)."""


def slice_length_ns(
    *, num_running: int, num_waiting: int, target_ns: int, floor_ns: int, cap_ns: int, alone_ns: int
) -> int:
    """The target latency is shared over the rotations that it takes until all had a turn: as many prompts as
    run now have one at a time. Never below the floor, which switching is worth, nor above the cap. If nobody
    waits, `alone_ns`.
    """
    if num_waiting == 0:
        return alone_ns
    rotations = -(-(num_running + num_waiting) // max(1, num_running))
    return max(floor_ns, min(cap_ns, target_ns // rotations))
