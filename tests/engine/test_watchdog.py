"""The watchdog, in a process of its own: what it is for ends it."""

import signal
import subprocess
import sys
from pathlib import Path

STUCK = """
from engine.watchdog import feed, watch

def spin():
    while True:
        pass

watch()
feed(0.01)
spin()
"""
FED = """
import time
from engine.watchdog import feed, watch

watch()
for _ in range(10):
    feed(0.2)
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
print("done")
"""


def run(program: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)


def test_a_process_that_is_stuck_says_where_and_ends() -> None:
    done = run(STUCK)
    assert done.returncode == -signal.SIGPROF
    assert "in spin" in done.stderr


def test_one_that_goes_on_is_left_alone() -> None:
    done = run(FED)
    assert (done.returncode, done.stdout) == (0, "done\n")
