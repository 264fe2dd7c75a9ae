"""Delays are chosen so that only their order matters: what is held back stays back until it is let go."""

import select
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from engine.memory.transfer import TransferError
from engine.memory.transfer_cpu import CpuTransfers, Link, Pages
from engine.messages import LinkSpec, Move

LOCAL, PEER, HOST = 0, 1, 2
NUM_PAGES, PAGE_BYTES = 32, 64


def pools() -> dict[int, Pages]:
    """Every byte of pool p is p + 1."""
    return {pool: np.full((NUM_PAGES, PAGE_BYTES), pool + 1, np.uint8) for pool in (LOCAL, PEER, HOST)}


def a_move(
    move_id: int, src: int, dst: int, src_pages: list[int], dst_pages: list[int], *, urgent: bool = False
) -> Move:
    return Move(
        move_id=move_id,
        src_pool=src,
        dst_pool=dst,
        src_pages=array("i", src_pages),
        dst_pages=array("i", dst_pages),
        urgent=urgent,
    )


@contextmanager
def transfers_of(memory: dict[int, Pages], *links: LinkSpec) -> Iterator[CpuTransfers]:
    transfers = CpuTransfers(memory, links)
    try:
        yield transfers
    finally:
        transfers.close()


def wait_for(transfers: CpuTransfers, count: int) -> list[int]:
    """Ids of the next `count` moves to arrive, woken as the loop is."""
    done: list[int] = []
    while len(done) < count:
        wake = transfers.wake_descriptor()
        assert wake is not None
        assert select.select([wake], [], [], 30.0)[0]
        done += [move.move_id for move in transfers.completed()]
    return done


def test_pages_arrive_where_they_should_and_nowhere_else() -> None:
    memory = pools()
    memory[HOST][5:9] = np.arange(4 * PAGE_BYTES, dtype=np.uint8).reshape(4, PAGE_BYTES)
    with transfers_of(memory) as transfers:
        transfers.submit(a_move(1, HOST, LOCAL, [5, 6, 8, 7], [1, 2, 3, 10]))
        assert transfers.num_open == 1
        assert wait_for(transfers, 1) == [1]
        assert transfers.num_open == 0
        assert transfers.completed() == []
    assert (memory[LOCAL][[1, 2, 3, 10]] == memory[HOST][[5, 6, 8, 7]]).all()
    untouched = [page for page in range(NUM_PAGES) if page not in (1, 2, 3, 10)]
    assert (memory[LOCAL][untouched] == LOCAL + 1).all()


def test_bytes_that_travel_are_not_there_before_they_are_reported() -> None:
    memory = pools()
    with transfers_of(memory, LinkSpec(src=PEER, dst=LOCAL, delay_s=3600.0)) as transfers:
        transfers.submit(a_move(1, PEER, LOCAL, [0], [0]))
        transfers.submit(a_move(2, HOST, LOCAL, [1], [1]))
        assert wait_for(transfers, 1) == [2], "another link is not held up"
        assert transfers.num_open == 1
        assert (memory[LOCAL][0] == LOCAL + 1).all()


def test_moves_of_a_slow_link_take_turns_urgent_ones_first() -> None:
    memory = pools()
    link = LinkSpec(src=PEER, dst=LOCAL, delay_s=0.01, bytes_per_s=1e6)
    with transfers_of(memory, link) as transfers:
        for move_id in range(1, 5):
            transfers.submit(a_move(move_id, PEER, LOCAL, [move_id], [move_id], urgent=move_id == 4))
        order = wait_for(transfers, 4)
    assert order in ([1, 4, 2, 3], [4, 1, 2, 3]), "move 1 may have begun before 4 came"


def test_a_link_is_busy_for_its_delay_and_its_bytes() -> None:
    link = Link(delay_ns=500, ns_per_byte=2.0)
    for move_id in (1, 2):
        link.queue.push(a_move(move_id, PEER, LOCAL, [1, 2, 3], [1, 2, 3]))
    link.begin_next(10, now_ns=1_000)
    assert link.current is not None
    assert (link.current.move_id, link.start_ns, link.due_ns) == (1, 1_000, 1_560)
    link.begin_next(10, now_ns=1_200)
    assert link.current.move_id == 1
    link.current = None
    link.begin_next(10, now_ns=1_560)
    assert (link.current.move_id, link.due_ns) == (2, 2_120)


def test_a_duration_counts_the_links_time() -> None:
    link = LinkSpec(src=PEER, dst=LOCAL, delay_s=0.02)
    with transfers_of(pools(), link) as transfers:
        transfers.submit(a_move(1, PEER, LOCAL, [1], [1]))
        wake = transfers.wake_descriptor()
        assert wake is not None
        select.select([wake], [], [], 30.0)
        (done,) = transfers.completed()
    assert done.duration_ns >= 20_000_000


@pytest.mark.parametrize(
    ("src", "dst", "page"), [(7, LOCAL, 1), (LOCAL, 7, 1), (PEER, LOCAL, NUM_PAGES), (LOCAL, PEER, NUM_PAGES)]
)
def test_pages_that_do_not_exist_are_refused(src: int, dst: int, page: int) -> None:
    with transfers_of(pools()) as transfers, pytest.raises(TransferError, match="does not have"):
        transfers.submit(a_move(1, src, dst, [page], [page]))


def test_a_copy_that_fails_is_told_by_completed() -> None:
    memory = pools() | {HOST: np.zeros((NUM_PAGES, PAGE_BYTES // 2), np.uint8)}
    with transfers_of(memory) as transfers:
        transfers.submit(a_move(1, LOCAL, HOST, [1], [1]))
        with pytest.raises(TransferError, match="a move failed"):
            wait_for(transfers, 1)


def test_many_random_moves_all_arrive() -> None:
    rng = np.random.default_rng(1)
    memory = {pool: rng.integers(0, 256, (NUM_PAGES, PAGE_BYTES), np.uint8) for pool in (LOCAL, PEER, HOST)}
    links = [LinkSpec(src=src, dst=dst, bytes_per_s=1e9) for src in memory for dst in memory]
    with transfers_of(memory, *links) as transfers:
        for move_id in range(200):
            src, dst = rng.choice(3, 2, replace=False).tolist()
            count = int(rng.integers(1, 9))
            src_pages = rng.choice(NUM_PAGES, count, replace=False).tolist()
            dst_pages = rng.choice(NUM_PAGES, count, replace=False).tolist()
            expected = memory[src][src_pages].copy()
            transfers.submit(a_move(move_id, src, dst, src_pages, dst_pages))
            assert wait_for(transfers, 1) == [move_id]
            assert (memory[dst][dst_pages] == expected).all()
