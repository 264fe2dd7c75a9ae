"""Pauses between the starts of a process that does not last."""

from engine.restarts import (
    MAX_FAILED_STARTS,
    MAX_PAUSE_S,
    MAX_QUICK_ENDS,
    QUICK_S,
    Restarts,
    RunnerRestarts,
)


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


def next_pause_s(
    restarts: RunnerRestarts,
    ready_s: float | None,
    *,
    was_refused: bool = False,
    others_serve: bool = False,
) -> float | None:
    return restarts.next_pause_s(ready_s, was_refused=was_refused, others_serve=others_serve)


def test_a_runner_that_always_gets_ready_is_never_given_up_but_waits_longer_and_longer() -> None:
    restarts = RunnerRestarts(1.0)
    pauses = [next_pause_s(restarts, 0.5) for _ in range(100)]
    assert pauses[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, MAX_PAUSE_S]
    assert set(pauses[6:]) == {MAX_PAUSE_S}
    assert next_pause_s(restarts, QUICK_S) == 1.0


def test_a_runner_that_was_never_ready_is_given_up_at_its_refusal_or_after_some_tries() -> None:
    assert next_pause_s(RunnerRestarts(1.0), None, was_refused=True, others_serve=True) is None
    restarts = RunnerRestarts(1.0)
    pauses = [next_pause_s(restarts, None, others_serve=True) for _ in range(MAX_FAILED_STARTS)]
    assert pauses == [1.0, 2.0, None]


def test_a_runner_that_served_once_is_given_up_only_if_nobody_else_serves() -> None:
    restarts = RunnerRestarts(1.0)
    next_pause_s(restarts, QUICK_S)
    for _ in range(2 * MAX_FAILED_STARTS):
        assert next_pause_s(restarts, None, was_refused=True, others_serve=True) is not None
    assert next_pause_s(restarts, None) is None
    assert next_pause_s(restarts, 0.0) == MAX_PAUSE_S
