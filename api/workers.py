"""The parent of the api processes: starts each again when it dies, and passes SIGTERM on.

Every worker has a listening socket of its own on the one address, so that the kernel spreads connections
evenly. The parent keeps all of them open: connections that come while a worker is started again wait in its
queue instead of being refused.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from prometheus_client import multiprocess

from api.metrics import SHARED_VARIABLE
from engine.config import Config

CANNOT_SERVE = 2  # exit status of a worker that would fail the same way again
KILL_AFTER_S = 10.0  # beyond `drain_s`, in which workers end by themselves

logger = logging.getLogger(__name__)


class Workers:
    """As many worker processes as there are sockets."""

    def __init__(self, config: Config, config_path: str | None, sockets: Sequence[socket.socket]) -> None:
        self._config = config
        self._command = [sys.executable, "-m", "api.worker"]
        if config_path is not None:
            self._command += ["--config", config_path]
        self._sockets = sockets
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until a worker says that starting again is of no use.

        Returns the exit status.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        with ExitStack() as stack:
            metrics_dir = None
            if len(self._sockets) > 1:
                metrics_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="fairslice-metrics-"))
            async with asyncio.TaskGroup() as group:
                for index in range(len(self._sockets)):
                    group.create_task(self._keep(index, metrics_dir))
                await self._stop.wait()
                self._signal_all(signal.SIGTERM)
                kill = loop.call_later(
                    self._config.server.drain_s + KILL_AFTER_S, self._signal_all, signal.SIGKILL
                )
            kill.cancel()
        return self._status

    async def _keep(self, index: int, metrics_dir: str | None) -> None:
        """Have worker `index` run until all are told to stop."""
        announces = index == 0
        while not self._stop.is_set():
            process = await self._start(index, metrics_dir, announces=announces)
            self._running[index] = process
            if self._stop.is_set():  # told to while the worker was being made
                process.terminate()
            status = await process.wait()
            del self._running[index]
            if metrics_dir is not None:
                multiprocess.mark_process_dead(process.pid, metrics_dir)  # type: ignore[no-untyped-call]
            if self._stop.is_set() or status in (0, CANNOT_SERVE):
                if status != -signal.SIGTERM:  # told to stop before it could listen: no failure
                    self._status = max(self._status, abs(status))
                self._stop.set()
                return
            announces = False
            logger.warning("worker %d ended with status %d; starting it again", index, status)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._config.engine.restart_s)

    async def _start(
        self, index: int, metrics_dir: str | None, *, announces: bool
    ) -> asyncio.subprocess.Process:
        """A worker notices by the end of its standard input that this process is gone."""
        descriptor = self._sockets[index].fileno()
        return await asyncio.create_subprocess_exec(
            *self._command,
            f"--fd={descriptor}",
            *(["--announce"] if announces else []),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=[descriptor],
            env=os.environ if metrics_dir is None else os.environ | {SHARED_VARIABLE: metrics_dir},
        )

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)
