# mypy: allow-untyped-calls
"""`python -m engine.model_runner.awake`: keeps a GPU on which nothing computes awake, until its stdin ends.

A GPU without any context rests at a fraction of its clock, and so does its end of the links: an H200's are
read at 354 GB/s then instead of 395, and what kernels store there goes 15% slower (`bench.check_pools`). A
context is all it takes; it costs half a GiB and some 40 W. On failure one line that says why, on stderr.
"""

import argparse
import sys

from cuda.bindings import driver

from engine.memory.cuda_calls import CudaError, unwrap


def main() -> int:
    """Hold a context, and wait. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", type=int, required=True)
    options = parser.parse_args()
    try:
        unwrap("cuInit", driver.cuInit(0))
        device = unwrap("cuDeviceGet", driver.cuDeviceGet(options.index))
        unwrap("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(device))
    except CudaError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
