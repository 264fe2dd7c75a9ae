"""`fairslice serve` as a process tree: one stop for all, and none left behind."""

import asyncio
import signal
import sys
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


def test_serves_and_ends_with_all_its_processes_on_sigterm(tmp_path: Path) -> None:
    config = tmp_path / "fairslice.toml"
    config.write_text(CONFIG.format(socket=tmp_path / "engine.sock"))

    async def test() -> None:
        process = await start(config)
        try:
            assert process.stdout is not None
            assert "tiny is ready" in (await process.stdout.readuntil(b"curl -N")).decode()
            tree = descendants(process.pid)
            assert len(tree) >= 5  # engine, its loop, its runner; api, its worker
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
            assert process.returncode == 0, errors
            await until(lambda: all(map(has_ended, tree)))
        finally:
            if process.returncode is None:
                process.kill()

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
