"""Pages of many contexts in few moves."""

from array import array

from engine.memory.context import Context
from engine.memory.counters import StoreCounters
from engine.memory.joined_moves import JOIN_BYTES, JoinedMoves
from engine.memory.open_moves import OpenMoves, Purpose
from tests.engine.fake_runner import FULL

TO_HOST, TO_PEER = (1, 1, 2), (1, 1, 3)  # runner, source, destination


def pages(first, count):
    return array("i", range(first, first + count))


def test_contexts_share_a_move_until_it_is_full():
    moves = OpenMoves(StoreCounters())
    joined = JoinedMoves(moves, Purpose.MIRROR, JOIN_BYTES // 4)  # four pages fill one
    contexts = [Context(FULL, serial) for serial in range(4)]
    for number, context in enumerate(contexts):
        joined.add(context, TO_HOST, pages(10 * number, 2), pages(100 * number, 2))
    joined.add(contexts[3], TO_PEER, pages(70, 1), pages(7, 1))
    started = joined.start()
    assert {runner for runner, _ in started} == {1}
    first, second, third = [move for _, move in started]
    assert list(first.src_pages) == [0, 1, 10, 11]
    assert list(second.dst_pages) == [200, 201, 300, 301]
    assert (third.dst_pool, list(third.src_pages)) == (3, [70])
    assert [context.moves_in_flight for context in contexts] == [1, 1, 1, 2]
    assert moves.finish(second.move_id, 1).contexts == contexts[2:]
    assert [context.moves_in_flight for context in contexts] == [1, 1, 0, 1]
    assert moves.touching(3) == {contexts[3]}


def test_two_groups_of_a_context_count_as_one_move():
    joined = JoinedMoves(OpenMoves(StoreCounters()), Purpose.MIRROR, 1)
    context = Context(FULL, 1)
    joined.add(context, TO_HOST, pages(0, 2), pages(5, 2))
    joined.add(context, TO_HOST, pages(9, 1), pages(8, 1))
    ((_, move),) = joined.start()
    assert list(move.src_pages) == [0, 1, 9]
    assert context.moves_in_flight == 1
