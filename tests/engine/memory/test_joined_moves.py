"""Pages of many contexts in few moves."""

from array import array

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.joined_moves import JoinedMoves
from engine.memory.open_moves import OpenMoves, Purpose
from engine.memory.pool import FULL_MOVE_PAGES, PagePool
from tests.engine.fake_runner import FULL

LOCAL, HOST = (PagePool(number, 1000, 10) for number in (1, 2))
LENT = PagePool(3, 1000, 10, segment_bytes=20)
TO_HOST, TO_PEER = (1, LOCAL, HOST), (1, LOCAL, LENT)


def pages(first, count):
    return array("i", range(first, first + count))


def test_contexts_share_a_move_until_it_is_full():
    moves = OpenMoves(StoreCounters())
    joined = JoinedMoves(moves, Purpose.MIRROR)
    contexts = [Context(FULL, serial) for serial in range(4)]
    half = FULL_MOVE_PAGES // 2
    for number, context in enumerate(contexts):
        joined.add(context, TO_HOST, pages(100 * number, half), pages(1000 * number, half))
    joined.add(contexts[3], TO_PEER, pages(70, 1), pages(7, 1))
    started = joined.start()
    assert {runner for runner, _ in started} == {1}
    first, second, third = [move for _, move in started]
    assert list(first.src_pages) == [*range(half), *range(100, 100 + half)]
    assert list(second.dst_pages) == [*range(2000, 2000 + half), *range(3000, 3000 + half)]
    assert (third.dst_pool, list(third.src_pages)) == (3, [70])
    assert [context.moves_in_flight for context in contexts] == [1, 1, 1, 2]
    assert moves.finish(second.move_id, 1).contexts == contexts[2:]
    assert [context.moves_in_flight for context in contexts] == [1, 1, 0, 1]
    assert moves.touching(3) == {contexts[3]}


def test_two_groups_of_a_context_count_as_one_move():
    joined = JoinedMoves(OpenMoves(StoreCounters()), Purpose.MIRROR)
    context = Context(FULL, 1)
    joined.add(context, TO_HOST, pages(0, 2), pages(5, 2))
    joined.add(context, TO_HOST, pages(9, 1), pages(8, 1))
    ((_, move),) = joined.start()
    assert list(move.src_pages) == [0, 1, 9]
    assert context.moves_in_flight == 1


def test_no_move_of_many_is_larger_than_a_segment():
    joined = JoinedMoves(OpenMoves(StoreCounters()), Purpose.MIRROR)
    for serial in range(4):
        joined.add(Context(FULL, serial), TO_PEER, pages(serial, 1), pages(serial, 1))
    assert [list(move.src_pages) for _, move in joined.start()] == [[0, 1], [2, 3]]
