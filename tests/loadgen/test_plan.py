import random

import msgspec
import pytest

from loadgen.arrivals import ClosedLoop, Constant, Poisson
from loadgen.plan import BodyMaker, Endpoint, PlannedRequest, RequestMaker, Shape, schedule
from loadgen.prompts import PromptMaker, TokenIds
from loadgen.tenants import Identity, parse_tenants
from loadgen.traces import TraceRow

ROWS = [TraceRow(line=i + 2, arrival_s=float(i), input_tokens=3, output_tokens=4) for i in range(10)]
BODIES = BodyMaker("m", Endpoint.COMPLETIONS, temperature=0.0, ignore_eos=True)


def plan(arrivals: Poisson | Constant | ClosedLoop, duration_s: float | None = None) -> list[PlannedRequest]:
    maker = RequestMaker(PromptMaker(0, TokenIds()), BODIES, Identity.parse("user", []))
    sendings = schedule(ROWS, arrivals, parse_tenants("round-robin:2"), 2, duration_s)
    return [maker.make(sending) for sending in sendings]


@pytest.mark.parametrize(
    ("tokens_in", "tokens_out", "expected"),
    [(9000, 5, (6000, 5)), (10, 1, (10, 2)), (10, 1500, (10, 1000)), (0, 0, (1, 2))],
)
def test_shape_cuts_and_raises(tokens_in: int, tokens_out: int, expected: tuple[int, int]) -> None:
    row = Shape(max_input=6000, output_range=(2, 1000)).apply(TraceRow(2, 0.0, tokens_in, tokens_out))
    assert (row.input_tokens, row.output_tokens) == expected


def test_without_limits_a_row_still_asks_for_something() -> None:
    row = Shape().apply(TraceRow(2, 0.0, 0, 0))
    assert (row.input_tokens, row.output_tokens) == (1, 1)


def test_requests_carry_all_that_is_sent() -> None:
    requests = plan(Poisson(16.0))
    source = random.Random(2)
    assert requests[0].at_s == source.expovariate(16.0)
    assert [request.row for request in requests] == list(range(2, 12))
    body = msgspec.json.decode(requests[1].body)
    prompt = body.pop("prompt")
    assert len(prompt) == 3
    assert body == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4,
        "temperature": 0.0,
        "ignore_eos": True,
        "user": "tenant-2",
    }


def test_nothing_is_planned_after_the_duration() -> None:
    assert [request.at_s for request in plan(Constant(2.0), duration_s=1.0)] == [0.0, 0.5, 1.0]


def test_a_closed_loop_has_no_times() -> None:
    requests = plan(ClosedLoop(2), duration_s=1.0)
    assert [request.at_s for request in requests] == [None] * 10


def test_chat_sends_messages_and_extra_wins() -> None:
    maker = BodyMaker("m", Endpoint.CHAT, continuous_usage=True, extra={"max_tokens": 9, "top_k": 1})
    body = msgspec.json.decode(maker.encode("hello", 4, {"user": "a"}))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["max_tokens"], body["top_k"]) == (9, 1)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "prompt" not in body
    assert "temperature" not in body
