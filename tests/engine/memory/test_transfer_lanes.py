"""Lanes against marks that pass when the test says so."""

from dataclasses import dataclass

import pytest

from engine.memory.transfer import CompletedMove
from engine.memory.transfer_lanes import Lane, Piece
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


def a_move(move_id: int, num_pages: int, *, urgent: bool = False) -> Move:
    pages = list(range(1, num_pages + 1))
    return Move(
        move_id=move_id, src_pool=0, dst_pool=1, src_pages=pages, dst_pages=pages[::-1], urgent=urgent
    )


def launch(lane: Lane, max_pages: int) -> tuple[Piece, FakeMark, FakeMark]:
    piece, start, end = lane.take(max_pages), FakeMark(), FakeMark()
    lane.launch(piece, piece.num_pages * 10, start, end)
    return piece, start, end


def test_pieces_cover_a_move_in_order() -> None:
    lane = Lane()
    lane.push(a_move(1, 5))
    pieces = []
    while lane.has_waiting:
        pieces.append(launch(lane, 2)[0])
    assert [list(piece.src_pages) for piece in pieces] == [[1, 2], [3, 4], [5]]
    assert [list(piece.dst_pages) for piece in pieces] == [[5, 4], [3, 2], [1]]
    assert [piece.is_last for piece in pieces] == [False, False, True]
    assert lane.ahead_bytes == 50


def test_a_move_is_complete_when_its_last_piece_is() -> None:
    lane = Lane()
    lane.push(a_move(1, 3))
    first, last = launch(lane, 2), launch(lane, 2)
    last[1].at_ms, last[2].at_ms = 3.0, 5.0
    assert lane.completed() == [], "the last piece may be on another stream, and be there before the first"
    assert lane.ahead_bytes == 30
    first[1].at_ms, first[2].at_ms = 1.0, 2.5
    assert lane.completed() == [CompletedMove(1, 4_000_000)]
    assert lane.ahead_bytes == 0
    assert lane.completed() == []


def test_the_wait_for_its_turn_is_not_of_its_duration() -> None:
    lane = Lane()
    lane.push(a_move(1, 1))
    lane.push(a_move(2, 2))
    marks = [launch(lane, 1) for _ in range(3)]
    for number, (_, start, end) in enumerate(marks):
        start.at_ms, end.at_ms = 1.0 * number, 1.0 * number + 1.0
    assert lane.completed() == [CompletedMove(1, 1_000_000), CompletedMove(2, 2_000_000)]


def test_urgent_moves_overtake_what_has_not_begun() -> None:
    lane = Lane()
    lane.push(a_move(1, 2))
    launch(lane, 1)
    lane.push(a_move(2, 1))
    lane.push(a_move(3, 1, urgent=True))
    assert [launch(lane, 1)[0].move.move_id for _ in range(3)] == [1, 3, 2]


def test_what_was_launched_is_finished_after_the_rest_is_dropped() -> None:
    lane = Lane()
    lane.push(a_move(1, 1))
    lane.push(a_move(2, 3))
    lane.push(a_move(3, 1))
    launched = [launch(lane, 1) for _ in range(2)]
    lane.clear()
    assert not lane.has_waiting
    for _, start, end in launched:
        start.at_ms, end.at_ms = 0.0, 1.0
    assert [move.move_id for move in lane.completed()] == [1]


def test_a_move_of_no_page_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="no page"):
        Lane().push(a_move(1, 0))
