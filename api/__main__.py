"""`python -m api`: serve HTTP for the engine of the same configuration.

This process only binds the address and looks after its workers; see `api.worker` for what serves.
"""

import argparse
import asyncio
import sys

from api.auth import make_auth
from api.logs import set_up_logging
from api.server import PortError, listen
from api.workers import Workers, worker_command
from engine.config import ConfigError, config_parser, load_config
from engine.socket_folder import ensure_socket_folder

EPILOG = """examples:
  python -m api --config /etc/fairslice/fairslice.toml

signals: SIGTERM or SIGINT stops: no new work, and running requests may finish for server.drain_s.

exit status: 0 after an orderly end, 2 when there is something to correct before a start, such as a port that
is taken (one line on standard error says what), 1 if a worker failed several times in a row soon after its
start."""


def make_parser(prog: str) -> argparse.ArgumentParser:
    return config_parser(
        prog, "The HTTP side, for the engine of the same configuration. Each may be started first.", EPILOG
    )


def main(arguments: list[str] | None = None, prog: str = "python -m api") -> int:
    """Returns the exit status, which the epilog describes."""
    options = make_parser(prog).parse_args(arguments)
    try:
        config = load_config(options.config)
        ensure_socket_folder(config)
        make_auth(config.server)  # only to see that the workers will be able to
        sockets = listen(config.server.host, config.server.port, config.server.workers)
    except (ConfigError, PortError) as error:
        print(f"fairslice api: {error}", file=sys.stderr)
        return 2
    set_up_logging(config.server.log_format)
    workers = Workers(
        worker_command(options.config),
        sockets,
        restart_s=config.engine.restart_s,
        drain_s=config.server.drain_s,
    )
    return asyncio.run(workers.run())


if __name__ == "__main__":
    sys.exit(main())
