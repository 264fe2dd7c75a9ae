"""Where the engine listens, and what it does with an api process that does not read."""

import asyncio
import logging
from pathlib import Path

import pytest

from engine import frontend as frontend_module
from engine.frontend import Frontend, SocketTaken
from engine.messages import FromApi, Hello, ToApi, TokenDelta, Tokens
from engine.wire import MessageStream, encode_frame


def listen(path: Path) -> None:
    async def test() -> None:
        frontend = Frontend(1.0, lambda api_id, message: None, lambda api_id: None)
        server = await frontend.listen(str(path))
        server.close()
        await server.wait_closed()

    asyncio.run(test())


def test_a_socket_that_was_left_behind_is_replaced(tmp_path: Path) -> None:
    listen(tmp_path / "new folder" / "socket")
    listen(tmp_path / "new folder" / "socket")


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    with pytest.raises(SocketTaken, match=f"engine.socket: cannot listen on {file}: "):
        listen(file)
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "x" * 200, "file/socket"])
def test_a_place_that_cannot_be_had_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SocketTaken, match=r"engine\.socket: cannot listen on "):
        listen(tmp_path / name)


TOKENS = Tokens(deltas=[TokenDelta(prompt_id="p", start=0, ids=[7] * 10_000)])
FRAME_BYTES = len(encode_frame(TOKENS))
BOUND_BYTES = 5 * FRAME_BYTES


async def stalled_api(path: Path, hello: Hello) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An api process that has said who it is and reads no more than its buffers hold."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1)
    writer.write(encode_frame(hello))
    return reader, writer


async def wait_for_calls(calls: list[str], count: int) -> None:
    while len(calls) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def test_an_api_that_does_not_read_is_sent_away_and_comes_back_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frontend_module, "MAX_UNSENT_BYTES", BOUND_BYTES)
    monkeypatch.setattr(frontend_module, "STALL_S", 0.05)
    hellos: list[str] = []
    gone: list[str] = []
    read: list[ToApi] = []

    def on_message(api_id: str, message: FromApi) -> None:
        hellos.append(api_id)

    async def test() -> None:
        frontend = Frontend(60.0, on_message, gone.append)
        path = tmp_path / "socket"
        server = await frontend.listen(str(path))
        reader, writer = await stalled_api(path, Hello(api_id="stalled"))
        good: MessageStream[ToApi] = MessageStream(ToApi, read.append, lambda error: None)
        await asyncio.get_running_loop().create_unix_connection(lambda: good, str(path))
        good.send(Hello(api_id="good"))
        await wait_for_calls(hellos, 2)
        num_sent = 0
        while not caplog.records:
            for api_id in ("stalled", "good"):
                frontend.send(api_id, TOKENS)
            num_sent += 1
            while len(read) < num_sent:  # noqa: ASYNC110
                await asyncio.sleep(0)
        frontend.send("stalled", TOKENS)  # to nobody
        data = await reader.read()  # what had left before, and then the end
        assert len(data) < num_sent * FRAME_BYTES
        writer.close()
        _, again = await stalled_api(path, Hello(api_id="stalled"))
        await wait_for_calls(hellos, 3)
        assert good.is_open
        again.close()
        good.close()
        server.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert sorted(hellos) == ["good", "stalled", "stalled"]
    assert gone == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("api stalled does not read: ")


def test_an_api_that_never_reads_again_loses_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontend_module, "MAX_UNSENT_BYTES", BOUND_BYTES)
    monkeypatch.setattr(frontend_module, "STALL_S", 0.05)
    hellos: list[str] = []
    gone: list[str] = []

    async def test() -> None:
        frontend = Frontend(0.001, lambda api_id, message: hellos.append(api_id), gone.append)
        path = tmp_path / "socket"
        server = await frontend.listen(str(path))
        _, writer = await stalled_api(path, Hello(api_id="stalled"))
        await wait_for_calls(hellos, 1)
        while not gone:
            frontend.send("stalled", TOKENS)
            await asyncio.sleep(0)
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert gone == ["stalled"]


@pytest.mark.parametrize(("backlog_bytes", "is_cut"), [(2**30, False), (20 * FRAME_BYTES, True)])
def test_an_api_that_reads_what_it_missed_is_not_cut_off_however_much_that_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    backlog_bytes: int,
    is_cut: bool,
) -> None:
    """Up to the bound of what may wait at all."""
    monkeypatch.setattr(frontend_module, "MAX_UNSENT_BYTES", BOUND_BYTES)
    monkeypatch.setattr(frontend_module, "MAX_BACKLOG_BYTES", backlog_bytes)
    hellos: list[str] = []

    async def test() -> None:
        frontend = Frontend(60.0, lambda api_id, message: hellos.append(api_id), lambda api_id: None)
        path = tmp_path / "socket"
        server = await frontend.listen(str(path))
        reader, writer = await stalled_api(path, Hello(api_id="back"))
        await wait_for_calls(hellos, 1)
        for _ in range(100):  # all in one turn: it cannot have read any of it
            frontend.send("back", TOKENS)
        num_read = 0
        while num_read < 100 * FRAME_BYTES and (data := await reader.read(FRAME_BYTES)):
            num_read += len(data)
        assert (num_read < 100 * FRAME_BYTES) == is_cut
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert bool(caplog.records) == is_cut
