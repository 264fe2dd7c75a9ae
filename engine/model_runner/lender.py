# mypy: allow-untyped-calls
"""`python -m engine.model_runner.lender`: makes the pool of a GPU on which no model runs, and exits.

Whoever holds the descriptors keeps the memory, so no process has to stay: the engine holds them, runners map
them, and the GPU is left without a context of ours. Prints the size of the pool in bytes; on failure one line
that says why, on stderr.
"""

import argparse
import socket
import sys

from cuda.bindings import driver

from engine.memory.cuda_calls import CudaError, unwrap
from engine.memory.cuda_pool import create_range
from engine.memory.regions import send_descriptors


def make_pool(
    index: int, num_bytes: int | None, fraction: float, segment_bytes: int
) -> tuple[int, list[int]]:
    """Allocate `num_bytes`, or that part of what is free, in whole segments; its size and descriptors.

    Raises CudaError.
    """
    unwrap("cuInit", driver.cuInit(0))
    device = unwrap("cuDeviceGet", driver.cuDeviceGet(index))
    context = unwrap("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(device))
    unwrap("cuCtxSetCurrent", driver.cuCtxSetCurrent(context))
    if num_bytes is None:
        num_bytes = int(fraction * int(unwrap("cuMemGetInfo", driver.cuMemGetInfo())))
    whole_bytes = num_bytes // segment_bytes * segment_bytes
    _, descriptors = create_range(index, whole_bytes, segment_bytes)
    return whole_bytes, descriptors


def main() -> int:
    """Make the pool and hand over its descriptors. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--num-bytes", type=int)
    parser.add_argument("--fraction", type=float, default=0.9)
    parser.add_argument("--segment-bytes", type=int, required=True)
    parser.add_argument("--pools-fd", type=int, required=True)
    options = parser.parse_args()
    try:
        num_bytes, descriptors = make_pool(
            options.index, options.num_bytes, options.fraction, options.segment_bytes
        )
    except CudaError as error:
        print(error, file=sys.stderr)
        return 1
    with socket.socket(fileno=options.pools_fd) as sock:
        send_descriptors(sock, descriptors)
    print(num_bytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
