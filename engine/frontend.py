"""The engine's door: a Unix socket on which api processes come and go."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.messages import FromApi, Hello
from engine.wire import MessageStream

MAX_UNSENT_BYTES = 64 * 2**20  # may wait for one api process, be it as slow as it likes: thousands of answers
MAX_BACKLOG_BYTES = 2**30  # and so much for one that reads: it has come back to thousands of long answers
STALL_S = 5.0  # without reading a byte while more than `MAX_UNSENT_BYTES` wait

log = logging.getLogger("fairslice.engine")


class SocketTaken(Exception):
    """No socket can be had there; mostly another engine has it. One line for the operator."""


class ApiConnection:
    """One connection of an api process; it has said who it is once `api_id` is set."""

    def __init__(self, frontend: "Frontend") -> None:
        self.api_id: str | None = None
        self._frontend = frontend
        self._seen_bytes, self._seen_s = 0, 0.0  # what had left, when that was seen to grow last
        self.stream: MessageStream[FromApi] = MessageStream(FromApi, self._on_message, self._on_close)

    def is_stuck(self, now_s: float) -> bool:
        """Whether too much waits for a process that does not read. To be asked before each message."""
        waiting = self.stream.unsent_bytes
        left = self.stream.bytes_queued - waiting
        if waiting <= MAX_UNSENT_BYTES or left > self._seen_bytes:
            self._seen_bytes, self._seen_s = left, now_s
        return waiting > MAX_BACKLOG_BYTES or now_s - self._seen_s > STALL_S

    def _on_message(self, message: FromApi) -> None:
        if isinstance(message, Hello):
            self.api_id = message.api_id
        self._frontend.dispatch(self, message)

    def _on_close(self, error: Exception | None) -> None:
        if error is not None:
            log.warning("connection of api %s broke: %s", self.api_id, error)
        self._frontend.closed(self)


class Frontend:
    """Listens, and keeps the connection of each api process. An api that stays away for `reconnect_s` has
    lost its prompts: `on_gone` is told its id."""

    def __init__(
        self,
        reconnect_s: float,
        on_message: Callable[[str, FromApi], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self._reconnect_s = reconnect_s
        self._on_message = on_message
        self._on_gone = on_gone
        self._connections: dict[str, ApiConnection] = {}
        self._absent: dict[str, asyncio.TimerHandle] = {}

    async def listen(self, path: str) -> asyncio.Server:
        """Start to accept connections at `path`, which only this user may use. Raises SocketTaken."""
        if _answers(path):
            raise SocketTaken(f"engine.socket: another engine listens on {path}")
        loop = asyncio.get_running_loop()
        try:
            _clear(Path(path))
            server = await loop.create_unix_server(lambda: ApiConnection(self).stream, path)
            os.chmod(path, 0o600)
        except OSError as error:
            raise SocketTaken(f"engine.socket: cannot listen on {path}: {error}") from None
        return server

    def send(self, api_id: str, message: msgspec.Struct) -> None:
        """Send to an api process; if it is away, it asks for what it missed when it is back. One that does
        not read is sent away once too much waits for it: when it reads again it finds the end of the
        connection, and comes back."""
        connection = self._connections.get(api_id)
        if connection is None:
            return
        if not connection.is_stuck(asyncio.get_running_loop().time()):
            connection.stream.send(message)
            return
        waiting_mib = connection.stream.unsent_bytes >> 20
        log.warning("api %s does not read: %d MiB wait for it; closing", api_id, waiting_mib)
        connection.stream.abort()
        self.closed(connection)

    def broadcast(self, message: msgspec.Struct) -> None:
        for api_id in list(self._connections):
            self.send(api_id, message)

    def dispatch(self, connection: ApiConnection, message: FromApi) -> None:
        """Called by a connection. What comes before a Hello is not for us."""
        api_id = connection.api_id
        if api_id is None:
            connection.stream.close()
            return
        if isinstance(message, Hello):
            timer = self._absent.pop(api_id, None)
            if timer is not None:
                timer.cancel()
            self._connections[api_id] = connection
        self._on_message(api_id, message)

    def closed(self, connection: ApiConnection) -> None:
        """Called by a connection."""
        api_id = connection.api_id
        if api_id is None or self._connections.get(api_id) is not connection:
            return
        del self._connections[api_id]
        loop = asyncio.get_running_loop()
        self._absent[api_id] = loop.call_later(self._reconnect_s, self._give_up, api_id)

    def _give_up(self, api_id: str) -> None:
        del self._absent[api_id]
        self._on_gone(api_id)


def _clear(path: Path) -> None:
    """Make room for a socket. One of an engine that is gone is removed; anything else there is not ours."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_socket():
        path.unlink()


def _answers(path: str) -> bool:
    """Whether somebody accepts connections at this path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
