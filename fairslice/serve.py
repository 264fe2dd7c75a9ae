"""`fairslice serve`: engine and api in one process tree, for service managers, containers and terminals.

A stop goes to the api first: its requests need the engine until they are answered. If either process ends by
itself, which both do only when starting again would not help, the other is ended too.
"""

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from contextlib import suppress
from functools import partial

from engine.config import ConfigError, config_parser, load_config

API_GRACE_S = 15.0  # beyond `server.drain_s`, within which the api ends by itself
ENGINE_GRACE_S = 10.0  # after which it is told again: it need not wait for prompts whose api has ended
CANNOT_SERVE = 2

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

EPILOG = """examples:
  fairslice serve                             fairslice.toml here, else the embedded model on the CPU
  fairslice serve --config /etc/fairslice/fairslice.toml
  FAIRSLICE_CONFIG=/etc/fairslice/fairslice.toml fairslice serve

signals: SIGTERM or SIGINT stops: running requests may finish for server.drain_s. A second one ends
everything at once.

exit status: 0 after a stop that was asked for, 2 when there is something to correct before a start (one line
on standard error says what), otherwise that of the process that failed."""

logger = logging.getLogger("fairslice")


def make_parser(prog: str = "fairslice serve") -> argparse.ArgumentParser:
    return config_parser(
        prog, "Serve: the engine, its runners and the HTTP side, until told to stop.", EPILOG
    )


def main(arguments: list[str] | None = None, prog: str = "fairslice serve") -> int:
    """Returns the exit status."""
    options = make_parser(prog).parse_args(arguments)
    try:
        config = load_config(options.config)
    except ConfigError as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return CANNOT_SERVE
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s")
    return asyncio.run(Processes(options.config, config.server.drain_s).run())


class Processes:
    """The engine and the api, from their start to their end."""

    def __init__(self, config_path: str | None, drain_s: float) -> None:
        self._arguments = [] if config_path is None else ["--config", config_path]
        self._drain_s = drain_s
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Serve until a signal comes or a process ends by itself. Returns the exit status."""
        engine, api = await self._start("engine"), await self._start("api")
        for number in (signal.SIGTERM, signal.SIGINT):  # before, we end by them, and both with us
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        async with asyncio.TaskGroup() as group:
            ends = [group.create_task(process.wait()) for process in (engine, api)]
            stop = group.create_task(self._stop.wait())
            await asyncio.wait([*ends, stop], return_when=asyncio.FIRST_COMPLETED)
            status = next((abs(end.result()) for end in ends if end.done()), 0)
            if status not in (0, CANNOT_SERVE):  # what else is wrong was said by the process itself
                logger.error("a process ended with status %d; ending the other", status)
            self._stop.set()
            await _end(api, self._drain_s + API_GRACE_S)
            await _end(engine, ENGINE_GRACE_S, ENGINE_GRACE_S)
        return status

    def _on_signal(self) -> None:
        """The first lets requests finish. The second kills the api with its workers, and then the engine,
        which is told for the second time when the api has ended, does not wait for its prompts either."""
        if self._stop.is_set():
            with suppress(ProcessLookupError):
                os.killpg(self._running["api"].pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                self._running["engine"].terminate()
        self._stop.set()

    async def _start(self, module: str) -> asyncio.subprocess.Process:
        """In a session of its own, so that Ctrl-C reaches it through us, in our order; and ended with us,
        also if we are killed."""
        die_with_us = partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGTERM)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-m", module, *self._arguments),
            start_new_session=True,
            preexec_fn=die_with_us,
        )
        self._running[module] = process
        return process


async def _end(process: asyncio.subprocess.Process, *graces_s: float) -> None:
    """Ask the process to end, again after each of `graces_s`, and kill it after the last."""
    for grace_s in graces_s:
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), grace_s)
            return
    logger.warning("process %d did not end within %.0f s of SIGTERM; killing it", process.pid, sum(graces_s))
    with suppress(ProcessLookupError):
        process.kill()
