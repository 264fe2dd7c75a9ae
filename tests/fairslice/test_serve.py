"""`fairslice serve` as a process tree: one stop for all, and none left behind."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.api.harness import run, run_for, until

pytestmark = pytest.mark.slow

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "tiny"
max_model_len = 256
[[devices]]
name = "cpu"
memory = "4MiB"
threads = 1
[memory]
host = "4MiB"
[server]
port = 0
drain_s = 5
[engine]
socket = "{socket}"
"""


async def start(config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairslice", "serve", "--config", str(config)),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid for child in map(int, children) for pid in (child, *descendants(child))]


def has_ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The process and its port, once the model is ready."""
    config = folder / "fairslice.toml"
    config.write_text(CONFIG.format(socket=folder / "engine.sock"))
    process = await start(config)
    try:
        assert process.stdout is not None
        assert "tiny is ready" in (await process.stdout.readuntil(b"curl -N")).decode()
        command = (await process.stdout.readline()).decode()
        yield process, int(command.split("127.0.0.1:")[1].split("/")[0])
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def open_stream(
    port: int, num_tokens: int, n: int = 1
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream of which the first tokens have come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    fields = {"model": "tiny", "prompt": "x", "max_tokens": num_tokens, "n": n}
    fields |= {"ignore_eos": True, "stream": True}
    body = json.dumps(fields).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")
    writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))
    await reader.readuntil(b"data: ")
    return reader, writer


def test_a_stop_lets_streams_finish_and_leaves_no_process(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (process, port):
            tree = descendants(process.pid)
            assert len(tree) >= 5  # engine, its loop, its runner; api, its worker
            reader, writer = await open_stream(port, 200)
            process.send_signal(signal.SIGTERM)
            assert (await reader.read()).count(b"[DONE]") == 1
            writer.close()
            _, errors = await process.communicate()
            assert process.returncode == 0, errors
            await until(lambda: all(map(has_ended, tree)))

    run_for(test(), 120)


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as (process, port):
            tree = descendants(process.pid)
            reader, writer = await open_stream(port, 250, n=100)
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            await process.stderr.readuntil(b"shutting down")
            process.send_signal(signal.SIGINT)
            assert b"[DONE]" not in await reader.read()
            writer.close()
            await process.communicate()
            assert process.returncode == 0
            await until(lambda: all(map(has_ended, tree)), 30)

    run_for(test(), 120)


@pytest.mark.parametrize(
    "text", ["nonsense = 1", '[[models]]\npath = "/nowhere"\n[engine]\nsocket = "{socket}"']
)
def test_what_cannot_be_served_is_said_once_with_status_2(text: str, tmp_path: Path) -> None:
    config = tmp_path / "fairslice.toml"
    server = "\n[server]\nport = 0\n" if "models" in text else ""
    config.write_text(text.replace("{socket}", str(tmp_path / "engine.sock")) + server)

    async def test() -> None:
        process = await start(config)
        _, errors = await process.communicate()
        assert process.returncode == 2, errors
        said = [line for line in errors.decode().splitlines() if line.startswith("fairslice: ")]
        assert len(said) == 1, errors

    run(test())
