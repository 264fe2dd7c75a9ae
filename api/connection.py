"""The receiving side of one HTTP request: its body, bounded, and the news that the client is gone.

Only one place may call `receive`. It has to go on doing so while an answer is sent, even to an upload that
was refused half-way: the server's queue of body parts is short, and the end of the answer waits for a place
in it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import body_late, body_too_large

LINGER_S = 1.0
BODY_S = 60.0  # for a whole body to come


class ClientGoneError(Exception):
    """The client closed the connection: there is nobody to answer."""


class Connection:
    """Wraps `receive` of one request."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._drain: asyncio.Task[None] | None = None
        self.is_body_read = False
        self.is_gone = False

    async def read_body(self, declared_bytes: str | None, limit_bytes: int) -> bytes:
        """The whole body. Raises ApiError: 413 as soon as it is known to be too large, 408 when it does not
        come; ClientGoneError."""
        if declared_bytes is not None and declared_bytes.isdecimal() and int(declared_bytes) > limit_bytes:
            raise body_too_large(limit_bytes)
        try:
            async with asyncio.timeout(BODY_S):
                return await self._read_parts(limit_bytes)
        except TimeoutError:
            raise body_late(BODY_S) from None

    async def _read_parts(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while not self.is_body_read:
            part = (await self.receive()).get("body", b"")
            if self.is_gone:
                raise ClientGoneError
            size += len(part)
            if size > limit_bytes:
                raise body_too_large(limit_bytes)
            parts.append(part)
        return b"".join(parts)

    async def receive(self) -> Message:
        """The next message, noted."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
        elif not message.get("more_body", False):
            self.is_body_read = True
        return message

    @asynccontextmanager
    async def watched(self, on_gone: Callable[[], None]) -> AsyncIterator[None]:
        """Call `on_gone` if the client goes away before the block is left."""
        watcher = asyncio.create_task(self._wait_gone(on_gone))
        try:
            yield
        finally:
            await _cancelled(watcher)

    def discard_rest(self) -> None:
        """From now on throw away what comes of the body: the answer does not wait for it."""
        if not self.is_body_read and self._drain is None:
            self._drain = asyncio.create_task(self._discard())

    async def linger(self) -> None:
        """Give a client in the middle of an upload some time to read the answer: closing a connection with
        unread data in it would destroy the answer on its way."""
        if self._drain is not None:
            await asyncio.wait([self._drain], timeout=LINGER_S)

    async def close(self) -> None:
        if self._drain is not None:
            await _cancelled(self._drain)

    async def _discard(self) -> None:
        while not self.is_body_read and not self.is_gone:
            await self.receive()

    async def _wait_gone(self, on_gone: Callable[[], None]) -> None:
        while not self.is_gone:
            await self.receive()
        on_gone()


class ConnectionMiddleware:
    """Puts a `Connection` in `request.state.connection`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = Connection(receive)
        scope.setdefault("state", {})["connection"] = connection

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                connection.discard_rest()
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last and not connection.is_body_read:
                await send({**message, "more_body": True})
                await connection.linger()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            with suppress(ClientGoneError):
                await self._app(scope, connection.receive, answer)
        finally:
            await connection.close()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
