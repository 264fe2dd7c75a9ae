"""A server as a process, for tests that want nothing of it but its address."""

import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 180.0  # a server that is not ready and done by then is killed, and the test fails


@contextmanager
def served(command: Sequence[str | Path], folder: Path) -> Iterator[list[str]]:
    """What the server printed until it was ready: first its model, last its address. Ends it afterwards."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        killer = threading.Timer(LIMIT_S, process.kill)
        killer.start()
        try:
            assert process.stdout is not None
            printed = []
            for line in process.stdout:
                printed.append(line)
                if "serving on" in line:
                    break
            assert printed, "the server ended, or was killed, before it was ready"
            yield printed
        finally:
            process.terminate()
            status = process.wait()
            killer.cancel()
        assert status == 0
