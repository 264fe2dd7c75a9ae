"""Keeps the engine loop alive. A runner of Procfiles ends everything when one process ends, so the process
that it sees is this one, which has nothing in it that could fail.

Open requests survive the engine: their api processes hand them to its successor.
"""

import signal
import subprocess
import sys
import time
from types import FrameType

CANNOT_SERVE = 2  # exit status of an engine that would fail the same way again


def supervise(config_path: str | None, restart_s: float) -> int:
    """Run the engine loop until it is told to stop or says that starting again is of no use.

    SIGTERM and SIGINT are passed on. Returns the exit status.
    """
    command = [sys.executable, "-m", "engine.loop"]
    if config_path is not None:
        command += ["--config", config_path]
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child is not None and child.poll() is None:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while not stopping:
        child = subprocess.Popen(command, start_new_session=True)
        if stopping:  # told to while the child was being made
            child.terminate()
        status = child.wait()
        if stopping:
            return 0
        if status in (0, CANNOT_SERVE):
            return status
        print(f"fairslice: the engine ended with status {status}; starting it again", file=sys.stderr)
        time.sleep(restart_s)
    return 0
