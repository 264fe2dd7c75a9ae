"""The engine's end of a runner, with scripts as runners."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from engine import runner_client
from engine.messages import Fault, FromRunner, Progress, Refused, Shutdown
from engine.runner_client import RunnerClient
from engine.wire import encode_frame

HEAD = """#!{python}
import socket, sys, time
sys.path.insert(0, {root!r})
from engine.messages import Progress
from engine.wire import encode_frame
engine = socket.socket(fileno=int(sys.argv[4]))
engine.recv(65536)
"""


def run(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[FromRunner]]:
    """Exit status and messages of a runner that does this once it was sent something."""
    script = folder / "runner"
    root = str(Path(runner_client.__file__).parent.parent)
    script.write_text(HEAD.format(python=sys.executable, root=root) + body)
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    messages: list[FromRunner] = []
    status = asyncio.run(RunnerClient("cpu", messages.append).run(Shutdown()))
    return status, messages


def test_what_a_runner_says_is_delivered_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Progress(stage="loading")
    body = f'engine.sendall(encode_frame(Progress(stage="{said.stage}")))\nsys.exit(7)\n'
    assert run(tmp_path, body, monkeypatch) == (7, [said])


def test_a_runner_that_hangs_as_it_ends_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_client, "EXIT_GRACE_S", 0.05)
    assert run(tmp_path, "engine.close()\ntime.sleep(600)\n", monkeypatch) == (-signal.SIGKILL, [])


@pytest.mark.parametrize("last", [Fault(reason="a bug", pool_trusted=True), Refused(reason="too little")])
def test_a_runner_that_has_said_its_last_and_hangs_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: FromRunner
) -> None:
    monkeypatch.setattr(runner_client, "EXIT_GRACE_S", 0.05)
    body = f"engine.sendall({encode_frame(last)!r})\ntime.sleep(600)\n"
    assert run(tmp_path, body, monkeypatch) == (-signal.SIGKILL, [last])
