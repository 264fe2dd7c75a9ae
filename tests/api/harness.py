"""The api over a fake engine, with real sockets on both sides."""

import asyncio
import socket
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import uvloop

from api.app import make_app
from api.engine_client import EngineClient
from api.server import HttpServer, listen
from api.services import Services
from engine.config import Config, EngineConfig, ServerConfig
from tests.api.fake_engine import FakeEngine

Result = TypeVar("Result")


def run(test: Coroutine[Any, Any, Result]) -> Result:
    """Run a test on the loop that the api is served with."""
    return run_for(test, 60)


def run_for(work: Coroutine[Any, Any, Result], limit_s: float) -> Result:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(work, limit_s))


@dataclass
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def events(self) -> list[Any]:
        """The values of a stream's events; the last one is the text [DONE]."""
        lines = [line for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        values = [line.removeprefix("data: ") for line in lines]
        return [value if value == "[DONE]" else msgspec.json.decode(value) for value in values]


@dataclass
class Api:
    """A running api, and a client that knows its address."""

    engine: FakeEngine
    services: Services
    server: HttpServer
    port: int

    async def connect(self, *, reads: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection; one that does not read has small buffers, which are full at once."""
        if reads:
            return await asyncio.open_connection("127.0.0.1", self.port)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock)
        cast(asyncio.ReadTransport, writer.transport).pause_reading()
        return reader, writer

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        *,
        reads: bool = True,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request and return while it is being answered."""
        reader, writer = await self.connect(reads=reads)
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        all_headers = {"host": "test", "connection": "close", "content-length": str(len(data))} | (
            headers or {}
        )
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return reader, writer

    async def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> Answer:
        reader, writer = await self.send(method, path, body, headers)
        try:
            return parse_answer(await reader.read())
        finally:
            writer.close()

    async def post(self, path: str, body: object, headers: dict[str, str] | None = None) -> Answer:
        return await self.ask("POST", path, body, headers)

    async def get(self, path: str) -> Answer:
        return await self.ask("GET", path)

    async def complete(self, prompt: object = "hi", **fields: object) -> Answer:
        return await self.post("/v1/completions", {"model": "fake", "prompt": prompt} | fields)

    async def chat(self, text: str = "hi", **fields: object) -> Answer:
        messages = [{"role": "user", "content": text}]
        return await self.post("/v1/chat/completions", {"model": "fake", "messages": messages} | fields)

    def check_clean(self) -> None:
        """Nothing is left of any request."""
        self.services.client.check_integrity()
        assert self.services.client.open_requests == 0
        assert len(self.services.generations) == 0
        assert len(self.services.streams) == 0


@asynccontextmanager
async def running_api(
    *, start_engine: bool = True, server: ServerConfig | None = None, **engine_fields: Any
) -> AsyncIterator[Api]:
    """An engine and an api, both stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "engine.sock"
        config = Config(server=server or ServerConfig(port=0), engine=EngineConfig(socket=str(path)))
        engine = FakeEngine(path, **engine_fields)
        services = Services.make(config, EngineClient(config.socket_path))
        app = make_app(services)
        http = HttpServer(app, listen("127.0.0.1", 0)[0])
        if start_engine:
            await engine.start()
        async with app.router.lifespan_context(app):
            await http.start()
            if start_engine:
                assert await services.client.wait_present()
            try:
                yield Api(engine, services, http, http.port)
            finally:
                await http.close(0.1)
                if engine.is_running:
                    await engine.stop()


def parse_answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunk(body)
    return Answer(int(status_line.split()[1]), headers, body)


def _unchunk(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        data = rest[int(size, 16) + 2 :]
    return b"".join(parts)


async def until(condition: Any, limit_s: float = 10.0) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
