"""The supervisor, with small programs in place of the engine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.restarts import MAX_QUICK_ENDS

SUPERVISE = """
import asyncio, sys
import engine.supervisor
from engine.supervisor import Supervisor

async def main():
    engine.supervisor.KILL_AFTER_S = 0.1
    command = [sys.executable, "-c", sys.argv[1]]
    return await Supervisor(command, restart_s=0.001, drain_s=float(sys.argv[2])).run()

sys.exit(asyncio.run(main()))
"""
FAIL = 'open("starts", "a").write("x"); raise SystemExit(7)'
IGNORE = """
import signal, os, time
signal.signal(signal.SIGTERM, lambda number, frame: print("told", flush=True))
print(os.getpid(), flush=True)
while True:
    time.sleep(1)
"""


def supervise(program: str, folder: Path, drain_s: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, program, str(drain_s)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_an_engine_that_fails_at_every_start_is_given_up(tmp_path: Path) -> None:
    with supervise(FAIL, tmp_path) as process:
        _, errors = process.communicate()
    assert process.returncode == 1
    assert (tmp_path / "starts").read_text() == "x" * MAX_QUICK_ENDS
    assert errors.count("ended with status 7; starting it again") == MAX_QUICK_ENDS - 1
    assert "giving up" in errors.splitlines()[-1]


@pytest.mark.parametrize("status", [0, 2])
def test_an_engine_that_ended_for_good_is_not_started_again(status: int, tmp_path: Path) -> None:
    with supervise(f"raise SystemExit({status})", tmp_path) as process:
        assert process.communicate()[1] == ""
    assert process.returncode == status


@pytest.mark.parametrize(("drain_s", "num_signals"), [(0.0, 1), (600.0, 2)])
def test_an_engine_that_does_not_end_is_killed(drain_s: float, num_signals: int, tmp_path: Path) -> None:
    with supervise(IGNORE, tmp_path, drain_s) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        for _ in range(num_signals):
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "told\n"
        _, errors = process.communicate()
    assert process.returncode == 0
    assert "killing it" in errors
    assert has_ended(child)
