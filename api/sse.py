"""Server-sent events in OpenAI's form, put together from bytes that are encoded once per stream.

A token costs one JSON encoding of its text; everything around it is the same for each chunk of a choice.
"""

from dataclasses import dataclass

import msgspec

DONE = b"data: [DONE]\n\n"
PING = b": waiting\n\n"

to_json = msgspec.json.Encoder().encode


def event(value: object) -> bytes:
    """One event that carries a JSON value."""
    return b"data: " + to_json(value) + b"\n\n"


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What all chunks of one stream begin with."""

    request_id: str
    object_name: str
    created_s: int
    model: str

    def encode(self) -> bytes:
        fields = {
            "id": self.request_id,
            "object": self.object_name,
            "created": self.created_s,
            "model": self.model,
        }
        return b"data: " + to_json(fields)[:-1] + b',"choices":['

    def usage_event(self, usage: dict[str, object]) -> bytes:
        """The last chunk of a stream with `include_usage`."""
        return self.encode() + b'],"usage":' + to_json(usage) + b"}\n\n"


class ChunkWriter:
    """Writes the chunks of one choice. `before` and `after` are the JSON on both sides of its text."""

    __slots__ = ("_head", "_plain_tail", "_tail", "_usage_null")

    def __init__(
        self, head: StreamHead, index: int, before: bytes, after: bytes, *, null_usage: bool
    ) -> None:
        self._head = head.encode() + b'{"index":%d,%s' % (index, before)
        self._tail = after + b',"logprobs":'
        self._usage_null = b',"usage":null' if null_usage else b""
        self._plain_tail = self._tail + b'null,"finish_reason":null}]' + self._usage_null + b"}\n\n"

    def text(self, text: str) -> bytes:
        """A chunk with nothing but text."""
        return self._head + to_json(text) + self._plain_tail

    def chunk(
        self,
        text: str,
        logprobs: object,
        finish_reason: str | None,
        usage: dict[str, object] | None,
    ) -> bytes:
        """A chunk with everything that one may carry."""
        end = self._usage_null if usage is None else b',"usage":' + to_json(usage)
        parts = (
            self._head,
            to_json(text),
            self._tail,
            to_json(logprobs),
            b',"finish_reason":',
            to_json(finish_reason),
            b"}]",
            end,
            b"}\n\n",
        )
        return b"".join(parts)
