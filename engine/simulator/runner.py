"""A simulated runner: plans in, reports out, and steps that take the time the cost model says."""

from collections import deque
from collections.abc import Callable, Sequence

from engine.messages import Move, MoveEnd, Plan, Report, SliceEnd, Step
from engine.simulator.clock import EventQueue
from engine.simulator.hardware import Cluster
from engine.simulator.links import Link
from engine.simulator.runs import Flight, RunTable


class SimulatedRunner:
    """One GPU. `on_report` gets its reports after the time that a message takes; `on_tokens` the seeds of the
    prompts that got a token, at once."""

    def __init__(
        self,
        events: EventQueue,
        cluster: Cluster,
        pool_id: int,
        host_pool: int,
        on_report: Callable[[Report], None],
        on_tokens: Callable[[Sequence[int]], None],
    ) -> None:
        self._events = events
        self._pool_id = pool_id
        self._host_pool = host_pool
        self._on_report = on_report
        self._on_tokens = on_tokens
        self._message_ns = cluster.message_ns
        self._depth = cluster.depth
        self._lead_ns = cluster.lead_ns
        self._cost = cluster.gpu.cost
        self._attention_ns = cluster.gpu.attention_ns
        self._hbm_ns_per_page = cluster.layout.page_bytes * 1e9 / cluster.gpu.hbm_bytes_per_s
        self._runs = RunTable(
            max_batch=cluster.max_batch,
            max_step_tokens=cluster.max_step_tokens,
            part_tokens=cluster.part_tokens,
        )
        page_bytes = cluster.layout.page_bytes
        self._links = {
            (tier, inwards): Link(events, speed, page_bytes, self._on_move_end)
            for tier, speed in (("peer", cluster.peer_link), ("host", cluster.host_link))
            for inwards in (True, False)
        }
        self._flights: deque[tuple[Flight, int, int]] = (
            deque()
        )  # with the step's time and the idle time before
        self._free_at_ns = 0
        self._due_ns = 0  # when the next step is looked at
        self._owed_ns = 0.0  # what moves took from the compute beside them
        self._stalled_since_ns: int | None = None
        self._stall_ns = 0
        self.busy_ns = 0
        self.stall_ns = 0  # of the whole run: compute waited for moves and for nothing else
        self.num_steps = 0

    def send(self, plan: Plan) -> None:
        """A plan is on its way from the engine."""
        if self._message_ns:
            self._events.at(self._events.now_ns + self._message_ns, lambda: self._apply(plan))
        else:
            self._apply(plan)

    def _apply(self, plan: Plan) -> None:
        self._runs.apply(plan)
        for move in plan.moves:
            self._link_of(move).submit(move)
        self._launch()
        self._report([], self._runs.take_ends(), [])

    def _link_of(self, move: Move) -> Link:
        inwards = move.dst_pool == self._pool_id
        other = move.src_pool if inwards else move.dst_pool
        return self._links["host" if other == self._host_pool else "peer", inwards]

    def _on_move_end(self, move: Move, duration_ns: int) -> None:
        awaited = self._stalled_since_ns is not None and self._runs.waits_for(move.move_id)
        wait_ns = self._take_stall() if awaited else 0
        if duration_ns:
            self._owed_ns += len(move.src_pages) * self._hbm_ns_per_page
        self._runs.complete_move(move.move_id)
        end = MoveEnd(move_id=move.move_id, duration_ns=duration_ns, wait_ns=wait_ns)
        if self._runs.num_waiting:
            self._launch()
        self._report([], [], [end])

    def _launch(self) -> None:
        while len(self._flights) < self._depth and not self._is_early():
            flight = self._runs.launch()
            if flight is None:
                break
            step_ns = round(self._step_ns(flight) + self._owed_ns)
            self._owed_ns = 0.0
            now_ns = self._events.now_ns
            start_ns = max(now_ns, self._free_at_ns)
            idle_ns = start_ns - self._free_at_ns if self.num_steps else 0
            self._free_at_ns = start_ns + step_ns
            self.busy_ns += step_ns
            self.num_steps += 1
            self._flights.append((flight, step_ns, idle_ns))
            self._events.at(self._free_at_ns, self._on_step_end)
        self._watch_stall()

    def _step_ns(self, flight: Flight) -> float:
        """How long the step takes, were nothing beside it."""
        cost = self._cost
        step_ns = cost.step_ns + cost.decode_ns * len(flight.decoding) + cost.context_ns * flight.num_context
        if flight.others:
            prefill_ns = cost.prefill_ns * flight.num_prefilled()
            step_ns += prefill_ns - prefill_ns * cost.overlap_ns / ((prefill_ns + cost.overlap_ns) or 1.0)
            step_ns += self._attention_ns * flight.num_attended()
        return step_ns

    def _is_early(self) -> bool:
        """Whether the next step may be put off: then it is looked at again when it is due."""
        due_ns = self._free_at_ns - self._lead_ns
        if not self._flights or due_ns <= self._events.now_ns:
            return False
        if self._due_ns != due_ns:
            self._due_ns = due_ns
            self._events.at(due_ns, self._launch)
        return True

    def _on_step_end(self) -> None:
        flight, step_ns, idle_ns = self._flights.popleft()
        step, seeds = self._runs.take(flight, step_ns, idle_ns)
        if seeds:
            self._on_tokens(seeds)
        ends = self._runs.take_ends()
        if self._message_ns:
            self._launch()
            self._report([step] if step is not None else [], ends, [])
        else:  # the engine answers before the next step
            self._report([step] if step is not None else [], ends, [])
            self._launch()

    def _watch_stall(self) -> None:
        is_stalled = not self._flights and self._runs.is_waiting_for_moves
        if is_stalled and self._stalled_since_ns is None:
            self._stalled_since_ns = self._events.now_ns
        elif not is_stalled and self._stalled_since_ns is not None:
            self._stall_ns += self._events.now_ns - self._stalled_since_ns
            self.stall_ns += self._events.now_ns - self._stalled_since_ns
            self._stalled_since_ns = None

    def _take_stall(self) -> int:
        """Time stood still since the last call."""
        assert self._stalled_since_ns is not None
        stalled_ns = self._events.now_ns - self._stalled_since_ns
        self.stall_ns += stalled_ns
        self._stalled_since_ns = self._events.now_ns
        taken_ns, self._stall_ns = self._stall_ns + stalled_ns, 0
        return taken_ns

    def _report(self, steps: list[Step], ends: list[SliceEnd], moves: list[MoveEnd]) -> None:
        if not (steps or ends or moves):
            return
        report = Report(steps=steps, ends=ends, moves=moves)
        if self._message_ns:
            self._events.at(self._events.now_ns + self._message_ns, lambda: self._on_report(report))
        else:
            self._on_report(report)
