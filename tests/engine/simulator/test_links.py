from array import array

from engine.messages import Move
from engine.simulator.clock import EventQueue
from engine.simulator.hardware import FREE_LINK, LinkSpeed
from engine.simulator.links import Link


def move(move_id, num_pages=1, *, urgent=False):
    pages = array("i", range(num_pages))
    return Move(move_id=move_id, src_pool=1, dst_pool=2, src_pages=pages, dst_pages=pages, urgent=urgent)


def run(speed, *moves):
    """(move id, time of its end, duration) of moves that are submitted at time 0."""
    events, ends = EventQueue(), []
    link = Link(events, speed, 1000, lambda m, ns: ends.append((m.move_id, events.now_ns, ns)))
    for each in moves:
        link.submit(each)
    while events:
        events.step()
    return ends


def test_moves_queue_for_the_link():
    assert run(LinkSpeed(1e9, 50), move(1, 2), move(2)) == [(1, 2050, 2050), (2, 3100, 1050)]


def test_an_urgent_move_goes_before_those_that_wait():
    assert [end[0] for end in run(LinkSpeed(1e9), move(1), move(2), move(3, urgent=True))] == [1, 3, 2]


def test_a_free_link_takes_no_time():
    assert run(FREE_LINK, move(1, 5), move(2)) == [(1, 0, 0), (2, 0, 0)]
