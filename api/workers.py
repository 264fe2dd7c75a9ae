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
from engine.restarts import MAX_QUICK_ENDS, Restarts

CANNOT_SERVE = 2  # exit status of a worker that would fail the same way again
FAILED = 1  # ours, when we give up
KILL_AFTER_S = 10.0  # beyond `drain_s`, in which workers end by themselves

logger = logging.getLogger(__name__)


class Workers:
    """As many processes of `command` as there are sockets; one that dies is started again after `restart_s`,
    and later if it does not last."""

    def __init__(
        self, command: Sequence[str], sockets: Sequence[socket.socket], *, restart_s: float, drain_s: float
    ) -> None:
        self._command = command
        self._sockets = sockets
        self._restart_s = restart_s
        self._drain_s = drain_s
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()
        self._status = 0

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT, or until a worker says that starting again is of no use or has
        ended too often soon after its start.

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
                kill = loop.call_later(self._drain_s + KILL_AFTER_S, self._signal_all, signal.SIGKILL)
            kill.cancel()
        return self._status

    async def _keep(self, index: int, metrics_dir: str | None) -> None:
        """Have worker `index` run until all are told to stop."""
        announces = index == 0
        restarts, clock_s = Restarts(self._restart_s), asyncio.get_running_loop().time
        while not self._stop.is_set():
            started_s = clock_s()
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
                    self._end(abs(status))
                return
            announces = False
            pause_s = restarts.next_pause_s(clock_s() - started_s)
            if pause_s is None:
                logger.error(
                    "worker %d ended %d times in a row soon after its start; giving up", index, MAX_QUICK_ENDS
                )
                self._end(FAILED)
                return
            logger.warning(
                "worker %d ended with status %d; starting it again in %g s", index, status, pause_s
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)

    def _end(self, status: int) -> None:
        """Have all workers end, and us with `status` unless there was a graver one."""
        self._status = max(self._status, status)
        self._stop.set()

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


def worker_command(config_path: str | None) -> list[str]:
    """The command line of a worker, but for what `Workers` adds to it."""
    return [sys.executable, "-m", "api.worker", *([] if config_path is None else ["--config", config_path])]
