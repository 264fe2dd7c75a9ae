from array import array

from engine.memory.transfer import MoveQueue, page_runs
from engine.messages import Move


def a_move(move_id: int, *, urgent: bool = False) -> Move:
    none = array("i")
    return Move(move_id=move_id, src_pool=0, dst_pool=1, src_pages=none, dst_pages=none, urgent=urgent)


def runs(src_pages: list[int], dst_pages: list[int]) -> list[tuple[int, int, int]]:
    joined = page_runs(src_pages, dst_pages)
    assert len(joined) == len(joined.counts)
    return list(zip(joined.src.tolist(), joined.dst.tolist(), joined.counts.tolist(), strict=True))


def test_neighbours_are_joined_where_they_are_neighbours_on_both_sides() -> None:
    assert runs([1, 2, 3, 7, 8, 4], [5, 6, 7, 8, 9, 10]) == [(1, 5, 3), (7, 8, 2), (4, 10, 1)]
    assert runs([1, 2], [9, 8]) == [(1, 9, 1), (2, 8, 1)]
    assert runs([4], [4]) == [(4, 4, 1)]
    assert runs([], []) == []


def test_urgent_moves_overtake_the_others() -> None:
    queue: MoveQueue[Move] = MoveQueue()
    for move in (a_move(1), a_move(2, urgent=True), a_move(3), a_move(4, urgent=True)):
        queue.push(move)
    assert len(queue) == 4
    assert [queue.pop().move_id for _ in range(3)] == [2, 4, 1]
    queue.clear()
    assert len(queue) == 0
