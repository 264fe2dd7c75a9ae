"""Moves between pools in shared memory: one thread copies; links may be given a delay and a bandwidth."""

import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic_ns

import numpy as np
import numpy.typing as npt

from engine.memory.transfer import CompletedMove, MoveQueue, TransferError, page_runs
from engine.messages import LinkSpec, Move

Pages = npt.NDArray[np.uint8]
"""The bytes of a pool, `[num_pages, page_bytes]`."""


@dataclass(slots=True)
class Link:
    """The way from one pool to another: one move at a time, which is over no sooner than `due_ns`."""

    delay_ns: int
    ns_per_byte: float
    queue: MoveQueue[Move] = field(default_factory=MoveQueue)
    current: Move | None = None
    start_ns: int = 0
    due_ns: int = 0

    def begin_next(self, page_bytes: int, now_ns: int) -> None:
        """Take up the next move, if the link is idle and there is one."""
        if self.current is None and len(self.queue):
            self.current = self.queue.pop()
            self.start_ns = now_ns
            num_bytes = len(self.current.src_pages) * page_bytes
            self.due_ns = now_ns + self.delay_ns + round(num_bytes * self.ns_per_byte)


class CpuTransfers:
    """See `transfer.Transfers`.

    The bytes of a delayed move are copied at the end of its delay, not before: who reads them too early gets
    what was there before.
    """

    def __init__(self, pools: Mapping[int, Pages], links: Iterable[LinkSpec] = ()) -> None:
        self._pools = dict(pools)
        self._links = {(spec.src, spec.dst): _make_link(spec) for spec in links}
        self._completed: list[CompletedMove] = []
        self._error: Exception | None = None
        self._num_open = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="transfers", daemon=True)
        self._thread.start()

    def add_pools(self, pools: Mapping[int, Pages], links: Iterable[LinkSpec]) -> None:
        """More pools, and the links to and from them."""
        with self._changed:
            self._pools.update(pools)
            self._links.update(((spec.src, spec.dst), _make_link(spec)) for spec in links)

    @property
    def num_open(self) -> int:
        return self._num_open

    def wake_descriptor(self) -> int | None:
        return self._wake

    def submit(self, move: Move) -> None:
        for pool, pages in ((move.src_pool, move.src_pages), (move.dst_pool, move.dst_pages)):
            if pool not in self._pools or max(pages, default=0) >= len(self._pools[pool]):
                raise TransferError(f"move {move.move_id} is of pages that pool {pool} does not have")
        self._num_open += 1
        with self._changed:
            key = (move.src_pool, move.dst_pool)
            if key not in self._links:
                self._links[key] = Link(0, 0.0)
            self._links[key].queue.push(move)
            self._changed.notify()

    def completed(self) -> list[CompletedMove]:
        with self._changed:
            if self._error is not None:
                raise TransferError(f"a move failed: {self._error!r}") from self._error
            done, self._completed = self._completed, []
            if done:
                os.eventfd_read(self._wake)
        self._num_open -= len(done)
        return done

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()
        os.close(self._wake)

    def _run(self) -> None:
        while (link := self._next_due()) is not None:
            move = link.current
            assert move is not None
            error: Exception | None = None
            try:
                self._copy(move)
            except Exception as raised:  # told to the loop by `completed`: a thread has nobody to raise to
                error = raised
            with self._changed:
                link.current = None
                self._error = self._error or error
                self._completed.append(CompletedMove(move.move_id, monotonic_ns() - link.start_ns))
                os.eventfd_write(self._wake, 1)

    def _next_due(self) -> Link | None:
        """Wait for the next move whose time has come; None when closed."""
        with self._changed:
            while not self._is_closed:
                now_ns = monotonic_ns()
                for (src, _), link in self._links.items():
                    if len(link.queue):
                        link.begin_next(self._pools[src].shape[1], now_ns)
                busy = [link for link in self._links.values() if link.current is not None]
                first = min(busy, key=lambda link: link.due_ns, default=None)
                if first is not None and first.due_ns <= now_ns:
                    return first
                self._changed.wait(None if first is None else (first.due_ns - now_ns) / 1e9)
        return None

    def _copy(self, move: Move) -> None:
        src_pool, dst_pool = self._pools[move.src_pool], self._pools[move.dst_pool]
        runs = page_runs(move.src_pages, move.dst_pages)
        for src, dst, count in zip(runs.src, runs.dst, runs.counts, strict=True):
            dst_pool[dst : dst + count] = src_pool[src : src + count]


def _make_link(spec: LinkSpec) -> Link:
    return Link(
        delay_ns=round(spec.delay_s * 1e9),
        ns_per_byte=1e9 / spec.bytes_per_s if spec.bytes_per_s is not None else 0.0,
    )
