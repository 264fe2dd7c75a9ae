"""The client against real sockets: a good answer, and each way of failing."""

import asyncio
import errno

import aiohttp
import pytest

from loadgen.client import Client, classify, open_session
from loadgen.monitor import Monitor
from loadgen.plan import PlannedRequest
from loadgen.results import ErrorKind, Outcome, RequestRecord
from loadgen.runner import RunClock
from tests.loadgen.server import DONE, END, HEAD, Script, answer, chunk, event, sends, serving, token

REQUEST = PlannedRequest(0, 2, 0.0, "t", 5, 4, {"Content-Type": "application/json"}, b'{"max_tokens": 4}')


class TwoTokens(Monitor):
    """Says when two tokens have come."""

    def __init__(self) -> None:
        super().__init__(1, ["t"])
        self.came = asyncio.Event()

    def on_first(self, tenant: str, ttft_s: float, num_tokens: int) -> None:
        super().on_first(tenant, ttft_s, num_tokens)
        self._look()

    def on_tokens(self, tenant: str, gap_s: float, num_tokens: int) -> None:
        super().on_tokens(tenant, gap_s, num_tokens)
        self._look()

    def _look(self) -> None:
        if self.total.tokens == 2:
            self.came.set()


async def send(
    url: str, *, stall_s: float = 5.0, timeout_s: float | None = None, request: PlannedRequest = REQUEST
) -> tuple[RequestRecord, Monitor]:
    monitor = Monitor(1, ["t"])
    async with open_session(max_connections=None, stall_s=stall_s, timeout_s=timeout_s) as session:
        return await Client(session, url, RunClock(), monitor).send(request), monitor


def outcome_of(script: Script, **limits: float) -> RequestRecord:
    async def main() -> RequestRecord:
        async with serving(script) as server:
            record, monitor = await send(server.url, **limits)  # type: ignore[arg-type]
        assert monitor.total.in_flight == 0
        assert monitor.total.finished + monitor.total.failed == 1
        return record

    return asyncio.run(main())


async def _hang(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _hang_after_tokens(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(token()))
    await asyncio.sleep(3600)


async def _drip(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    while True:
        writer.write(chunk(token()))
        await asyncio.sleep(0.01)


async def _reset(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(token()))
    await writer.drain()
    writer.transport.abort()


def test_a_good_answer() -> None:
    record = outcome_of(sends(answer(4)))
    assert record.outcome is Outcome.OK
    assert (record.output_tokens, record.http_status, record.error) == (4, 200, None)
    assert record.ttft_s is not None
    assert 0 < record.ttft_s <= record.completion_s


def test_a_body_larger_than_a_mebibyte_is_sent_whole() -> None:
    async def main() -> int:
        body = b'{"prompt": "' + b"x" * (3 << 20) + b'"}'
        async with serving(sends(answer(1))) as server:
            record, _ = await send(server.url, request=PlannedRequest(0, 2, 0.0, "t", 5, 1, {}, body))
            assert record.outcome is Outcome.OK
            return len(str(server.bodies[0]["prompt"]))

    assert asyncio.run(main()) == 3 << 20


@pytest.mark.parametrize(
    ("data", "kind", "tokens"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy", ErrorKind.HTTP, 0),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", ErrorKind.HTTP, 0),
        (HEAD + chunk(token()) + chunk(token()), ErrorKind.CUT, 2),
        (HEAD + chunk(token()) + END, ErrorKind.CUT, 1),
        (HEAD + END, ErrorKind.CUT, 0),
        (b"", ErrorKind.CUT, 0),
        (HEAD + chunk(b"data: {oops}\n\n") + END, ErrorKind.BAD_STREAM, 0),
        (HEAD + chunk(b'{"choices": []}') + END, ErrorKind.BAD_STREAM, 0),
        (b"SMTP ready\r\n\r\n", ErrorKind.BAD_STREAM, 0),
        (HEAD + chunk(token()) + chunk(event({"error": {"message": "no"}})) + END, ErrorKind.SERVER_ERROR, 1),
    ],
)
def test_failures_have_a_kind(data: bytes, kind: ErrorKind, tokens: int) -> None:
    record = outcome_of(sends(data))
    assert (record.outcome, record.error, record.output_tokens) == (Outcome.FAILED, kind, tokens)
    assert record.detail
    assert "\n" not in record.detail


def test_the_status_names_the_error() -> None:
    record = outcome_of(sends(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"))
    assert (record.error_label, record.detail) == ("http 429", "busy")


def test_an_end_without_done_is_good_if_the_reason_was_given() -> None:
    assert outcome_of(sends(HEAD + chunk(token(finish="stop")) + END)).outcome is Outcome.OK
    assert outcome_of(sends(HEAD + chunk(token()) + chunk(DONE) + END)).outcome is Outcome.OK


def test_a_reset_connection_is_a_cut_stream() -> None:
    assert outcome_of(_reset).error is ErrorKind.CUT


@pytest.mark.parametrize("script", [_hang, _hang_after_tokens])
def test_silence_is_a_stall(script: Script) -> None:
    assert outcome_of(script, stall_s=0.15).error is ErrorKind.STALLED


def test_an_answer_that_takes_too_long_is_a_timeout() -> None:
    assert outcome_of(_drip, timeout_s=0.2).error is ErrorKind.TIMEOUT


def test_a_server_that_is_not_there() -> None:
    async def main() -> RequestRecord:
        async with serving(sends(b"")) as server:
            url = server.url
        return (await send(url))[0]

    record = asyncio.run(main())
    assert (record.error, record.chunk_s) == (ErrorKind.REFUSED, [])


def test_cancelling_gives_a_record_of_what_came() -> None:
    async def main() -> RequestRecord:
        monitor = TwoTokens()

        async def script(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
            writer.write(HEAD + chunk(token()) + chunk(token()))
            await writer.drain()
            await asyncio.sleep(3600)

        async with (
            serving(script) as server,
            open_session(max_connections=None, stall_s=5.0, timeout_s=None) as session,
        ):
            task = asyncio.create_task(Client(session, server.url, RunClock(), monitor).send(REQUEST))
            await monitor.came.wait()
            task.cancel()
            return await task

    record = asyncio.run(main())
    assert record.outcome is Outcome.INTERRUPTED
    assert record.output_tokens == 2
    assert record.error is None


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
def test_a_client_out_of_files_or_ports_blames_itself(number: int) -> None:
    assert classify(OSError(number, "no more")) is ErrorKind.CLIENT_LIMIT


def test_other_failures_to_connect() -> None:
    key = aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None)
    unreachable = aiohttp.ClientConnectorError(key, OSError(errno.EHOSTUNREACH, "no way there"))
    assert classify(unreachable) is ErrorKind.CONNECT
    assert classify(aiohttp.ConnectionTimeoutError()) is ErrorKind.CONNECT
