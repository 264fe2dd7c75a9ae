"""Serving the application with Hypercorn's protocols on listening sockets of our own.

Hypercorn's own `serve` leaves two things open that we need: a shutdown that a reader who does not read
cannot hold up, and a way to close one connection at once. So the loop that accepts connections is ours.
"""

import asyncio
import socket

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as HypercornConfig
from hypercorn.typing import LifespanState
from starlette.applications import Starlette

BACKLOG = 4096
MAX_HEADER_BYTES = 64 * 1024
KEEP_ALIVE_S = 75.0


class PortError(Exception):
    """The address cannot be listened on; the message is one line for a person."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PortError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


class HttpServer:
    """Accepts connections on one socket and serves the application on them."""

    def __init__(self, app: Starlette, sock: socket.socket) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]
        self._sock = sock
        self._config = HypercornConfig()
        self._config.h11_max_incomplete_size = MAX_HEADER_BYTES
        self._config.keep_alive_timeout = KEEP_ALIVE_S
        self._config.include_server_header = False
        self._config.errorlog = "-"
        self._context = WorkerContext(None)
        self._connections: dict[asyncio.Task[None], asyncio.WriteTransport] = {}
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        port: int = self._sock.getsockname()[1]
        return port

    @property
    def num_connections(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Begin to accept."""
        self._server = await asyncio.start_server(self._serve_connection, sock=self._sock, backlog=BACKLOG)

    async def close(self, grace_s: float) -> None:
        """Stop accepting, let answers that are complete leave, then close every connection at once."""
        if self._server is not None:
            self._server.close()
        await self._context.terminated.set()  # ends idle connections
        if self._connections:
            await asyncio.wait(self._connections, timeout=grace_s)
        for transport in self._connections.values():
            transport.abort()
        if self._connections:
            await asyncio.wait(self._connections, timeout=grace_s)
        for task in self._connections:
            task.cancel()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer.transport
        state = LifespanState({"transport": writer.transport})
        try:
            await TCPServer(
                self._app, asyncio.get_running_loop(), self._config, self._context, state, reader, writer
            )
        finally:
            del self._connections[task]
