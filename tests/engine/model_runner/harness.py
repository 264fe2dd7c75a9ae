"""The engine's side of a runner, by hand: regions, sockets, plans out and reports in."""

import os
import socket
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from engine.memory.page import PageLayout
from engine.memory.regions import create_region, send_descriptors
from engine.messages import (
    Attach,
    Extension,
    FromRunner,
    LinkSpec,
    Load,
    Loaded,
    Move,
    MoveEnd,
    Plan,
    PoolSpec,
    Progress,
    Ready,
    Report,
    Sampling,
    Shutdown,
    Slice,
    SliceEnd,
)
from engine.model_runner.loading import load_model
from engine.model_runner.mailbox import Mailbox
from engine.model_runner.process import serve
from engine.wire import FrameReader, encode_frame

LOCAL, HOST = 0, 1
PAGE_TOKENS = 8
NUM_LOCAL_PAGES, NUM_HOST_PAGES = 96, 64
MODEL = "dummy:tiny"

Kind = TypeVar("Kind")


def load(source: str | None = MODEL, device: str = "cpu") -> Load:
    """A small runner."""
    return Load(
        model="tiny",
        source=source,
        device=device,
        dtype=None,
        page_tokens=PAGE_TOKENS,
        max_model_len=256,
        max_batch=4,
        max_step_tokens=32,
        part_tokens=4,
        threads=1,
    )


def reference(prompt: Sequence[int], num_new: int) -> list[int]:
    """The tokens that transformers' greedy `generate` adds to `prompt`."""
    model = load_model(MODEL, device="cpu", max_model_len=256).model
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


class Memory:
    """The regions of a local and of a host pool, which outlive runners."""

    def __init__(self, page_bytes: int) -> None:
        self.page_bytes = page_bytes
        self.local = create_region("local", NUM_LOCAL_PAGES * page_bytes)
        self.host = create_region("host", NUM_HOST_PAGES * page_bytes)

    def attach(self, *links: LinkSpec) -> Attach:
        local = PoolSpec(
            pool=LOCAL,
            kind="cpu",
            device="cpu",
            num_pages=NUM_LOCAL_PAGES,
            page_bytes=self.page_bytes,
            region=0,
        )
        host = PoolSpec(
            pool=HOST,
            kind="host",
            device="host",
            num_pages=NUM_HOST_PAGES,
            page_bytes=self.page_bytes,
            region=1,
        )
        return Attach(local=LOCAL, pools=[local, host], links=list(links))

    def close(self) -> None:
        os.close(self.local)
        os.close(self.host)


class Client:
    """Talks to one runner."""

    def __init__(self, frames: socket.socket, descriptors: socket.socket) -> None:
        frames.settimeout(60.0)
        self._frames = frames
        self._descriptors = descriptors
        self._reader: FrameReader[FromRunner] = FrameReader(FromRunner)
        self._inbox: list[FromRunner] = []
        self.layout: PageLayout | None = None
        self.tokens: dict[int, list[int]] = {}  # by slice
        self.fed: dict[int, int] = {}
        self.ends: dict[int, SliceEnd] = {}
        self.moves: dict[int, MoveEnd] = {}

    def send(self, message: Load | Attach | Plan | Shutdown) -> None:
        self._frames.sendall(encode_frame(message))

    def expect(self, kind: type[Kind]) -> Kind:
        """The next message but for progress; it has to be a `kind`."""
        while True:
            while not self._inbox:
                data = self._frames.recv(1 << 16)
                if not data:
                    raise EOFError("the runner closed the connection")
                self._inbox.extend(self._reader.feed(data))
            message = self._inbox.pop(0)
            if not isinstance(message, Progress):
                assert isinstance(message, kind), message
                return message

    def start(self, memory: Memory | None = None, *links: LinkSpec) -> Memory:
        """From Load to Ready."""
        self.send(load())
        loaded = self.expect(Loaded)
        self.layout = loaded.layout
        memory = memory or Memory(loaded.layout.page_bytes)
        self.send(memory.attach(*links))
        self.send_descriptors(memory)
        assert self.expect(Ready).local_pages == NUM_LOCAL_PAGES
        return memory

    def send_descriptors(self, memory: Memory) -> None:
        send_descriptors(self._descriptors, [memory.local, memory.host])

    def plan(
        self,
        *slices: Slice,
        extensions: Sequence[Extension] = (),
        ends: Sequence[int] = (),
        cancels: Sequence[int] = (),
        moves: Sequence[Move] = (),
    ) -> None:
        self.send(
            Plan(
                slices=list(slices),
                extensions=list(extensions),
                ends=list(ends),
                cancels=list(cancels),
                moves=list(moves),
            )
        )

    def report(self) -> Report:
        """Take the next report into account."""
        report = self.expect(Report)
        for step in report.steps:
            for slice_id, fed, token in zip(step.slice_ids, step.fed, step.tokens, strict=True):
                self.fed[slice_id] = self.fed.get(slice_id, 0) + fed
                if token is not None:
                    self.tokens.setdefault(slice_id, []).append(token)
        for end in report.ends:
            assert end.slice_id not in self.ends
            self.ends[end.slice_id] = end
        self.moves.update({end.move_id: end for end in report.moves})
        return report

    def until_end(self, slice_id: int) -> SliceEnd:
        while slice_id not in self.ends:
            self.report()
        return self.ends[slice_id]

    def until_moved(self, move_id: int) -> MoveEnd:
        while move_id not in self.moves:
            self.report()
        return self.moves[move_id]

    def close(self) -> None:
        self._frames.close()
        self._descriptors.close()


@contextmanager
def runner_in_thread(status: int = 0) -> Iterator[Client]:
    """A runner that shares this process; it ends when the client is closed, with `status`."""
    ours, theirs = socket.socketpair()
    our_pools, their_pools = socket.socketpair()
    statuses: list[int] = []

    def run() -> None:
        with theirs, their_pools:
            statuses.append(serve(Mailbox(theirs), their_pools))

    thread = threading.Thread(target=run)
    thread.start()
    client = Client(ours, our_pools)
    try:
        yield client
    finally:
        client.close()
        thread.join()
    assert statuses == [status]


@contextmanager
def runner_process() -> Iterator[tuple[Client, subprocess.Popen[bytes]]]:
    """A runner as the engine starts it."""
    ours, theirs = socket.socketpair()
    our_pools, their_pools = socket.socketpair()
    command = [sys.executable, "-m", "engine.model_runner"]
    command += ["--fd", str(theirs.fileno()), "--pools-fd", str(their_pools.fileno())]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(), their_pools.fileno())) as process:
        theirs.close()
        their_pools.close()
        client = Client(ours, our_pools)
        try:
            yield client, process
        finally:
            client.close()
            process.wait(timeout=30)


def make_slice(
    slice_id: int,
    ids: Sequence[int],
    pages: list[list[int]],
    *,
    max_new: int,
    start: int = 0,
    num_prompt: int | None = None,
    max_tokens: int = 1000,
    after: int | None = None,
    wait_moves: Sequence[int] = (),
    in_parts: bool = False,
    stop: tuple[int, ...] = (),
) -> Slice:
    """A greedy slice."""
    return Slice(
        slice_id=slice_id,
        start=start,
        ids=list(ids),
        pages=[array("i", table) for table in pages],
        max_new=max_new,
        num_prompt=len(ids) if num_prompt is None else num_prompt,
        sampling=Sampling(max_tokens=max_tokens, temperature=0.0, stop_token_ids=stop),
        after=after,
        wait_moves=list(wait_moves),
        in_parts=in_parts,
    )


def move(move_id: int, src: int, dst: int, src_pages: Sequence[int], dst_pages: Sequence[int]) -> Move:
    return Move(
        move_id=move_id,
        src_pool=src,
        dst_pool=dst,
        src_pages=array("i", src_pages),
        dst_pages=array("i", dst_pages),
    )
