"""A server that streams made-up tokens at a steady pace, as cheaply as Python can, to load a client with.

    python -m bench.fake_sse [--port N] [--tokens-per-s 2]

It answers POST /v1/completions with `max_tokens` events, one a tick of its clock, for as many connections as
come. It prints its address and serves until killed.
"""

import argparse
import asyncio
import re
from typing import cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"fake",'
    b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":%s}]}\n\n'
)
_USAGE = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1700000000,"model":"fake",'
    b'"choices":[],"usage":{"prompt_tokens":16,"completion_tokens":%d,"total_tokens":%d}}\n\n'
)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_tokens": *(\d+)')


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_TOKEN = _chunk(_EVENT % b"null")


def _ending(num_tokens: int) -> bytes:
    usage = _USAGE % (num_tokens, 16 + num_tokens)
    return _chunk(_EVENT % b'"length"') + _chunk(usage) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class FakeServer(asyncio.Protocol):
    """One connection. `streams` holds, for each phase of the tick, those that are due a token then."""

    def __init__(self, phases: list[set["FakeServer"]]) -> None:
        self._phases = phases
        self._phase: set[FakeServer] | None = None
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None
        self._left = self._asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one, but does not say so

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not blank or length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        asked = _MAX_TOKENS.search(body)
        self._asked = self._left = int(asked[1]) if asked else 16
        self._phase = min(self._phases, key=len)
        self._phase.add(self)
        assert self._transport is not None
        self._transport.write(_HEAD)

    def tick(self) -> None:
        assert self._transport is not None
        self._left -= 1
        if self._left:
            self._transport.write(_TOKEN)
            return
        self._transport.write(_ending(self._asked))
        self._leave()

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._phase is not None:
            self._phase.discard(self)
            self._phase = None


async def _serve(host: str, port: int, period_s: float, num_phases: int) -> None:
    loop = asyncio.get_running_loop()
    phases: list[set[FakeServer]] = [set() for _ in range(num_phases)]
    server = await loop.create_server(lambda: FakeServer(phases), host, port, backlog=8192)
    print(f"http://{host}:{server.sockets[0].getsockname()[1]}", flush=True)
    due_s, step = loop.time(), 0
    while True:
        for stream in list(phases[step % num_phases]):
            stream.tick()
        step += 1
        due_s += period_s / num_phases
        await asyncio.sleep(max(0.0, due_s - loop.time()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens-per-s", type=float, default=2.0, help="of each stream")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options.host, options.port, 1 / options.tokens_per_s, num_phases=50))


if __name__ == "__main__":
    main()
