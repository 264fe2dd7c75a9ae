import pytest

from engine.fairness.run_queue import BisectList, SortedDeque, VirtualClock


def test_the_clock_follows_whoever_is_served() -> None:
    clock = VirtualClock()
    clock.advance(10, 0, 10, None)
    assert clock.now_ns == 10
    clock.advance(10, 0, 5, None)  # one who is behind it does not move it, nor hold it
    assert clock.now_ns == 10
    clock.advance(10, 0, 1000, None)  # one who is in debt moves it by the service, so the debt stays
    assert clock.now_ns == 20
    clock.advance(10, 0, 1010, 23)  # it does not pass those who wait
    assert clock.now_ns == 23
    clock.advance(10, 0, 1020, 3)
    assert clock.now_ns == 23


def test_arrivals_are_not_placed_at_a_clock_that_stands_still() -> None:
    clock = VirtualClock()
    for _ in range(100):
        clock.advance(80, 80, 1000, 0)
    assert (clock.now_ns, clock.arrival_ns) == (0, 1000)
    clock.advance(2000, 8, 2000, None)
    assert (clock.now_ns, clock.arrival_ns) == (2000, 2000)


def test_bisect_list_keeps_order_and_removes_what_is_there() -> None:
    entries: BisectList[None] = BisectList()
    for entry in [(2, 1, None), (1, 2, None), (1, 1, None)]:
        entries.add(entry)
    assert entries == [(1, 1, None), (1, 2, None), (2, 1, None)]
    entries.remove((1, 2, None))
    assert entries == [(1, 1, None), (2, 1, None)]
    with pytest.raises(ValueError, match="not in the list"):
        entries.remove((1, 2, None))
    with pytest.raises(ValueError, match="not in the list"):
        entries.remove((3, 2, None))


def test_sorted_deque_keeps_order_and_removes_what_is_there() -> None:
    entries: SortedDeque[None] = SortedDeque()
    for entry in [(2, 1, None), (1, 1, None), (1, 2, None), (3, 0, None)]:
        entries.add(entry)
    assert list(entries) == [(1, 1, None), (1, 2, None), (2, 1, None), (3, 0, None)]
    entries.remove((1, 2, None))
    assert list(entries) == [(1, 1, None), (2, 1, None), (3, 0, None)]
    with pytest.raises(ValueError, match="not in the queue"):
        entries.remove((1, 2, None))
    with pytest.raises(ValueError, match="not in the queue"):
        entries.remove((4, 2, None))
