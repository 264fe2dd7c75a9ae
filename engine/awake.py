"""Keeps GPUs awake that lend their memory and do not compute: see `engine.model_runner.awake`."""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from engine.runner_client import DEVICE_ORDER

log = logging.getLogger("fairslice.engine")

RETRY_S = 60.0


def command_for(device: str) -> Sequence[str]:
    """What keeps `device`, a GPU, awake for as long as its stdin is open."""
    return sys.executable, "-m", "engine.model_runner.awake", "--index", device.partition(":")[2] or "0"


async def keep_awake(device: str, command: Sequence[str]) -> None:
    """Run `command` for the device, again whenever it ends, until cancelled; its stdin closes when this
    process dies. A GPU that sleeps is slower, nothing more: so a failure is a warning."""
    while True:
        try:
            reason = await _hold(command)
        except OSError as error:
            reason = str(error)  # no process or descriptor is to be had
        log.warning("%s cannot be kept awake, its links are slower for now: %s", device, reason)
        await asyncio.sleep(RETRY_S)


async def _hold(command: Sequence[str]) -> str:
    """Run `command` until it ends. Returns why it did. Raises OSError if it cannot be started."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=DEVICE_ORDER | os.environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        complaint = (await process.stderr.read()).decode(errors="replace").strip()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return complaint.splitlines()[-1] if complaint else f"exit status {process.returncode}"
