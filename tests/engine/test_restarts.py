"""Pauses between the starts of a process that does not last."""

from engine.restarts import MAX_PAUSE_S, MAX_QUICK_ENDS, QUICK_S, Restarts


def test_pauses_grow_while_the_process_ends_quickly() -> None:
    restarts = Restarts(1.0)
    assert [restarts.next_pause_s(0.1) for _ in range(MAX_QUICK_ENDS - 1)] == [1.0, 2.0, 4.0, 8.0]
    assert restarts.next_pause_s(0.1) is None


def test_a_start_that_lasted_is_forgiven_what_came_before() -> None:
    restarts = Restarts(10.0)
    assert [restarts.next_pause_s(0.1) for _ in range(3)] == [10.0, 20.0, MAX_PAUSE_S]
    assert restarts.next_pause_s(QUICK_S) == 10.0
    assert restarts.next_pause_s(0.1) == 10.0


def test_a_pause_is_never_shorter_than_configured() -> None:
    assert Restarts(100.0).next_pause_s(0.1) == 100.0
