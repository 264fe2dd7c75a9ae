"""Serving the application with Hypercorn's protocols on listening sockets of our own.

Hypercorn's own `serve` leaves two things open that we need: a shutdown that a reader who does not read
cannot hold up, and a way to close one connection at once. So the loop that accepts connections is ours.
"""

import asyncio
import socket
from itertools import chain

import h11
import msgspec
from h2.exceptions import ProtocolError
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config as HypercornConfig
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import LifespanState
from starlette.applications import Starlette

from api.errors import ApiError
from api.request_log import RequestLog

BACKLOG = 4096
MAX_HEADER_BYTES = 64 * 1024
KEEP_ALIVE_S = 75.0
ABORT_S = 1.0  # for the tasks of connections that were closed at once


class PortError(Exception):
    """The address cannot be listened on; the message is one line for a person."""


def listen(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """`count` listening sockets on one address, among which the kernel spreads connections.

    Raises PortError, also where another server of this user shares its port in the same way.
    """
    sockets = [_bound(host, port, shared=False)]
    if count > 1:
        port = sockets.pop().getsockname()[1]  # closed again: it only showed that the port is free
        sockets = [_bound(host, port, shared=True) for _ in range(count)]
    for sock in sockets:
        sock.setblocking(False)
    return sockets


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PortError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return sock


class _H11(H11Protocol):
    """Answers what is no HTTP, or has too much of it before the body, as we answer every error."""

    async def _send_error_response(self, status_code: int) -> None:
        message = "The request is not valid HTTP"
        if status_code == 431:
            message = f"The headers are over the limit of {MAX_HEADER_BYTES} bytes"
        body = msgspec.json.encode(ApiError(status_code, message, code="invalid_http").body())
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        own = self.config.response_headers("h11")
        await self._send_h11_event(h11.Response(status_code=status_code, headers=list(chain(headers, own))))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class _H2(H2Protocol):
    """Holds the writer of a stream back until its reader takes something. Hypercorn lets it go on after
    every attempt to send, also one that could send nothing, and keeps what it writes."""

    async def _send_data(self, stream_id: int) -> None:
        if stream_id in self.stream_buffers and self._is_window_shut(stream_id):
            self.priority.block(stream_id)
        else:
            await super()._send_data(stream_id)

    def _is_window_shut(self, stream_id: int) -> bool:
        if not self.stream_buffers[stream_id].buffer:
            return False
        try:
            window: int = self.connection.local_flow_control_window(stream_id)
        except ProtocolError:
            return False  # the stream is gone, which Hypercorn handles
        return window <= 0


class _ProtocolWrapper(ProtocolWrapper):
    """Chooses between our variants of Hypercorn's protocols where it would choose between its own."""

    @property
    def protocol(self) -> H11Protocol | H2Protocol:
        return self._protocol

    @protocol.setter
    def protocol(self, chosen: H11Protocol | H2Protocol) -> None:
        kind = _H2 if isinstance(chosen, H2Protocol) else _H11
        self._protocol: H11Protocol | H2Protocol = kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.state,
            self.ssl,
            self.client,
            self.server,
            self.send,
        )


class _TCPServer(TCPServer):
    """Hypercorn's server of one connection, with our protocols."""

    async def _read_data(self) -> None:
        wrapper = self.protocol
        self.protocol = _ProtocolWrapper(
            wrapper.app,
            wrapper.config,
            wrapper.context,
            wrapper.task_group,
            wrapper.state,
            wrapper.ssl,
            wrapper.client,
            wrapper.server,
            wrapper.send,
        )
        await super()._read_data()


class HttpServer:
    """Accepts connections on one socket and serves the application on them."""

    def __init__(self, app: Starlette, sock: socket.socket) -> None:
        self._app = ASGIWrapper(RequestLog(app))  # type: ignore[arg-type]
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
            await asyncio.wait(self._connections, timeout=ABORT_S)
        for task in self._connections:
            task.cancel()

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer.transport
        state = LifespanState({"writer": writer})
        try:
            await _TCPServer(
                self._app, asyncio.get_running_loop(), self._config, self._context, state, reader, writer
            )
        finally:
            del self._connections[task]
