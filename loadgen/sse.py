"""Server-sent events, cut from bytes by hand: at ten thousand events a second every call counts."""

MAX_LINE_BYTES = 1 << 20


class BadStreamError(Exception):
    """The bytes are not what an OpenAI-compatible server streams."""


class SseParser:
    """Feeds on the body of a response, however it was split, and yields the data of its events.

    Lines end in LF or CRLF. Comments and fields other than `data` are passed over, as the standard asks.
    """

    __slots__ = ("_data", "_tail")

    def __init__(self) -> None:
        self._tail = b""  # a line whose end has not come
        self._data: list[bytes] = []  # data lines of an event whose end has not come

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that ends in `chunk`."""
        if self._tail:
            chunk = self._tail + chunk
        lines = chunk.split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) > MAX_LINE_BYTES:
            raise BadStreamError(f"a line of more than {MAX_LINE_BYTES} bytes")
        events: list[bytes] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and self._data:
                events.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
        return events
