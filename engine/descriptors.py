"""How many descriptors a process may have open at once: usual soft limits are meant for other programs."""

import resource

MAX_DESCRIPTORS = 2**16  # of segments of 256 MiB: 16 TiB


def allow_many_descriptors() -> None:
    """Pools on GPUs have one for each segment, hundreds a GPU, and an api process has one for each client.
    Runners inherit the limit, which is no higher than needed: some programs go through all that may be open.
    """
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if most == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, most)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
