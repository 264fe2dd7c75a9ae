"""Memory that outlives the process which fills it: regions behind file descriptors.

The engine makes a region for the pool of each cpu device and one for the host tier, keeps its descriptor and
passes it to runners, which map it. A region is sparse: it takes memory page by page as it is touched.
"""

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Sequence

from engine.memory.machine import available_bytes

MAX_DESCRIPTORS_PER_MESSAGE = 250  # the kernel takes 253

_LIBC = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # <linux/falloc.h>

_HEADER = struct.Struct("<I")  # descriptors still to come, those of this message included


class RegionError(Exception):
    """A region cannot be made or mapped; one line that says why."""


def create_region(name: str, num_bytes: int) -> int:
    """Make a region of zeros and return its descriptor. `name` is seen in /proc only.

    Memory is taken when touched, and a process that touches more than there is gets killed; so a region
    larger than what is available now is refused. Raises RegionError.
    """
    require_available(num_bytes, name)
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, num_bytes)
    except OSError as error:
        os.close(descriptor)
        raise RegionError(f"{name}: cannot make a region of {_gib(num_bytes)}: {error.strerror}") from None
    return descriptor


def require_available(num_bytes: int, name: str) -> None:
    """Raises RegionError if the machine has not so much memory left."""
    available = available_bytes()
    if num_bytes > available:
        wanted, left = _gib(num_bytes), _gib(available)
        raise RegionError(f"{name}: {wanted} wanted, but the machine has only {left} of memory available")


def punch_hole(descriptor: int, start: int, num_bytes: int) -> None:
    """Give the memory of a part of a region back: it reads as zeros, in every process that has it mapped,
    and takes memory again when touched."""
    result = _LIBC.fallocate(
        ctypes.c_int(descriptor),
        ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE),
        ctypes.c_int64(start),
        ctypes.c_int64(num_bytes),
    )
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot punch a hole into a region")


def map_region(descriptor: int) -> mmap.mmap:
    """Map all of a region, shared and writable. The descriptor may be closed after. Raises RegionError."""
    num_bytes = os.fstat(descriptor).st_size
    try:
        return mmap.mmap(descriptor, num_bytes)
    except (OSError, ValueError) as error:
        raise RegionError(f"cannot map a region of {_gib(num_bytes)}: {error}") from None


def send_descriptors(sock: socket.socket, descriptors: Sequence[int]) -> None:
    """Send descriptors over a Unix stream socket, however many; the sender keeps its own."""
    remaining = list(descriptors)
    while True:
        batch = remaining[:MAX_DESCRIPTORS_PER_MESSAGE]
        socket.send_fds(sock, [_HEADER.pack(len(remaining))], batch)
        del remaining[: len(batch)]
        if not remaining:
            return


def receive_descriptors(sock: socket.socket) -> list[int]:
    """Take what one `send_descriptors` sent; waits for it. Raises EOFError when the peer is gone, RegionError
    when this process may not have so many."""
    descriptors: list[int] = []
    while True:
        data, received, flags, _ = socket.recv_fds(sock, _HEADER.size, MAX_DESCRIPTORS_PER_MESSAGE)
        for descriptor in received:
            os.set_inheritable(descriptor, False)
        descriptors.extend(received)
        is_cut = bool(flags & socket.MSG_CTRUNC)
        if is_cut or len(data) < _HEADER.size:
            for descriptor in descriptors:
                os.close(descriptor)
            if is_cut:
                raise RegionError("too many open files: raise the limit for this user (ulimit -n)")
            raise EOFError("the peer closed the connection")
        (announced,) = _HEADER.unpack(data)
        if announced == len(received):
            return descriptors


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
