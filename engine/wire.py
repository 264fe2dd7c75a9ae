"""Frames on a stream socket: four bytes of length, little-endian, then one message in MessagePack.

`MessageStream` is the asyncio end (api and engine); `MessagePipe` is the blocking end (runner), which looks
for messages without waiting between two steps.
"""

import asyncio
import select
import socket
import struct
from array import array
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import msgspec

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 1 << 30

Incoming = TypeVar("Incoming")


def _to_bytes(pages: object) -> bytes:
    """How what MessagePack does not know goes over the wire."""
    if isinstance(pages, array):
        return pages.tobytes()
    raise NotImplementedError(f"a {type(pages).__name__} has no form on the wire")


def _from_bytes(kind: type, data: object) -> object:
    """The opposite: both ends are processes of one machine. Raises ValueError."""
    if kind is object:  # whatever it may be, as in what an engine says of its state
        return data
    assert kind is array, f"a {kind.__name__} has no form on the wire"
    if not isinstance(data, bytes):
        raise ValueError(f"numbers of pages as {type(data).__name__}")
    pages = array("i")
    pages.frombytes(data)
    return pages


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_bytes)


class ProtocolError(Exception):
    """The peer sent something that is not a frame of a message we accept."""


def encode_frame(message: msgspec.Struct) -> bytes:
    """The bytes of one message on the wire."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload


class FrameReader(Generic[Incoming]):
    """Cuts a byte stream into messages of one union type."""

    def __init__(self, accepts: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(
            accepts, dec_hook=_from_bytes
        )
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Incoming]:
        """Take bytes in, give whole messages out. Raises ProtocolError."""
        self._buffer += data
        messages: list[Incoming] = []
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer, start)
            if size > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = start + LENGTH.size + size
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + LENGTH.size : end])
            start = end
            try:
                messages.append(self._decoder.decode(payload))
            except msgspec.MsgspecError as error:
                raise ProtocolError(f"not a message that is expected here: {error}") from None
        del self._buffer[:start]
        return messages


class MessageStream(asyncio.Protocol, Generic[Incoming]):
    """The asyncio end of a connection. Messages sent in one turn of the loop leave in one write."""

    def __init__(
        self,
        accepts: object,
        on_message: Callable[[Incoming], None],
        on_close: Callable[[Exception | None], None],
    ) -> None:
        self._reader: FrameReader[Incoming] = FrameReader(accepts)
        self._on_message = on_message
        self._on_close = on_close
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._outgoing_bytes = 0
        self.bytes_queued = 0  # since the start
        self.messages_sent = 0
        self.messages_received = 0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not made room for."""
        waiting = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return waiting + self._outgoing_bytes

    def send(self, message: msgspec.Struct) -> None:
        """Queue a message. On a closed connection it is dropped: the peer learns what it missed when it
        comes back."""
        if not self.is_open:
            return
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        frame = encode_frame(message)
        self._outgoing.append(frame)
        self._outgoing_bytes += len(frame)
        self.bytes_queued += len(frame)
        self.messages_sent += 1

    def close(self) -> None:
        """Send what is queued, then close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once; what is queued is lost."""
        self._drop_outgoing()
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
        self._drop_outgoing()

    def _drop_outgoing(self) -> None:
        self._outgoing.clear()
        self._outgoing_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not registered as such

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._reader.feed(data):
                self.messages_received += 1
                self._on_message(message)
        except ProtocolError as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._on_close(exc)


class MessagePipe(Generic[Incoming]):
    """The blocking end of a connection."""

    def __init__(self, sock: socket.socket, accepts: object) -> None:
        self._socket = sock
        self._reader: FrameReader[Incoming] = FrameReader(accepts)
        sock.setblocking(True)

    def send(self, message: msgspec.Struct) -> None:
        """Send one message. Raises OSError when the peer is gone."""
        self._socket.sendall(encode_frame(message))

    def receive(self, timeout_s: float | None = 0.0) -> list[Incoming]:
        """All messages that are there; wait up to `timeout_s` for the first (None: for ever).

        Raises EOFError when the peer has closed, ProtocolError.
        """
        messages: list[Incoming] = []
        while select.select([self._socket], [], [], 0.0 if messages else timeout_s)[0]:
            data = self._socket.recv(1 << 20)
            if not data:
                if messages:  # the next call will find the end again
                    break
                raise EOFError("the peer closed the connection")
            messages.extend(self._reader.feed(data))
            if not messages and timeout_s == 0.0:
                timeout_s = None  # part of a frame came: its rest is on the way
        return messages
