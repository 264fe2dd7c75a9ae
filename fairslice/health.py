"""`fairslice health`: asks the server of a configuration whether it lives, or is ready; for containers."""

import argparse
import http.client
import sys

from engine.config import ConfigError, load_config

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
EPILOG = """examples:
  fairslice health --config /etc/fairslice/fairslice.toml
  fairslice health --ready

exit status: 0 if it does, 1 if not, 2 for a configuration that cannot be used"""


def make_parser(prog: str = "fairslice health") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Ask the server of this machine whether it answers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="configuration of the server (default: as for serving)"
    )
    parser.add_argument(
        "--ready", action="store_true", help="ask whether a model can be used (default: whether it lives)"
    )
    parser.add_argument(
        "--timeout", type=float, default=3.0, metavar="S", help="seconds to wait for the answer (default: 3)"
    )
    return parser


def main(arguments: list[str] | None = None, prog: str = "fairslice health") -> int:
    """Returns the exit status."""
    options = make_parser(prog).parse_args(arguments)
    try:
        server = load_config(options.config).server
    except ConfigError as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 2
    host = ANYWHERE.get(server.host, server.host)
    connection = http.client.HTTPConnection(host, server.port, timeout=options.timeout)
    try:
        connection.request("GET", "/ready" if options.ready else "/health")
        answer = connection.getresponse()
        print(answer.read().decode())
        return 0 if answer.status == http.client.OK else 1
    except (OSError, http.client.HTTPException) as error:
        print(f"fairslice: {host}:{server.port} does not answer: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
