"""The process: its start, its end, and what it prints."""

import asyncio
import contextlib
import signal
import socket
import sys
from pathlib import Path

import msgspec

from api.banner import banner
from tests.api.fake_engine import CARD, FakeEngine
from tests.api.harness import run


def write_config(folder: Path, port: int) -> Path:
    file = folder / "fairslice.toml"
    file.write_text(f'[server]\nport = {port}\n[engine]\nsocket = "{folder}/engine.sock"\n')
    return file


async def start(config: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "api",
        "--config",
        str(config),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def test_serves_prints_an_example_and_ends_on_sigterm(tmp_path: Path) -> None:
    async def test() -> None:
        async with FakeEngine(tmp_path / "engine.sock"):
            process = await start(write_config(tmp_path, 0))
            try:
                assert process.stdout is not None
                printed = (await process.stdout.readuntil(b"curl -N")).decode()
                assert "fake is ready" in printed
                command = "curl -N" + (await process.stdout.readline()).decode()
                port = int(command.split("127.0.0.1:")[1].split("/")[0])
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 10) == 0
                writer.close()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

    run(test())


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            process = await start(write_config(tmp_path, port))
            out, err = await process.communicate()
            assert process.returncode == 2
            assert out == b""
            line = f"fairslice api: cannot listen on 127.0.0.1:{port}: Address already in use\n"
            assert err.decode() == line

    run(test())


def test_the_banner_names_licence_and_cache() -> None:
    card = msgspec.structs.replace(CARD, licence_notice="Gemma terms apply", cached_at="/cache", is_chat=True)
    text = banner(card, "0.0.0.0", 8000)
    assert "Gemma terms apply" in text
    assert "cached at /cache" in text
    assert "http://127.0.0.1:8000/v1/chat/completions" in text
