"""What the engine's process asks of the operating system at its start."""

import ctypes
import gc
import resource
import signal

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


def allow_many_descriptors() -> None:
    """Pools on GPUs have one for each segment, hundreds a GPU: usual soft limits suffice for one or two.
    Runners inherit the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
