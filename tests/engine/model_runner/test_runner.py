"""The loop, step by step, over an executor and transfers that do nothing until they are told to."""

import socket
from array import array
from collections.abc import Iterator, Sequence

import pytest

from engine.memory.transfer import CompletedMove
from engine.messages import (
    Attach,
    CostModel,
    EndReason,
    FromRunner,
    Load,
    Mapped,
    Move,
    Plan,
    PoolSpec,
    Remapped,
    Report,
    Sampling,
    Shutdown,
    Slice,
)
from engine.model_runner.batch import StepResult, StepRow
from engine.model_runner.mailbox import Mailbox
from engine.model_runner.mapped_pools import PoolAnswer, PoolMessage
from engine.model_runner.runner import Runner, StallClock
from engine.model_runner.slices import SliceTable
from engine.wire import MessagePipe

HOUR_NS = 3_600_000_000_000


class FakePending:
    def __init__(self, rows: Sequence[StepRow], *, is_slow: bool) -> None:
        self.rows = rows
        self.is_slow = is_slow

    def done(self) -> bool:
        return not self.is_slow

    def result(self) -> StepResult:
        tokens = [row.start + row.count if row.sample else None for row in self.rows]
        return StepResult(tokens, step_ns=HOUR_NS if self.is_slow else 7)


class FakeExecutor:
    depth = 2

    def __init__(self) -> None:
        self.launched: list[list[int]] = []
        self.is_slow = False
        self.pending: list[FakePending] = []

    def launch(self, rows: Sequence[StepRow]) -> FakePending:
        self.launched.append([row.start for row in rows])
        self.pending.append(FakePending(rows, is_slow=self.is_slow))
        return self.pending[-1]

    def measure_cost(self) -> CostModel:
        return CostModel()


class FakeTransfers:
    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.arrived: list[CompletedMove] = []
        self.num_open = 0

    def submit(self, move: Move) -> None:
        self.submitted.append(move.move_id)
        self.num_open += 1

    def completed(self) -> list[CompletedMove]:
        arrived, self.arrived = self.arrived, []
        self.num_open -= len(arrived)
        return arrived

    def wake_descriptor(self) -> int | None:
        return None

    def close(self) -> None:
        pass


class Rig:
    """A runner, and the engine's end of its socket."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.pipe: MessagePipe[FromRunner] = MessagePipe(self.ours, FromRunner)
        self.executor = FakeExecutor()
        self.transfers = FakeTransfers()
        slices = SliceTable(
            max_batch=4, max_step_tokens=16, page_tokens=4, problem_with=lambda one_slice: None
        )
        self.runner = Runner(Mailbox(self.theirs), self.executor, slices, self.transfers, self.map_pools)

    def map_pools(self, message: PoolMessage) -> PoolAnswer:
        if not isinstance(message, Attach):
            return Remapped(pool=7)
        return Mapped(pools=[spec.pool for spec in message.pools], unreachable={9: "too far"})

    def step(self) -> Report | None:
        """One turn of the loop; what it reported."""
        self.runner.step()
        messages = self.pipe.receive(0.0)
        assert len(messages) <= 1
        if not messages:
            return None
        assert isinstance(messages[0], Report)
        return messages[0]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.ours.close()
    rig.theirs.close()


def make_slice(slice_id: int, *, max_new: int = 3, wait_moves: Sequence[int] = ()) -> Slice:
    return Slice(
        slice_id=slice_id,
        start=0,
        ids=[1, 2],
        pages=[array("i", [1, 2])],
        max_new=max_new,
        num_prompt=2,
        sampling=Sampling(max_tokens=100),
        wait_moves=list(wait_moves),
    )


def a_move(move_id: int) -> Move:
    return Move(move_id=move_id, src_pool=1, dst_pool=0, src_pages=array("i", [1]), dst_pages=array("i", [1]))


def test_steps_are_launched_ahead_and_reported_one_by_one(rig: Rig) -> None:
    rig.pipe.send(Plan(slices=[make_slice(1)]))
    reports = [rig.step() for _ in range(3)]
    assert rig.executor.launched == [[0], [2], [3]]
    tokens = [step.tokens for report in reports if report is not None for step in report.steps]
    assert tokens == [[2], [3], [4]]
    assert reports[0] is not None
    assert not reports[0].ends
    assert reports[2] is not None
    assert [(end.slice_id, end.reason) for end in reports[2].ends] == [(1, EndReason.USED)]


def test_what_comes_between_two_steps_joins_the_next(rig: Rig) -> None:
    rig.pipe.send(Plan(slices=[make_slice(1, max_new=6)]))
    rig.step()
    rig.pipe.send(Plan(slices=[make_slice(2)]))
    rig.step()
    assert rig.executor.launched == [[0], [2], [3, 0]]


def test_who_comes_while_a_step_runs_joins_the_one_after_it(rig: Rig) -> None:
    """Steps are known to take an hour: the next one is not launched before the last is done."""
    rig.executor.is_slow = True
    rig.pipe.send(Plan(slices=[make_slice(1, max_new=6)]))
    for _ in range(4):
        rig.step()
    assert rig.executor.launched == [[0], [2], [3]]
    rig.pipe.send(Plan(slices=[make_slice(2)], moves=[a_move(9)]))
    assert rig.step() is None
    rig.transfers.arrived = [CompletedMove(9, 5)]
    report = rig.step()
    assert report is not None
    assert (len(report.steps), len(report.moves)) == (0, 1)  # what came meanwhile is told at once
    rig.executor.pending[-1].is_slow = False
    rig.step()
    assert rig.executor.launched[3:] == [[4, 0]]


def test_a_step_brings_its_ends_and_moves_in_one_report(rig: Rig) -> None:
    rig.pipe.send(Plan(slices=[make_slice(1, max_new=1)], moves=[a_move(9)]))
    rig.transfers.arrived = [CompletedMove(9, 5)]
    report = rig.step()
    assert report is not None
    assert (len(report.steps), len(report.ends), len(report.moves)) == (1, 1, 1)
    assert report.moves[0].duration_ns == 5


def test_a_slice_starts_once_its_move_is_complete(rig: Rig) -> None:
    rig.pipe.send(Plan(slices=[make_slice(1, wait_moves=[9])], moves=[a_move(9)]))
    assert rig.step() is None
    assert rig.executor.launched == []
    rig.transfers.arrived = [CompletedMove(9, 5)]
    report = rig.step()
    assert report is not None
    assert report.moves[0].wait_ns > 0
    assert rig.executor.launched == [[0], [2]]


def test_a_move_that_nobody_waits_for_has_held_nobody_up(rig: Rig) -> None:
    rig.pipe.send(Plan(moves=[a_move(9)]))
    assert rig.step() is None
    rig.transfers.arrived = [CompletedMove(9, 5)]
    report = rig.step()
    assert report is not None
    assert report.moves[0].wait_ns == 0


def test_shutdown_takes_the_results_in_flight(rig: Rig) -> None:
    rig.pipe.send(Plan(slices=[make_slice(1, max_new=6)]))
    rig.pipe.send(Shutdown())
    rig.runner.run()
    steps = [step for report in rig.pipe.receive(0.0) if isinstance(report, Report) for step in report.steps]
    assert [step.tokens for step in steps] == [[2], [3]]


def test_an_engine_that_is_gone_ends_the_loop(rig: Rig) -> None:
    rig.ours.close()
    with pytest.raises(EOFError):
        rig.runner.run()


def test_a_message_that_cannot_come_is_a_fault(rig: Rig) -> None:
    load = Load(
        model="m",
        source=None,
        device="cpu",
        dtype=None,
        page_tokens=4,
        max_model_len=None,
        max_batch=1,
        max_step_tokens=1,
    )
    rig.pipe.send(load)
    with pytest.raises(AssertionError, match="not expected"):
        rig.runner.step()


def test_stalls_add_up_until_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10, 13, 20, 26, 27])
    monkeypatch.setattr("engine.model_runner.runner.monotonic_ns", lambda: next(times))
    clock = StallClock()
    clock.set(stalled=True)
    clock.set(stalled=False)
    clock.set(stalled=True)
    assert clock.take() == 9
    assert clock.take() == 1


def test_pools_that_come_later_are_mapped_and_answered(rig: Rig) -> None:
    spec = PoolSpec(pool=7, kind="cpu", device="cpu:1", num_pages=1, page_bytes=8)
    rig.pipe.send(Attach(local=1, pools=[spec]))
    rig.runner.step()
    assert rig.pipe.receive(0.0) == [Mapped(pools=[7], unreachable={9: "too far"})]
