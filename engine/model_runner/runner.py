"""The runner's loop: slices and moves in, steps and ends out. It decides nothing."""

from collections import deque
from collections.abc import Callable
from time import monotonic_ns

from engine.memory.transfer import Transfers
from engine.messages import Attach, Mapped, MoveEnd, Plan, Report, Shutdown, Step
from engine.model_runner.batch import Executor, PendingStep
from engine.model_runner.mailbox import Mailbox
from engine.model_runner.slices import SliceTable

POLL_S = 0.0002  # between two looks at moves that cannot wake the loop


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
    """Executes plans until `Shutdown`. `map_pools` maps those of a later `Attach`."""

    def __init__(
        self,
        mailbox: Mailbox,
        executor: Executor,
        slices: SliceTable,
        transfers: Transfers,
        map_pools: Callable[[Attach], Mapped],
    ) -> None:
        self._mailbox = mailbox
        self._executor = executor
        self._slices = slices
        self._transfers = transfers
        self._map_pools = map_pools
        self._pending: deque[PendingStep] = deque()
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
        """One turn: what the engine wants, what has arrived, the next steps, the oldest result."""
        self._take_messages()
        self._take_moves()
        self._launch()
        self._take_result()
        self._report()

    def _take_messages(self) -> None:
        if self._is_idle:
            self._wait()
        for message in self._mailbox.all():
            match message:
                case Plan():
                    self._slices.apply(message)
                    for move in message.moves:
                        self._transfers.submit(move)
                case Attach():
                    self._mailbox.send(self._map_pools(message))
                case Shutdown():
                    self._is_shutting_down = True
                case _:
                    raise AssertionError(f"not expected once the runner is ready: {message!r}")

    def _wait(self) -> None:
        """Nothing can run: sleep until a message comes or a move is complete."""
        wake = self._transfers.wake_descriptor()
        has_to_poll = wake is None and self._transfers.num_open > 0
        self._mailbox.wait([] if wake is None else [wake], POLL_S if has_to_poll else None)

    def _take_moves(self) -> None:
        done = self._transfers.completed()
        awaited = self._slices.awaited_moves if done else set()
        for move in done:
            wait_ns = self._stall.take() if move.move_id in awaited else 0
            self._moves.append(MoveEnd(move_id=move.move_id, duration_ns=move.duration_ns, wait_ns=wait_ns))
            self._slices.complete_move(move.move_id)

    def _launch(self) -> None:
        while len(self._pending) < self._executor.depth and (rows := self._slices.launch()):
            self._pending.append(self._executor.launch(rows))
        self._is_idle = not self._pending
        self._stall.set(stalled=self._is_idle and bool(self._slices.awaited_moves))

    def _take_result(self) -> None:
        if not self._pending:
            return
        step = self._slices.take(self._pending.popleft().result())
        if step is not None:
            self._steps.append(step)

    def _report(self) -> None:
        ends = self._slices.take_ends()
        if self._steps or ends or self._moves:
            self._mailbox.send(Report(steps=self._steps, ends=ends, moves=self._moves))
            self._steps, self._moves = [], []
