"""`python -m engine [--config FILE]`: the engine, started again when it dies."""

import argparse
import sys

from engine.config import ConfigError, load_config
from engine.supervisor import supervise


def main() -> int:
    """Returns the exit status: 0 after a stop that was asked for, 2 if the configuration cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m engine", description="The Fairslice engine.")
    parser.add_argument("--config", metavar="FILE", help="configuration (default: fairslice.toml, if there)")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
    except ConfigError as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 2
    return supervise(arguments.config, config.engine.restart_s)


if __name__ == "__main__":
    sys.exit(main())
