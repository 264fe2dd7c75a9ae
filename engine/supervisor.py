"""Keeps the engine loop alive. A runner of Procfiles ends everything when one process ends, so the process
that it sees is this one, which has next to nothing in it that could fail.

Open requests survive the engine: their api processes hand them to its successor.
"""

import asyncio
import signal
import sys
from contextlib import suppress

from engine.restarts import MAX_QUICK_ENDS, Restarts

CANNOT_SERVE = 2  # exit status of an engine that would fail the same way again
FAILED = 1  # ours, when we give up
KILL_AFTER_S = 5.0  # beyond `drain_s`, within which the engine ends by itself


class Supervisor:
    """Runs `command` again and again."""

    def __init__(self, command: list[str], *, restart_s: float, drain_s: float) -> None:
        self._command = command
        self._restarts = Restarts(restart_s)
        self._drain_s = drain_s
        self._stop = asyncio.Event()
        self._child: asyncio.subprocess.Process | None = None

    async def run(self) -> int:
        """Until told to stop, or until starting again is of no use. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        while not self._stop.is_set():
            started_s = loop.time()
            self._child = await asyncio.create_subprocess_exec(*self._command, start_new_session=True)
            if self._stop.is_set():  # told to while the child was being made
                self._child.terminate()
            status = await self._child.wait()
            if self._stop.is_set():
                break
            if status in (0, CANNOT_SERVE):
                return status
            pause_s = self._restarts.next_pause_s(loop.time() - started_s)
            if pause_s is None:
                print(
                    f"fairslice: the engine ended {MAX_QUICK_ENDS} times in a row soon after its start;"
                    " giving up",
                    file=sys.stderr,
                )
                return FAILED
            print(
                f"fairslice: the engine ended with status {status}; starting it again in {pause_s:g} s",
                file=sys.stderr,
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause_s)
        return 0

    def _on_signal(self) -> None:
        """The first lets prompts finish for `drain_s`, the second none. An engine that does not end in time
        is killed: without us nobody would."""
        grace_s = KILL_AFTER_S if self._stop.is_set() else self._drain_s + KILL_AFTER_S
        self._stop.set()
        if self._child is not None and self._child.returncode is None:
            self._child.terminate()
        asyncio.get_running_loop().call_later(grace_s, self._kill)

    def _kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            print("fairslice: the engine did not end in time; killing it", file=sys.stderr)
            self._child.kill()


def supervise(config_path: str | None, *, restart_s: float, drain_s: float) -> int:
    """Run the engine loop until it is told to stop, says that starting again is of no use, or has ended too
    often soon after its start.

    SIGTERM and SIGINT are passed on, as SIGTERM. Returns the exit status.
    """
    command = [sys.executable, "-m", "engine.loop"]
    if config_path is not None:
        command += ["--config", config_path]

    async def run() -> int:
        return await Supervisor(command, restart_s=restart_s, drain_s=drain_s).run()

    return asyncio.run(run())
