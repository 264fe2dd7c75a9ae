"""How the chunks of a streamed answer reach the connection.

Hypercorn's layers cost more than everything else that is done for a token, so over HTTP/1.1 a chunk is
framed here and written to the connection as it is. They still write the head before and the end after it.
"""

import asyncio
from typing import Protocol

from starlette.types import Scope, Send

from api.connection import ClientGoneError


class BodyWriter(Protocol):
    """Writes one stream's body."""

    async def write(self, data: bytes) -> None:
        """Returns when the reader has taken enough of it. Raises ClientGoneError."""

    def cut(self) -> None:
        """End the stream at once, whatever is still to be sent."""


class ChunkedWriter:
    """HTTP/1.1: the connection is this stream's own until its answer ends."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        try:
            await self._writer.drain()
        except ConnectionError:
            raise ClientGoneError from None

    def cut(self) -> None:
        self._writer.transport.abort()


class AsgiWriter:
    """Any other version: HTTP/2 has many streams on one connection, HTTP/1.0 has no chunks."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._task = asyncio.current_task()

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def cut(self) -> None:
        assert self._task is not None
        self._task.cancel()


def body_writer(scope: Scope, send: Send) -> BodyWriter:
    """To be called in the task that serves the request, and used once the head was sent."""
    writer: asyncio.StreamWriter | None = scope["state"].get("writer")
    if scope["http_version"] == "1.1" and writer is not None:
        return ChunkedWriter(writer)
    return AsgiWriter(send)
