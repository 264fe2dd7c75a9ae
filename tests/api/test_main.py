"""The process: its start, its end, and what it prints."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from api.banner import banner
from engine.descriptors import MAX_DESCRIPTORS
from tests.api.fake_engine import CARD, FakeEngine
from tests.api.harness import run, until


def write_config(folder: Path, port: int, server: str = "") -> Path:
    file = folder / "fairslice.toml"
    file.write_text(f'[server]\nport = {port}\n{server}\n[engine]\nsocket = "{folder}/engine.sock"\n')
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


@contextlib.asynccontextmanager
async def serving(config: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The process and its port, once a model is ready."""
    process = await start(config)
    try:
        assert process.stdout is not None
        printed = (await process.stdout.readuntil(b"curl -N")).decode()
        assert "fake is ready" in printed
        command = (await process.stdout.readline()).decode()
        yield process, int(command.split("127.0.0.1:")[1].split("/")[0])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def fetch(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_serves_prints_an_example_and_ends_on_sigterm(tmp_path: Path) -> None:
    async def test() -> None:
        config = write_config(tmp_path, 0)
        async with FakeEngine(tmp_path / "engine.sock"), serving(config) as (process, port):
            assert (await fetch(port, "/ready")).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0

    run(test())


def test_a_stop_while_it_starts_is_an_orderly_end(tmp_path: Path) -> None:
    async def test() -> None:
        process = await start(write_config(tmp_path, 0))
        await until(lambda: children_of(process.pid))
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0

    run(test())


def test_workers_share_the_address_and_their_counters_and_are_started_again(tmp_path: Path) -> None:
    async def test() -> None:
        config = write_config(tmp_path, 0, "workers = 2")
        async with FakeEngine(tmp_path / "engine.sock") as engine, serving(config) as (process, port):
            await until(lambda: len(engine.streams) == 2)
            num_asked = 12
            for _ in range(num_asked):
                assert (await fetch(port, "/nowhere")).startswith(b"HTTP/1.1 404")
            counted = f'fairslice:http_errors_total{{status="404"}} {num_asked}.0'.encode()
            for _ in range(4):
                assert counted in await fetch(port, "/metrics")
            victim, survivor = children_of(process.pid)
            os.kill(victim, signal.SIGKILL)
            for _ in range(num_asked):  # those that reach the dead one's queue wait there
                assert (await fetch(port, "/health")).startswith(b"HTTP/1.1 200")
            await until(lambda: len(children_of(process.pid)) == 2)
            assert survivor in children_of(process.pid)
            assert counted in await fetch(port, "/metrics")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 10) == 0

    run(test())


def test_a_low_soft_limit_of_open_files_does_not_limit_clients(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)

    async def test() -> None:
        async with FakeEngine(tmp_path / "engine.sock"), serving(write_config(tmp_path, 0)) as (process, _):
            (worker,) = children_of(process.pid)
            assert resource.prlimit(worker, resource.RLIMIT_NOFILE)[0] == most

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        run(test())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    async def test() -> None:
        config = write_config(tmp_path, 0)
        async with FakeEngine(tmp_path / "engine.sock"), serving(config) as (process, _):
            (worker,) = children_of(process.pid)
            process.kill()
            await process.wait()
            await until(lambda: not Path(f"/proc/{worker}/fd/0").exists())

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


def test_a_socket_folder_that_may_be_anothers_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        folder = tmp_path / f"fairslice-{os.getuid()}"
        folder.symlink_to(tmp_path)
        config = tmp_path / "fairslice.toml"
        config.write_text("[server]\nport = 0\n")
        process = await start(config)
        out, err = await process.communicate()
        assert process.returncode == 2
        assert out == b""
        problem = f"cannot use the default folder {folder}: it is a symbolic link"
        assert err.decode() == f"fairslice api: engine.socket: {problem}\n"

    run(test())


def test_the_banner_names_licence_and_cache() -> None:
    card = msgspec.structs.replace(CARD, licence_notice="Gemma terms apply", cached_at="/cache", is_chat=True)
    text = banner(card, "0.0.0.0", 8000)
    assert "Gemma terms apply" in text
    assert "cached at /cache" in text
    assert "http://127.0.0.1:8000/v1/chat/completions" in text
    assert "Bearer" not in text
    assert "-H 'authorization: Bearer KEY'" in banner(card, "0.0.0.0", 8000, needs_key=True)
