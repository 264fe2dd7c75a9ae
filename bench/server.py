"""A Fairslice server (engine and api) as child processes, for benchmarks that go through HTTP."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

READY_TIMEOUT_S = 400.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready."""

    url: str
    pids: tuple[int, int]  # of the engine's supervisor and of the api

    def metrics(self) -> dict[str, float]:
        """All metrics, summed over their labels."""
        totals: dict[str, float] = {}
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode()
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals


@contextlib.contextmanager
def serving(config: str, port: int) -> Iterator[Server]:
    """Serve `config` (TOML without [server] and [engine]) on loopback."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fairslice.toml"
        socket = f'[engine]\nsocket = "{folder}/engine.sock"\n'
        file.write_text(f"{config}\n{socket}[server]\nport = {port}\ndrain_s = 2\n")
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", name, "--config", str(file)],
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path[1:]])},
            )
            for name in ("engine", "api")
        ]
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, processes)
            yield Server(url, (processes[0].pid, processes[1].pid))
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(30)


def wait_until_ready(url: str, processes: list[subprocess.Popen[bytes]]) -> None:
    """Raises RuntimeError if a process ends or the time is over."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            raise RuntimeError("the server ended before it was ready")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ready", timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"not ready after {READY_TIMEOUT_S:.0f} s")
