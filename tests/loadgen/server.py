"""A scripted server on a real socket, and the pieces of answers to script it with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

Script = Callable[[dict[str, object], asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def token(text: str = " a", finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    body: dict[str, object] = {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}
    return event(body | ({"usage": usage} if usage else {}))


def usage_event(num_tokens: int, prompt_tokens: int = 5) -> bytes:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": num_tokens}
    return event({"choices": [], "usage": usage})


DONE = b"data: [DONE]\n\n"


def answer(num_tokens: int) -> bytes:
    """A whole good answer."""
    events = [token() for _ in range(num_tokens - 1)]
    events += [token(finish="length"), usage_event(num_tokens), DONE]
    return HEAD + b"".join(chunk(part) for part in events) + END


class ScriptedServer:
    """Runs `script` for every request. `bodies` holds what was asked, `headers` what came with it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.bodies: list[dict[str, object]] = []
        self.headers: list[str] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._answer(reader, writer)
        self._tasks.discard(task)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1])
            for line in head.lower().splitlines()
            if line.startswith("content-length:")
        )
        body = msgspec.json.decode(await reader.readexactly(length), type=dict[str, object])
        self.bodies.append(body)
        self.headers.append(head)
        await self._script(body, writer)
        await writer.drain()

    async def close(self) -> None:
        """End the scripts that are still going."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer(script)
    server = await asyncio.start_server(scripted.handle, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/completions"
    try:
        yield scripted
    finally:
        server.close()
        await scripted.close()
        await server.wait_closed()


def sends(data: bytes) -> Script:
    """A script that writes the same bytes whatever is asked, and closes."""

    async def script(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return script
