"""Chunks that are put together from bytes are the JSON that they should be."""

import json

from hypothesis import given
from hypothesis import strategies as st

from api.sse import ChunkWriter, StreamHead

HEAD = StreamHead("cmpl-1", "text_completion", 5, 'odd "name"')


def value_of(chunk: bytes) -> dict[str, object]:
    assert chunk.startswith(b"data: ")
    assert chunk.endswith(b"\n\n")
    assert chunk.count(b"\n") == 2
    value: dict[str, object] = json.loads(chunk[6:])
    return value


@given(text=st.text(), index=st.integers(0, 5000), null_usage=st.booleans())
def test_a_text_chunk(text: str, index: int, null_usage: bool) -> None:
    writer = ChunkWriter(HEAD, index, b'"delta":{"content":', b"}", null_usage=null_usage)
    choice = {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    whole = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 5,
        "model": 'odd "name"',
        "choices": [choice],
    }
    assert value_of(writer.text(text)) == whole | ({"usage": None} if null_usage else {})
    assert writer.chunk(text, None, None, None) == writer.text(text)


@given(text=st.text(), reason=st.sampled_from([None, "stop"]), usage=st.none() | st.just({"total_tokens": 3}))
def test_a_full_chunk(text: str, reason: str | None, usage: dict[str, object] | None) -> None:
    writer = ChunkWriter(HEAD, 0, b'"text":', b"", null_usage=False)
    value = value_of(writer.chunk(text, {"tokens": [text]}, reason, usage))
    assert value["choices"] == [
        {"index": 0, "text": text, "logprobs": {"tokens": [text]}, "finish_reason": reason}
    ]
    assert value.get("usage") == usage


def test_the_usage_event() -> None:
    assert value_of(HEAD.usage_event({"total_tokens": 1}))["choices"] == []
