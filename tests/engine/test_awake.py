import asyncio
import logging
import os
import sys
import time
from pathlib import Path

import pytest

from engine import awake
from engine.awake import command_for, keep_awake

HOLDER = "import os, sys; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); sys.stdin.read()"
FAILING = "import sys; sys.exit('cuInit: no device')"


def read_pid(path: Path) -> int:
    """Waits until it is there."""
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.01)
    return int(path.read_text())


def test_lives_until_it_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "pid"

    async def run() -> int:
        task = asyncio.create_task(keep_awake("cuda:1", [sys.executable, "-c", HOLDER, str(path)]))
        pid = await asyncio.to_thread(read_pid, path)
        os.kill(pid, 0)  # it is there
        task.cancel()
        await asyncio.wait([task])
        return pid

    pid = asyncio.run(asyncio.wait_for(run(), 60))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ([sys.executable, "-c", FAILING], "cuInit: no device"),
        (["/nowhere/to/be/found"], "No such file or directory"),
    ],
)
def test_is_tried_again_and_says_why_it_failed(
    command: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr("engine.awake.asyncio.sleep", pause)
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        asyncio.run(keep_awake("cuda:1", command))
    said = "cuda:1 cannot be kept awake, its links are slower for now: "
    assert [message.startswith(said) and reason in message for message in caplog.messages] == [True, True]
    assert waits == [awake.RETRY_S, awake.RETRY_S]


def test_the_command_names_the_gpu() -> None:
    assert command_for("cuda:3")[-2:] == ("--index", "3")
    assert command_for("cuda")[-2:] == ("--index", "0")
