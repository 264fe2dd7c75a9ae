"""Lanes against marks that pass when the test says so."""

from array import array
from dataclasses import dataclass

import pytest

from engine.memory.transfer import CompletedMove
from engine.memory.transfer_lanes import Batch, Lane, Lookahead
from engine.messages import Move


@dataclass
class FakeMark:
    """A mark passed at `at_ms`, if at all."""

    at_ms: float | None = None

    def query(self) -> bool:
        return self.at_ms is not None

    def elapsed_time(self, end_event: "FakeMark") -> float:
        assert self.at_ms is not None
        assert end_event.at_ms is not None
        return end_event.at_ms - self.at_ms


def a_move(move_id: int, num_pages: int, *, dst: int = 1, urgent: bool = False) -> Move:
    """Pages 1, 2, ... to ..., 2, 1."""
    pages = array("i", range(1, num_pages + 1))
    return Move(
        move_id=move_id, src_pool=0, dst_pool=dst, src_pages=pages, dst_pages=pages[::-1], urgent=urgent
    )


def a_lane(*moves: Move) -> Lane:
    lane = Lane()
    for move in moves:
        lane.push(move)
    return lane


def launch(lane: Lane, max_pages: int) -> tuple[Batch, FakeMark, FakeMark]:
    batch, start, end = lane.take(max_pages), FakeMark(), FakeMark()
    lane.launch(batch, batch.num_pages * 10, start, end)
    return batch, start, end


def lists_of(batch: Batch) -> tuple[list[int], list[int]]:
    src_pages, dst_pages = batch.page_lists()
    return src_pages.tolist(), dst_pages.tolist()


def moves_of(batch: Batch) -> list[int]:
    return [piece.listed.move.move_id for piece in batch.pieces]


def test_a_large_move_is_cut() -> None:
    lane = a_lane(a_move(1, 5))
    batches = []
    while lane.has_waiting:
        batches.append(launch(lane, 2)[0])
    assert [lists_of(batch) for batch in batches] == [([1, 2], [5, 4]), ([3, 4], [3, 2]), ([5], [1])]
    assert lane.ahead_bytes == 50


def test_small_moves_between_the_same_pools_go_together() -> None:
    lane = a_lane(a_move(1, 2), a_move(2, 1), a_move(3, 3), a_move(4, 1, dst=2), a_move(5, 1, dst=2))
    batches = []
    while lane.has_waiting:
        batches.append(launch(lane, 5)[0])
    assert [moves_of(batch) for batch in batches] == [[1, 2, 3], [3], [4, 5]]
    assert [batch.num_pages for batch in batches] == [5, 1, 2]
    assert [batch.pools for batch in batches] == [(0, 1), (0, 1), (0, 2)]
    assert lists_of(batches[0]) == ([1, 2, 1, 1, 2], [2, 1, 1, 3, 2])


def test_a_move_is_complete_when_all_of_it_is() -> None:
    lane = a_lane(a_move(1, 3))
    first, last = launch(lane, 2), launch(lane, 2)
    last[1].at_ms, last[2].at_ms = 3.0, 5.0
    assert lane.completed() == [], "the last piece may be on another stream, and be there before the first"
    assert lane.ahead_bytes == 30
    first[1].at_ms, first[2].at_ms = 1.0, 2.5
    assert lane.completed() == [CompletedMove(1, 3_500_000)]
    assert lane.ahead_bytes == 0
    assert lane.completed() == []


def test_a_duration_is_a_moves_share_of_its_batches() -> None:
    lane = a_lane(a_move(1, 1), a_move(2, 4))
    for number in range(2):
        _, start, end = launch(lane, 3)
        start.at_ms, end.at_ms = 10.0 * number, 10.0 * number + 6.0
    assert lane.completed() == [CompletedMove(1, 2_000_000), CompletedMove(2, 10_000_000)]


def test_urgent_moves_overtake_what_has_not_begun() -> None:
    lane = a_lane(a_move(1, 2))
    launch(lane, 1)
    lane.push(a_move(2, 1))
    lane.push(a_move(3, 1, urgent=True))
    assert [moves_of(launch(lane, 1)[0]) for _ in range(3)] == [[1], [3], [2]]


def test_what_was_launched_is_finished_after_the_rest_is_dropped() -> None:
    lane = a_lane(a_move(1, 1), a_move(2, 3), a_move(3, 1))
    launched = [launch(lane, 1) for _ in range(2)]
    lane.clear()
    assert not lane.has_waiting
    for _, start, end in launched:
        start.at_ms, end.at_ms = 0.0, 1.0
    assert [move.move_id for move in lane.completed()] == [1]


def test_a_move_of_no_page_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="no page"):
        a_lane(a_move(1, 0))


MS = 10**6


def test_what_is_ahead_lasts_until_the_look_after_the_next() -> None:
    lookahead = Lookahead(10**9, 1000, 10**8)
    ahead = []
    for now_ns in (0, 10, 10 * MS, 20 * MS):
        lookahead.look(now_ns)
        ahead.append(lookahead.ahead_bytes)
    assert ahead == [1000, 1000, 2 * 9_999_990, 2 * 10**7]


def test_a_long_pause_is_forgotten_bit_by_bit() -> None:
    lookahead = Lookahead(10**9, 1000, 10**8)
    for now_ns in (0, 9000 * MS):
        lookahead.look(now_ns)
    assert lookahead.ahead_bytes == 10**8, "no more than at most"
    ahead = [lookahead.ahead_bytes]
    for look in range(100):
        lookahead.look(9000 * MS + look)
        ahead.append(lookahead.ahead_bytes)
    assert ahead == sorted(ahead, reverse=True)
    assert ahead[2] == 10**8 * 7 // 8 * 7 // 8
    assert ahead[-1] == 1000
