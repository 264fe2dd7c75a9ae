"""Frames: whatever way the bytes are cut, the same messages come out."""

import asyncio
import socket
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Abort, FromApi, Hello, Move, Plan, Stats, ToApi, ToRunner
from engine.wire import FrameReader, MessagePipe, MessageStream, ProtocolError, encode_frame

MESSAGES = st.lists(
    st.one_of(
        st.builds(Hello, api_id=st.text(max_size=40)),
        st.builds(Abort, prompt_ids=st.lists(st.text(max_size=10), max_size=5)),
    ),
    max_size=8,
)


@given(MESSAGES, st.lists(st.integers(1, 50), min_size=1))
def test_any_cut_gives_the_same_messages(messages, sizes):
    data = b"".join(map(encode_frame, messages))
    reader: FrameReader[FromApi] = FrameReader(FromApi)
    received, position = [], 0
    while position < len(data):
        size = sizes[position % len(sizes)]
        received += reader.feed(data[position : position + size])
        position += size
    assert received == messages


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", msgspec.msgpack.encode({"type": "Hello"}), msgspec.msgpack.encode(Plan())]
)
def test_anything_else_is_refused(payload):
    frame = len(payload).to_bytes(4, "little") + payload
    with pytest.raises(ProtocolError):
        FrameReader(FromApi).feed(frame)


def test_a_frame_that_is_too_long_is_refused_before_it_comes():
    with pytest.raises(ProtocolError, match="over the limit"):
        FrameReader(FromApi).feed(b"\xff\xff\xff\xff")


def test_a_pipe_gives_what_came_before_the_end():
    ours, theirs = socket.socketpair()
    with ours:
        pipe: MessagePipe[ToRunner] = MessagePipe(ours, ToRunner)
        assert pipe.receive() == []
        theirs.sendall(encode_frame(Plan(ends=[1])) + encode_frame(Plan(ends=[2])))
        theirs.close()
        assert pipe.receive() == [Plan(ends=[1]), Plan(ends=[2])]
        with pytest.raises(EOFError):
            pipe.receive()


def test_streams_send_in_order_and_notice_the_end():
    async def talk():
        ours, theirs = socket.socketpair()
        received, closed = [], asyncio.Event()
        stream: MessageStream[FromApi] = MessageStream(FromApi, received.append, lambda _error: closed.set())
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: stream, sock=ours)
        for number in range(3):
            stream.send(Hello(api_id=str(number)))
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        expected = b"".join(encode_frame(Hello(api_id=str(number))) for number in range(3))
        assert await reader.readexactly(len(expected)) == expected
        writer.write(encode_frame(Abort(prompt_ids=["x"])))
        await writer.drain()
        writer.close()
        await closed.wait()
        assert received == [Abort(prompt_ids=["x"])]
        assert not stream.is_open
        stream.send(Hello(api_id="late"))  # dropped: the peer will say what it missed

    asyncio.run(talk())


def test_page_lists_go_as_they_are_in_memory():
    pages = array("i", [0, 70_000, 2**31 - 1])
    move = Move(move_id=1, src_pool=1, dst_pool=2, src_pages=pages, dst_pages=pages[::-1])
    frame = encode_frame(Plan(moves=[move]))
    assert pages.tobytes() in frame
    (plan,) = FrameReader(ToRunner).feed(frame)
    assert plan.moves == [move]
    assert plan.moves[0].src_pages.typecode == "i"


@pytest.mark.parametrize("pages", [b"\x01\x00\x00", [1, 2], "1234"])
def test_page_lists_of_another_form_are_refused(pages):
    move = {"move_id": 1, "src_pool": 1, "dst_pool": 2, "src_pages": pages, "dst_pages": b""}
    payload = msgspec.msgpack.encode({"type": "Plan", "moves": [move]})
    with pytest.raises(ProtocolError):
        FrameReader(ToRunner).feed(len(payload).to_bytes(4, "little") + payload)


def test_what_may_be_anything_is_passed_on() -> None:
    stats = Stats(serial=1, samples=[], status={"models": {"m": {"ready": True, "pages": [1, 2]}}, "up": 1.5})
    reader: FrameReader[ToApi] = FrameReader(ToApi)
    assert reader.feed(encode_frame(stats)) == [stats]
