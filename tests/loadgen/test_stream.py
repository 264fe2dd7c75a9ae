import pytest

from loadgen.plan import PlannedRequest
from loadgen.results import Counting, ErrorKind, Outcome
from loadgen.stream import RequestError, TokenStream
from tests.loadgen.server import DONE, event, token, usage_event

REQUEST = PlannedRequest(0, 2, 0.5, "t", 5, 9, {}, b"")


def chat(delta: dict[str, object], finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def test_counts_an_event_as_a_token_and_a_read_as_a_delivery() -> None:
    stream = TokenStream()
    assert stream.feed(token() + token(), 1.0) == 2
    assert stream.feed(token(finish="length") + usage_event(3) + DONE, 2.0) == 1
    stream.close(100)
    record = stream.record(REQUEST, outcome=Outcome.OK, sent_s=0.5, end_s=2.0, http_status=200)
    assert (record.chunk_s, record.chunk_tokens) == ([1.0, 2.0], [2, 1])
    assert (record.output_tokens, record.input_tokens, record.finish_reason) == (3, 5, "length")
    assert record.counted_by is Counting.USAGE
    assert record.ttft_s == 0.5


def test_the_role_and_the_end_are_no_tokens_but_text_held_back_is() -> None:
    stream = TokenStream()
    assert stream.feed(chat({"role": "assistant", "content": ""}), 1.0) == 0
    assert stream.feed(chat({"content": ""}), 2.0) == 1
    assert stream.feed(chat({"content": "é"}), 3.0) == 1
    assert stream.feed(chat({"reasoning_content": "hm"}), 4.0) == 1
    assert stream.feed(chat({"role": "assistant", "content": "x"}), 5.0) == 1
    assert stream.feed(chat({}, finish="stop"), 6.0) == 0
    stream.close(1)
    assert list(stream.chunk_s) == [2.0, 3.0, 4.0, 5.0]


def test_usage_in_each_event_counts_deliveries_exactly() -> None:
    stream = TokenStream()
    assert stream.feed(token(usage={"completion_tokens": 1}), 1.0) == 1
    assert stream.feed(token(usage={"completion_tokens": 5}), 2.0) == 4
    assert stream.feed(token(usage={"completion_tokens": 5}), 3.0) == 0
    assert stream.feed(token("", "length", {"completion_tokens": 7}) + usage_event(7) + DONE, 4.0) == 2
    record = stream.record(REQUEST, outcome=Outcome.OK, sent_s=0.0, end_s=4.0)
    assert (record.chunk_tokens, record.output_tokens) == ([1, 4, 2], 7)
    assert record.counted_by is Counting.EACH_USAGE


def test_usage_on_the_last_token_alone_corrects_only_the_total() -> None:
    stream = TokenStream()
    stream.feed(token(), 1.0)
    assert stream.feed(token(finish="length", usage={"completion_tokens": 8}), 2.0) == 1
    record = stream.record(REQUEST, outcome=Outcome.OK, sent_s=0.0, end_s=2.0)
    assert (record.chunk_tokens, record.output_tokens) == ([1, 1], 8)
    assert record.counted_by is Counting.USAGE


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"data: {not json}\n\n", ErrorKind.BAD_STREAM),
        (b'data: {"choices": 5}\n\n', ErrorKind.BAD_STREAM),
        (b'data: "\xff"\n\n', ErrorKind.BAD_STREAM),
        (event({"error": {"message": "out of pages"}}), ErrorKind.SERVER_ERROR),
    ],
)
def test_what_came_before_an_error_is_kept(data: bytes, kind: ErrorKind) -> None:
    stream = TokenStream()
    assert stream.feed(token() + data + token(), 1.0) == 1
    assert stream.error is not None
    assert stream.error.kind is kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [(token(), ErrorKind.CUT), (b"", ErrorKind.CUT), (b'{"id": 1}', ErrorKind.BAD_STREAM)],
)
def test_a_body_that_ends_early(data: bytes, kind: ErrorKind) -> None:
    stream = TokenStream()
    stream.feed(data, 1.0)
    with pytest.raises(RequestError) as caught:
        stream.close(len(data))
    assert caught.value.kind is kind
