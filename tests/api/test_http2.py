"""HTTP/2, with many streams on one connection."""

import asyncio
from contextlib import suppress

import msgspec
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset

from api import streams
from tests.api.fake_engine import CARD, say
from tests.api.harness import Api, run, running_api, until
from tests.api.test_connections import BIG, flood


class Http2Client:
    """One connection. `takes` are the streams whose data is taken; others' windows fill up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(2**30)  # of the connection: streams have their own
        self.takes: set[int] = set()
        self.data: dict[int, bytes] = {}
        self.status: dict[int, int] = {}
        self.ended: set[int] = set()
        self._flush()

    def post(self, path: str, body: object, *, takes: bool = True) -> int:
        stream_id = self._h2.get_next_available_stream_id()
        if takes:
            self.takes.add(stream_id)
        self.data[stream_id] = b""
        headers = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
        self._h2.send_headers(stream_id, headers)
        self._h2.send_data(stream_id, msgspec.json.encode(body), end_stream=True)
        self._flush()
        return stream_id

    def reset(self, stream_id: int) -> None:
        self._h2.reset_stream(stream_id)
        self._flush()

    async def read_for_ever(self) -> None:
        while data := await self._reader.read(65536):
            for event in self._h2.receive_data(data):
                self._take(event)
            self._flush()

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived(stream_id=int(stream_id), headers=headers) if headers is not None:
                self.status[stream_id] = int(dict(headers)[b":status"])
            case DataReceived(stream_id=int(stream_id), data=bytes(data)):
                self.data[stream_id] += data
                if stream_id in self.takes and event.flow_controlled_length:
                    with suppress(Exception):
                        self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            case StreamEnded(stream_id=int(stream_id)) | StreamReset(stream_id=int(stream_id)):
                self.ended.add(stream_id)

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


async def connected(api: Api) -> tuple[Http2Client, asyncio.Task[None], asyncio.StreamWriter]:
    reader, writer = await api.connect()
    client = Http2Client(reader, writer)
    return client, asyncio.create_task(client.read_for_ever()), writer


def test_streams_share_a_connection_and_one_that_is_reset_frees_its_prompt() -> None:
    async def test() -> None:
        async with running_api(script=say("x" * 300), step_s=0.002) as api:
            client, reading, writer = await connected(api)
            body = {"model": "fake", "prompt": "x", "max_tokens": 400, "stream": True}
            gone = client.post("/v1/completions", body)
            stays = client.post("/v1/completions", body)
            await until(lambda: client.data[gone] and client.data[stays])
            client.reset(gone)
            await until(lambda: api.engine.aborted)
            await until(lambda: stays in client.ended)
            assert client.status[stays] == 200
            assert client.data[stays].endswith(b"data: [DONE]\n\n")
            writer.close()
            await reading
            api.check_clean()

    run(test())


def test_a_stuck_stream_is_cut_off_and_its_neighbour_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STALL_S", 0.3)
    monkeypatch.setattr(streams, "WATCH_S", 0.05)

    async def test() -> None:
        async with running_api(cards=[BIG], script=flood, per_step=2_000) as api:
            client, reading, writer = await connected(api)
            body = {"model": "fake", "prompt": "x", "max_tokens": 10**7, "stream": True}
            stuck = client.post("/v1/completions", body, takes=False)
            await until(lambda: api.engine.aborted, 20)
            assert "x" in client.data[stuck].decode()
            neighbour = client.post("/v1/completions", body | {"max_tokens": 50})
            await until(lambda: neighbour in client.ended)
            assert client.data[neighbour].endswith(b"data: [DONE]\n\n")
            writer.close()
            await reading
            api.check_clean()

    run(test())


def test_an_error_over_http_2() -> None:
    async def test() -> None:
        async with running_api(cards=[CARD]) as api:
            client, reading, writer = await connected(api)
            asked = client.post("/v1/completions", {"model": "fake"})
            await until(lambda: asked in client.ended)
            assert client.status[asked] == 400
            assert msgspec.json.decode(client.data[asked])["error"]["param"] == "prompt"
            writer.close()
            await reading

    run(test())
