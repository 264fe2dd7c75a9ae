from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.sse import MAX_LINE_BYTES, BadStreamError, SseParser

payloads = st.binary(max_size=40).filter(lambda data: b"\n" not in data and b"\r" not in data)
junk = st.sampled_from([b"", b": comment", b"id: 7", b"event: x", b"retry: 5", b"nonsense"])


@given(
    events=st.lists(st.tuples(st.lists(payloads, min_size=1, max_size=3), junk), max_size=8),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    space=st.sampled_from([b"", b" "]),
    cuts=st.lists(st.integers(0, 600), max_size=12),
)
def test_events_come_out_however_the_bytes_are_split(
    events: list[tuple[list[bytes], bytes]], newline: bytes, space: bytes, cuts: list[int]
) -> None:
    stream = b""
    for lines, other in events:
        stream += (other + newline) if other else b""
        stream += b"".join(b"data:" + space + line + newline for line in lines) + newline
    parser, got = SseParser(), []
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        got += parser.feed(stream[start:end])
    expected = [b"\n".join(lines) for lines, _ in events]
    if not space:  # one space after the colon belongs to the field, not to its data
        expected = [b"\n".join(line.removeprefix(b" ") for line in lines) for lines, _ in events]
    assert got == expected


def test_an_event_without_its_end_is_kept_back() -> None:
    parser = SseParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [b"a"]


def test_a_line_without_end_is_refused() -> None:
    parser = SseParser()
    assert parser.feed(b"x" * MAX_LINE_BYTES) == []
    with pytest.raises(BadStreamError):
        parser.feed(b"x")
