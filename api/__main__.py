"""`python -m api`: serve HTTP for the engine of the same configuration.

This process only binds the address and looks after its workers; see `api.worker` for what serves.
"""

import argparse
import asyncio
import sys

from api.auth import make_auth
from api.logs import set_up_logging
from api.server import PortError, listen
from api.workers import Workers
from engine.config import ConfigError, load_config


def main() -> int:
    """Exit code: 0 after an orderly end, 2 when there is something to correct before a start."""
    parser = argparse.ArgumentParser(prog="python -m api", description="The HTTP side of Fairslice.")
    parser.add_argument("--config", metavar="FILE", help="configuration (default: fairslice.toml, if there)")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        make_auth(config.server)  # only to see that the workers will be able to
        sockets = listen(config.server.host, config.server.port, config.server.workers)
    except (ConfigError, PortError) as error:
        print(f"fairslice api: {error}", file=sys.stderr)
        return 2
    set_up_logging(config.server.log_format)
    return asyncio.run(Workers(config, arguments.config, sockets).run())


if __name__ == "__main__":
    sys.exit(main())
