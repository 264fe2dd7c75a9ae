"""Answers as server-sent events, and what happens to readers that do not read.

Tokens that come while a chunk is being sent share the next one, so a slow reader gets fewer, larger chunks.
One that does not read at all is cut off: nothing but its own stream waits for it.
"""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.body_writer import BodyWriter, body_writer
from api.choices import Choice, Piece
from api.connection import ClientGoneError, Connection
from api.errors import ApiError, internal_error
from api.generation import Generation, Generations
from api.metrics import Metrics
from api.sse import PING, event

logger = logging.getLogger(__name__)

PING_S = 15.0  # a comment is sent when there was nothing to say for this long
STALL_S = 30.0  # a send that takes longer ends the stream
MAX_BEHIND_TOKENS = 8192  # so does a reader that is this far behind while a send is stuck
WATCH_S = 0.5

SSE_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class StreamFormat(Protocol):
    """How one kind of endpoint writes its chunks."""

    def opening(self) -> bytes: ...

    def piece(self, choice: Choice, piece: Piece) -> bytes: ...

    def closing(self) -> bytes: ...


class EventStream(Response):
    """The answer to one streaming request. It owns the generation and finishes it."""

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        stream_format: StreamFormat,
        generations: Generations,
        open_streams: "OpenStreams",
        headers: dict[str, str],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers(SSE_HEADERS | headers)
        del self.headers["content-length"]
        self.generation = generation
        self.sending_since_s: float | None = None
        self.last_sent_s = time.monotonic()
        self._format = stream_format
        self._generations = generations
        self._open_streams = open_streams
        self._ping = False
        self._writer: BodyWriter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"]["connection"]
        self._writer = body_writer(scope, send)
        self._open_streams.add(self)
        try:
            async with connection.watched(self.generation.client_gone):
                await send(
                    {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
                await self._write(self._format.opening())
                await self._write_pieces()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientGoneError:
            logger.debug("the client of %s is gone", self.generation.plan.submit.request_id)
        finally:
            self._open_streams.discard(self)
            self._generations.finish(self.generation)

    def ping(self) -> None:
        """Send a comment, so that nobody on the way takes the connection for dead."""
        self._ping = True
        self.generation.nudge()

    def cut(self) -> None:
        """Close the connection of a reader that does not read."""
        self.generation.client_gone()
        if self._writer is not None:
            self._writer.cut()

    async def _write_pieces(self) -> None:
        generation, write = self.generation, self._format.piece
        try:
            while not generation.is_done:
                await generation.changed()
                chunks = [write(choice, piece) for choice, piece in generation.advance()]
                if generation.is_done:
                    chunks.append(self._format.closing())
                if chunks:
                    await self._write(b"".join(chunks))
                elif self._ping:
                    await self._write(PING)
                self._ping = False
            await asyncio.sleep(0)  # many may end in one step: all last tokens go before what ends a stream
        except ApiError as error:
            await self._write(event(error.body()))
        except ClientGoneError:
            raise
        except Exception:
            logger.exception("a stream failed")
            await self._write(event(internal_error().body()))

    async def _write(self, chunk: bytes) -> None:
        assert self._writer is not None
        if chunk:
            self.sending_since_s = self.last_sent_s = time.monotonic()
            await self._writer.write(chunk)
            self.sending_since_s = None


class OpenStreams:
    """All streams being sent; `watch` looks after the silent and the stuck ones."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._streams: set[EventStream] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[EventStream]:
        return iter(self._streams)

    def add(self, stream: EventStream) -> None:
        self._streams.add(stream)
        self._metrics.open_streams.set(len(self._streams))

    def discard(self, stream: EventStream) -> None:
        self._streams.discard(stream)
        self._metrics.open_streams.set(len(self._streams))

    async def watch(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            for stream in list(self._streams):
                self._look_at(stream, time.monotonic())

    def cut_stuck(self) -> None:
        """Cut off every stream whose reader is not reading at this moment."""
        for stream in list(self._streams):
            if stream.sending_since_s is not None:
                stream.cut()

    def _look_at(self, stream: EventStream, now_s: float) -> None:
        since_s = stream.sending_since_s
        if since_s is None:
            if now_s - stream.last_sent_s > PING_S:
                stream.ping()
            return
        behind = stream.generation.undelivered_tokens
        if now_s - since_s > STALL_S or behind > MAX_BEHIND_TOKENS:
            self._metrics.cut_streams.inc()
            logger.warning(
                "cut off %s: its reader took nothing for %.0f s and is %d tokens behind",
                stream.generation.plan.submit.request_id,
                now_s - since_s,
                behind,
            )
            stream.cut()
