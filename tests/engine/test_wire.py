"""Frames: whatever way the bytes are cut, the same messages come out."""

import asyncio
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Abort, FromApi, Hello, Plan, ToRunner
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
