"""The runner's loop: slices and moves in, steps and ends out. It decides nothing."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns

from engine.memory.transfer import Transfers
from engine.messages import Attach, MakeSegments, MoveEnd, Plan, Remap, Report, Shutdown, Step, Unmap
from engine.model_runner.batch import Executor, PendingStep, StepRow
from engine.model_runner.mailbox import Mailbox
from engine.model_runner.mapped_pools import PoolAnswer, PoolMessage
from engine.model_runner.pace import LaunchPace
from engine.model_runner.slices import SliceTable

POLL_S = 0.0002  # between two looks at moves that cannot wake the loop
LOOK_S = 0.001  # between two looks whether a step has ended sooner than expected


@dataclass(frozen=True, slots=True)
class InFlight:
    """`was_ahead`: it was launched while another one ran."""

    rows: list[StepRow]
    step: PendingStep
    was_ahead: bool


class StallClock:
    """Adds up the time in which slices waited for moves and nothing else could run."""

    def __init__(self) -> None:
        self._since_ns: int | None = None
        self._total_ns = 0

    def set(self, *, stalled: bool) -> None:
        """Say how things stand from now on."""
        now_ns = monotonic_ns()
        if self._since_ns is not None:
            self._total_ns += now_ns - self._since_ns
        self._since_ns = now_ns if stalled else None

    def take(self) -> int:
        """The time until now since the last call."""
        self.set(stalled=self._since_ns is not None)
        total_ns, self._total_ns = self._total_ns, 0
        return total_ns


class Runner:
    """Executes plans until `Shutdown`. `change_pools` maps and unmaps what the engine says, between steps."""

    def __init__(
        self,
        mailbox: Mailbox,
        executor: Executor,
        slices: SliceTable,
        transfers: Transfers,
        change_pools: Callable[[PoolMessage], PoolAnswer],
    ) -> None:
        self._mailbox = mailbox
        self._executor = executor
        self._slices = slices
        self._transfers = transfers
        self._change_pools = change_pools
        self._pending: deque[InFlight] = deque()
        self._pace = LaunchPace()
        self._began_ns = 0  # when the device began with the oldest step in flight, as far as is known here
        self._steps: list[Step] = []
        self._moves: list[MoveEnd] = []
        self._stall = StallClock()
        self._is_idle = True
        self._is_shutting_down = False

    def run(self) -> None:
        """Returns after `Shutdown`, with no step in flight. Raises EOFError when the engine is gone."""
        while not self._is_shutting_down:
            self.step()
        while self._pending:
            self._take_result()
        self._report()

    def step(self) -> None:
        """One turn: what the engine wants, what has arrived, the next steps; then the oldest result, or what
        comes before the next step is due."""
        self._take_messages()
        self._take_moves()
        wait_ns = self._launch()
        if wait_ns:
            self._report()
            self._wait(min(wait_ns / 1e9, LOOK_S))
        else:
            self._take_result()
            self._report()

    def _take_messages(self) -> None:
        if self._is_idle:
            self._wait(None)
        for message in self._mailbox.all():
            match message:
                case Plan():
                    self._slices.apply(message)
                    for move in message.moves:
                        self._transfers.submit(move)
                case Attach() | Unmap() | Remap() | MakeSegments():
                    self._mailbox.send(self._change_pools(message))
                case Shutdown():
                    self._is_shutting_down = True
                case _:
                    raise AssertionError(f"not expected once the runner is ready: {message!r}")

    def _wait(self, limit_s: float | None) -> None:
        """Nothing is to be launched: sleep until a message comes, a move is complete, or for `limit_s`."""
        wake = self._transfers.wake_descriptor()
        if wake is None and self._transfers.num_open > 0:
            limit_s = POLL_S if limit_s is None else min(limit_s, POLL_S)
        self._mailbox.wait([] if wake is None else [wake], limit_s)

    def _take_moves(self) -> None:
        done = self._transfers.completed()
        awaited = self._slices.awaited_moves if done else set()
        for move in done:
            wait_ns = self._stall.take() if move.move_id in awaited else 0
            self._moves.append(MoveEnd(move_id=move.move_id, duration_ns=move.duration_ns, wait_ns=wait_ns))
            self._slices.complete_move(move.move_id)

    def _launch(self) -> int:
        """Launch what is due; returns how long the next step may still be put off, 0 if there is none."""
        wait_ns = 0
        while len(self._pending) < self._executor.depth:
            wait_ns = self._ns_until_launch()
            if wait_ns:
                break
            now_ns = monotonic_ns()
            rows = self._slices.launch()
            if not rows:
                break
            if not self._pending:
                self._began_ns = now_ns
            step = self._executor.launch(rows)
            self._pending.append(InFlight(rows, step, was_ahead=bool(self._pending)))
        self._is_idle = not self._pending
        self._stall.set(stalled=self._is_idle and bool(self._slices.awaited_moves))
        return wait_ns

    def _ns_until_launch(self) -> int:
        """How long the next step may still be put off."""
        if len(self._pending) != 1 or self._pending[0].step.done():
            return 0
        next_prefills = self._slices.is_prefilling
        at_ns = self._pace.launch_at_ns(self._began_ns, self._pending[0].rows, next_prefills=next_prefills)
        return max(0, at_ns - monotonic_ns())

    def _take_result(self) -> None:
        if not self._pending:
            return
        done = self._pending.popleft()
        result = done.step.result()
        self._began_ns = monotonic_ns()  # of the next
        self._pace.observe(done.rows, result.step_ns, result.idle_ns, was_ahead=done.was_ahead)
        step = self._slices.take(result)
        if step is not None:
            self._steps.append(step)

    def _report(self) -> None:
        ends = self._slices.take_ends()
        if self._steps or ends or self._moves:
            self._mailbox.send(Report(steps=self._steps, ends=ends, moves=self._moves))
            self._steps, self._moves = [], []
