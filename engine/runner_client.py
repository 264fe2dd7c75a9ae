"""The engine's end of a runner: starts the process, speaks with it, and notices when it is gone."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence

import msgspec

from engine.memory.regions import receive_descriptors, send_descriptors
from engine.messages import Fault, FromRunner, Refused
from engine.wire import MessageStream

DEVICE_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # cuda:0 is the same GPU to CUDA and to NVML
_RUNNER_DEFAULTS = {
    **DEVICE_ORDER,
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # on CPU the cores are shared with engine and api: do not spin in barriers
}
EXIT_GRACE_S = 2.0  # less than what Procfile runners allow us


class RunnerClient:
    """One runner process. `run` returns when it is gone; whoever wants another makes another client."""

    def __init__(self, name: str, on_message: Callable[[FromRunner], None]) -> None:
        self.name = name
        self._on_message = on_message
        self._stream: MessageStream[FromRunner] | None = None
        self._descriptors: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def messages_sent(self) -> int:
        return self._stream.messages_sent if self._stream is not None else 0

    @property
    def messages_received(self) -> int:
        return self._stream.messages_received if self._stream is not None else 0

    async def run(self, first: msgspec.Struct) -> int:
        """Start the process, send it `first`, and deliver its messages until it exits.

        Returns the exit status. If cancelled, the process is asked to end, then killed.
        """
        ours, theirs = socket.socketpair()
        our_descriptors, their_descriptors = socket.socketpair()
        self._descriptors = our_descriptors
        closed = asyncio.Event()
        try:
            with theirs, their_descriptors:
                self._process = await self._spawn(theirs.fileno(), their_descriptors.fileno())

            def deliver(message: FromRunner) -> None:
                self._on_message(message)
                if isinstance(message, Fault | Refused):  # its last
                    closed.set()

            stream: MessageStream[FromRunner] = MessageStream(
                FromRunner, deliver, lambda _error: closed.set()
            )
            await asyncio.get_running_loop().create_unix_connection(lambda: stream, sock=ours)
            self._stream = stream
            stream.send(first)
            await closed.wait()
            stream.close()
            return await self._end(self._process)
        finally:
            our_descriptors.close()
            if self._stream is not None:
                self._stream.close()
            if self._process is not None:
                await self._end(self._process)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message; lost if the runner is gone, which `run` then reports."""
        if self._stream is not None:
            self._stream.send(message)

    def kill(self) -> None:
        """End the process at once, whatever it waits for; `run` then returns."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # gone since
                self._process.kill()

    def send_descriptors(self, descriptors: Sequence[int]) -> None:
        """Send the descriptors that belong to the `Attach` sent just before."""
        assert self._descriptors is not None
        with contextlib.suppress(OSError):  # a runner that is gone is reported by `run`
            send_descriptors(self._descriptors, descriptors)

    def receive_descriptors(self) -> list[int]:
        """Descriptors of the pool that the runner made; it sent them before its `Ready`."""
        assert self._descriptors is not None
        return receive_descriptors(self._descriptors)

    async def _spawn(self, fd: int, descriptors_fd: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "engine.model_runner",
            "--fd",
            str(fd),
            "--pools-fd",
            str(descriptors_fd),
            pass_fds=(fd, descriptors_fd),
            env=_RUNNER_DEFAULTS | os.environ,
        )

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """It has said its last or closed its socket, so it is exiting; see to it that it does, whatever its
        device waits for.

        Returns the exit status.
        """
        try:
            async with asyncio.timeout(EXIT_GRACE_S):
                return await process.wait()
        except TimeoutError:
            self.kill()
            return await process.wait()
