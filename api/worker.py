"""One api process, started by `python -m api` with a listening socket."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time

import uvloop
from prometheus_client import disable_created_metrics

from api.app import make_app
from api.banner import banner
from api.engine_client import EngineClient
from api.errors import unavailable
from api.logs import set_up_logging
from api.server import HttpServer
from api.services import Services
from engine.config import Config, ConfigError, load_config
from engine.descriptors import allow_many_descriptors
from engine.messages import ModelCard

CLOSE_GRACE_S = 1.0
HARD_EXIT_S = 5.0  # beyond drain_s: nothing, not even a thread that hangs, keeps the process longer
GC_THRESHOLDS = (20_000, 20, 50)  # a full collection over thousands of streams holds tokens back

logger = logging.getLogger("api")


def main() -> int:
    """Exit code: 0 after an orderly end, 2 when the configuration has become unusable."""
    parser = argparse.ArgumentParser(prog="python -m api.worker", description=__doc__)
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--announce", action="store_true", help="print an example once a model is ready")
    arguments = parser.parse_args()
    disable_created_metrics()  # type: ignore[no-untyped-call]
    gc.set_threshold(*GC_THRESHOLDS)
    allow_many_descriptors()  # beyond it, connections would be closed without a word
    try:
        config = load_config(arguments.config)
        set_up_logging(config.server.log_format)
        sock = socket.socket(fileno=arguments.fd)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(config, sock, announces=arguments.announce))
    except ConfigError as error:
        print(f"fairslice api: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(config: Config, sock: socket.socket, *, announces: bool) -> None:
    """Serve until SIGTERM, SIGINT or the end of the parent process; then let running requests finish for
    `server.drain_s`. Raises ConfigError."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(sys.stdin.fileno(), _parent_gone, loop, stop)
    port: int = sock.getsockname()[1]
    to_announce = announces

    def on_ready(card: ModelCard) -> None:
        nonlocal to_announce
        if to_announce:
            to_announce = False
            needs_key = config.server.keys is not None
            print(banner(card, config.server.host, port, needs_key=needs_key), flush=True)

    services = Services.make(config, EngineClient(config.socket_path, on_ready))
    app = make_app(services)
    server = HttpServer(app, sock)
    gc.freeze()  # what is loaded by now stays: no collection need look at it again
    async with app.router.lifespan_context(app):
        await server.start()
        await stop.wait()
        _exit_at_last(config.server.drain_s + HARD_EXIT_S)
        await shut_down(server, services)


async def shut_down(server: HttpServer, services: Services) -> None:
    """No new work; what runs may finish for `drain_s`, and be read; then everything is ended, read or not."""
    drain_s = services.config.server.drain_s
    end_s = time.monotonic() + drain_s
    services.generations.is_draining = True
    logger.info("shutting down: %d requests may finish for %.0f s", len(services.generations), drain_s)
    if not await services.generations.wait_idle(drain_s):
        logger.warning("ending %d requests that did not finish in time", len(services.generations))
        services.streams.cut_stuck()
        services.generations.interrupt_all(unavailable("The server is shutting down", "shutting_down"))
    await server.close(max(CLOSE_GRACE_S, end_s - time.monotonic()))


def _parent_gone(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    loop.remove_reader(sys.stdin.fileno())
    stop.set()


def _exit_at_last(delay_s: float) -> None:
    timer = threading.Timer(delay_s, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    sys.exit(main())
