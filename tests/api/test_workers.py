"""The parent of the api processes, with small programs in their place."""

import asyncio
import logging
import socket
import sys
from pathlib import Path

import pytest

from api.workers import Workers
from engine.restarts import MAX_QUICK_ENDS

COUNT = 'import sys; open(sys.argv[1], "a").write("x"); '

WAIT_OR_FAIL = """
import pathlib, signal, time
ready, told = (pathlib.Path({folder!r}) / name for name in ("ready", "told"))
if {good!r} in sys.argv:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ready.touch()
    signal.sigwait([signal.SIGTERM])
    told.touch()
else:
    while not ready.exists():
        time.sleep(0.01)
    raise SystemExit(7)
"""


def workers(program: str, counted_in: Path, sockets: list[socket.socket]) -> Workers:
    command = [sys.executable, "-c", COUNT + program, str(counted_in)]
    return Workers(command, sockets, restart_s=0.001, drain_s=5.0)


def test_a_worker_that_fails_at_every_start_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    starts = tmp_path / "starts"
    with socket.socket() as sock:
        assert asyncio.run(workers("raise SystemExit(7)", starts, [sock]).run()) == 1
    assert starts.read_text() == "x" * MAX_QUICK_ENDS
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert failures == [f"worker 0 ended {MAX_QUICK_ENDS} times in a row soon after its start; giving up"]


def test_the_others_are_ended_when_one_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as good, socket.socket() as bad:
        program = WAIT_OR_FAIL.format(good=f"--fd={good.fileno()}", folder=str(tmp_path))
        assert asyncio.run(workers(program, tmp_path / "starts", [good, bad]).run()) == 1
    assert (tmp_path / "starts").read_text() == "x" * (1 + MAX_QUICK_ENDS)
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize("status", [0, 2])
def test_a_worker_that_ended_for_good_is_not_started_again(status: int, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with socket.socket() as sock:
        assert asyncio.run(workers(f"raise SystemExit({status})", starts, [sock]).run()) == status
    assert starts.read_text() == "x"
