"""`python -m engine.model_runner --fd N --pools-fd M`: started by the engine, never by hand."""

import argparse
import sys


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine.model_runner", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket for messages")
    parser.add_argument("--pools-fd", type=int, required=True, help="inherited socket for descriptors")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _parse()
    from engine.model_runner.process import main  # takes seconds: after the arguments are known to be good

    sys.exit(main(fd=arguments.fd, pools_fd=arguments.pools_fd))
