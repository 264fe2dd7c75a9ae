"""What the engine's process asks of the operating system at its start."""

import ctypes
import gc
import resource
import signal

from engine.config import ByteSize, Config, ConfigError
from engine.memory.machine import limit_bytes

GC_THRESHOLDS = (20_000, 20, 50)  # a full collection over thousands of prompts takes as long as several steps
MAX_DESCRIPTORS = 2**16  # of segments of 256 MiB: 16 TiB
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def prepare_process() -> None:
    """Called once, before anything else."""
    gc.set_threshold(*GC_THRESHOLDS)
    follow_supervisor()
    allow_many_descriptors()


def follow_supervisor() -> None:
    """End with the supervisor, also if it was killed: nobody would start us again."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def allow_many_descriptors() -> None:
    """Pools on GPUs have one for each segment, hundreds a GPU: usual soft limits suffice for one or two.
    Runners inherit the limit, which is no higher than needed: some programs go through all that may be open.
    """
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if most == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, most)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def check_memory(config: Config) -> None:
    """Refuse wishes for memory that this machine can never fulfil, before anything is loaded for them. Raises
    ConfigError."""
    limit = limit_bytes()
    wishes = {"memory.host": config.memory.host}
    for number, device in enumerate(config.devices):
        if device.name.startswith("cpu"):
            wishes[f"devices[{number}].memory"] = device.memory or ByteSize(0)
    for key, wish in wishes.items():
        if limit is not None and wish > limit:
            wanted, most = (f"{num_bytes / 2**30:.1f} GiB" for num_bytes in (wish, limit))
            raise ConfigError(f"{key}: {wanted} wanted, but this machine can have no more than {most}")
