"""A server to look at: engine and api as processes, two devices that serve, one that lends, and a crowd."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

START_S = 120.0
TENANTS = {"atlas": 2.0, "borealis": 1.0, "corvus": 1.0, "dorado": 1.0}  # weights
OPERATOR = "operator"

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "tiny"
max_model_len = 1024

[[devices]]
name = "cpu:0"
memory = "1MiB"
threads = 1

[[devices]]
name = "cpu:1"
memory = "1MiB"
threads = 1

[[devices]]
name = "cpu:2"
memory = "4MiB"
mode = "lend"

[scheduler]
slice_ms = 250
max_batch = 10

[memory]
host = "16MiB"

[server]
port = {port}
drain_s = 1
{keys}

[engine]
socket = "{folder}/engine.sock"
"""


@dataclass
class Scene:
    url: str
    keys: dict[str, str] = field(default_factory=dict)  # by tenant


@contextlib.contextmanager
def serving(folder: Path, *, with_keys: bool) -> Iterator[Scene]:
    """A server that is ready; keys are those of TENANTS and of an operator."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key_file = folder / "keys.json"
    keys = _make_keys(key_file) if with_keys else {}
    config = folder / "fairslice.toml"
    key_line = f'keys = "{key_file}"' if with_keys else ""
    config.write_text(CONFIG.format(port=port, folder=folder, keys=key_line))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-m", package, "--config", str(config)], env=environment)
        for package in ("engine", "api")
    ]
    try:
        _wait_ready(f"http://127.0.0.1:{port}/ready", processes)
        yield Scene(f"http://127.0.0.1:{port}", keys)
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _make_keys(file: Path) -> dict[str, str]:
    keys = {}
    for name in (*TENANTS, OPERATOR):
        options = ["--operator"] if name == OPERATOR else ["--weight", str(TENANTS[name])]
        done = subprocess.run(
            [sys.executable, "-m", "api.keys", "--file", str(file), "add", name, *options],
            capture_output=True,
            text=True,
            check=True,
        )
        keys[name] = done.stdout.split()[0]
    return keys


def _wait_ready(url: str, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        assert all(process.poll() is None for process in processes), "the server ended"
        assert time.monotonic() < deadline, "the server is not ready"
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(url, timeout=5).close()
            return
        time.sleep(0.1)


async def crowd(scene: Scene, *, most: int = 14) -> None:
    """Prompts of all tenants, more than fit, until cancelled: each tenant has `most` open at a time."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for number, tenant in enumerate(scene.keys):
            for seed in range(most if tenant != OPERATOR else 0):
                group.create_task(_client(session, scene, tenant, random.Random(1000 * number + seed)))


async def _client(session: aiohttp.ClientSession, scene: Scene, tenant: str, rng: random.Random) -> None:
    """One prompt after the other, of different lengths."""
    headers = {"authorization": f"Bearer {scene.keys[tenant]}"}
    while True:
        await asyncio.sleep(rng.expovariate(0.5))
        body = {
            "model": "tiny",
            "prompt": "x" * rng.randint(40, 420),
            "max_tokens": rng.randint(60, 420),
            "ignore_eos": True,
            "stream": True,
        }
        async with session.post(f"{scene.url}/v1/completions", json=body, headers=headers) as answer:
            async for _ in answer.content:
                pass
