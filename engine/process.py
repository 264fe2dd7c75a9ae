"""What the engine's process asks of the operating system at its start."""

import ctypes
import gc
import signal

from engine.config import ByteSize, Config, ConfigError
from engine.descriptors import allow_many_descriptors
from engine.memory.machine import limit_bytes

GC_THRESHOLDS = (20_000, 20, 50)  # a full collection over thousands of prompts takes as long as several steps
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def prepare_process() -> None:
    """Called once, before anything else."""
    gc.set_threshold(*GC_THRESHOLDS)
    follow_supervisor()
    allow_many_descriptors()


def follow_supervisor() -> None:
    """End with the supervisor, also if it was killed: nobody would start us again."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
