"""`python -m engine [--config FILE]`: the engine, started again when it dies."""

import argparse
import sys

from engine.config import ConfigError, config_parser, load_config
from engine.supervisor import supervise

EPILOG = """examples:
  python -m engine --config /etc/fairslice/fairslice.toml

signals: SIGTERM or SIGINT stops: open prompts may finish for server.drain_s.

exit status: 0 after a stop that was asked for, 2 if the configuration cannot be served (one line on standard
error says why), 1 if the engine failed several times in a row soon after its start."""


def make_parser(prog: str) -> argparse.ArgumentParser:
    return config_parser(
        prog, "The engine and its runners, started again when they die. The api is needed beside it.", EPILOG
    )


def main(arguments: list[str] | None = None, prog: str = "python -m engine") -> int:
    """Returns the exit status, which the epilog describes."""
    options = make_parser(prog).parse_args(arguments)
    try:
        config = load_config(options.config)
    except ConfigError as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 2
    return supervise(options.config, restart_s=config.engine.restart_s, drain_s=config.server.drain_s)


if __name__ == "__main__":
    sys.exit(main())
