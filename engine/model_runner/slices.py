"""Which rows run: the runner's bookkeeping of slices. Pure: no torch, no clock, no I/O.

A run waits for the slice before it, for moves and for a slot; is launched step by step, ahead of its results
by what the executor allows; and ends exactly once, with one SliceEnd, when no step in flight touches its
pages any more.
"""

from collections import deque
from collections.abc import Callable

from engine.messages import EndReason, Extension, Plan, Slice, SliceEnd, Step, TokenLogprobs
from engine.model_runner.batch import Row, StepResult, StepRow
from engine.model_runner.run import Grant, Run, needs_history
from engine.prefill_parts import part_tokens


class SliceTable:
    """All runs of a runner: takes plans in, gives steps to launch, takes results, gives reports.

    At most `max_batch` runs hold a slot. A step has every row that can decode, and as many ids of prompts as
    fit beside them in `max_step_tokens` (one at least, so that prefill never starves), or the part of them
    that `prefill_parts` says if all have been started in parts.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_step_tokens: int,
        part_tokens: int | None = None,
        page_tokens: int,
        problem_with: Callable[[Slice], str | None],
    ) -> None:
        """`problem_with` says why a slice cannot be run, if so; a slice without ids has to have a problem."""
        self.max_batch = max_batch
        self.max_step_tokens = max_step_tokens
        self.part_tokens = part_tokens
        self.page_tokens = page_tokens
        self._problem_with = problem_with
        self._by_slice: dict[int, Run] = {}  # every slice id of every live run
        self._waiting: list[Run] = []  # by arrival
        self._running: list[Run] = []  # by start
        self._free_slots = list(range(max_batch - 1, -1, -1))
        self._flights: deque[list[tuple[Run, StepRow]]] = deque()
        self._open_moves: set[int] = set()
        self._ends: list[SliceEnd] = []

    @property
    def awaited_moves(self) -> set[int]:
        """Open moves without which a run that has everything else cannot start."""
        if not self._free_slots:
            return set()
        runs = (run for run in self._waiting if run.first.after not in self._by_slice)
        return {move for run in runs for move in run.first.wait_moves if move in self._open_moves}

    @property
    def is_prefilling(self) -> bool:
        """Whether some run has more than one id of its prompt to feed yet."""
        return any(run.prompt_end - run.fed > 1 for runs in (self._running, self._waiting) for run in runs)

    # ------------------------------------------------------------------ what the engine wants

    def apply(self, plan: Plan) -> None:
        """Take a plan in. Extensions, ends and cancels of slices that are over change nothing."""
        self._open_moves.update(move.move_id for move in plan.moves)
        for one_slice in plan.slices:
            self._add(one_slice)
        for extension in plan.extensions:
            self._extend(extension)
        for slice_id in plan.ends:
            self._end(slice_id, EndReason.ENDED)
        for slice_id in plan.cancels:
            self._end(slice_id, EndReason.CANCELLED)

    def complete_move(self, move_id: int) -> None:
        """The bytes of a move are where they should be."""
        self._open_moves.discard(move_id)

    def _add(self, one_slice: Slice) -> None:
        assert one_slice.slice_id not in self._by_slice, f"slice {one_slice.slice_id} came twice"
        end = one_slice.start + len(one_slice.ids) + one_slice.max_new
        sampling = one_slice.sampling
        row = Row(
            slot=0,
            sampling=sampling,
            num_prompt=one_slice.num_prompt,
            page_tables=[list(table) for table in one_slice.pages],
            history=[*one_slice.history, *one_slice.ids] if needs_history(sampling) else [],
        )
        run = Run(
            first=one_slice,
            grants=deque([Grant(one_slice.slice_id, end)]),
            slice_ids=[one_slice.slice_id],
            row=row,
            fed=one_slice.start,
            computed=one_slice.start,
            known=one_slice.start + len(one_slice.ids),
            latest_id=one_slice.ids[-1] if one_slice.ids else 0,
            stop_ids=frozenset(sampling.stop_token_ids),
        )
        self._by_slice[one_slice.slice_id] = run
        self._waiting.append(run)
        problem = self._problem_with(one_slice)
        if problem is not None:
            self._stop(run, EndReason.FAILED, problem)
        else:
            self._check_credit(run)

    def _extend(self, extension: Extension) -> None:
        run = self._by_slice.get(extension.extends)
        if run is None or run.reason is not None or run.is_closed:
            return
        assert run.grants[-1].slice_id == extension.extends, f"slice {extension.extends} was extended twice"
        for table, more in zip(run.row.page_tables, extension.pages, strict=True):
            table.extend(more)
        run.grants.append(Grant(extension.slice_id, run.grants[-1].end + extension.max_new))
        run.slice_ids.append(extension.slice_id)
        self._by_slice[extension.slice_id] = run
        self._check_credit(run)

    def _end(self, slice_id: int, reason: EndReason) -> None:
        run = self._by_slice.get(slice_id)
        if run is not None and run.wants_results:
            self._stop(run, reason)

    def _check_credit(self, run: Run) -> None:
        """Whatever the engine sends, nothing is written past the pages that it gave."""
        pages = min((len(table) for table in run.row.page_tables), default=0)
        needed = max(run.prompt_end, run.limit)
        if pages * self.page_tokens < needed:
            self._stop(run, EndReason.FAILED, f"{pages} pages given for {needed} positions")

    # ------------------------------------------------------------------ steps

    def launch(self) -> list[StepRow]:
        """The rows of the next step, now counted as in flight; empty if nothing can be launched."""
        self._start_ready()
        flight: list[tuple[Run, StepRow]] = []
        prefilling: list[Run] = []
        for run in self._running:
            if run.prompt_end - run.fed > 1:
                if run.reason is None:
                    prefilling.append(run)
            elif (row := run.next_row(1)) is not None:
                flight.append((run, row))
        budget = self._prefill_budget(len(flight), prefilling)
        for run in prefilling:
            if (row := run.next_row(budget)) is not None:
                flight.append((run, row))
                budget -= row.count
        for run, row in flight:
            run.fed += row.count
            run.in_flight += 1
        if flight:
            self._flights.append(flight)
        return [row for _, row in flight]

    def _prefill_budget(self, num_decoding: int, prefilling: list[Run]) -> int:
        """Ids of prompts in a step beside so many rows."""
        most, least = max(self.max_step_tokens - num_decoding, 1), self.part_tokens
        if not num_decoding or least is None or not all(run.first.in_parts for run in prefilling):
            return most
        return min(most, part_tokens(sum(run.prompt_end - run.fed for run in prefilling), least))

    def take(self, result: StepResult) -> Step | None:
        """Take the result of the oldest step in flight; None if nobody wants any of it."""
        slice_ids: list[int] = []
        fed: list[int] = []
        computed: list[int] = []
        tokens: list[int | None] = []
        logprobs: dict[int, TokenLogprobs] = {}
        prompt_logprobs: dict[int, list[TokenLogprobs | None]] = {}
        for index, (run, row) in enumerate(self._flights.popleft()):
            run.in_flight -= 1
            if run.wants_results:
                column = len(slice_ids)
                slice_ids.append(run.take(row, result.tokens[index]))
                fed.append(row.count)
                computed.append(run.computed)
                tokens.append(result.tokens[index])
                if index in result.logprobs:
                    logprobs[column] = result.logprobs[index]
                if index in result.prompt_logprobs:
                    prompt_logprobs[column] = result.prompt_logprobs[index]
            self._settle(run)
        if not slice_ids:
            return None
        return Step(
            step_ns=result.step_ns,
            idle_ns=result.idle_ns,
            slice_ids=slice_ids,
            fed=fed,
            computed=computed,
            tokens=tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def take_ends(self) -> list[SliceEnd]:
        """Runs that ended since the last call."""
        ends, self._ends = self._ends, []
        return ends

    def check_integrity(self) -> None:
        """Slots, flights and indices agree. Raises AssertionError."""
        slots = [run.row.slot for run in self._running]
        assert sorted(slots + self._free_slots) == list(range(self.max_batch))
        live = [*self._waiting, *self._running]
        assert set(self._by_slice) == {slice_id for run in live for slice_id in run.slice_ids}
        for run in live:
            flights = sum(run is other for flight in self._flights for other, _ in flight)
            assert run.in_flight == flights
            assert run.reason is None or flights, "a run that is over is still here"
            assert run.first.start <= run.computed <= run.fed <= max(run.prompt_end, run.limit - 1)

    def _start_ready(self) -> None:
        still_waiting: list[Run] = []
        for run in self._waiting:
            is_ready = run.first.after not in self._by_slice
            is_ready = is_ready and self._open_moves.isdisjoint(run.first.wait_moves)
            if is_ready and self._free_slots:
                run.row.slot = self._free_slots.pop()
                run.is_started = True
                self._running.append(run)
            else:
                still_waiting.append(run)
        self._waiting = still_waiting

    def _stop(self, run: Run, reason: EndReason, error: str | None = None) -> None:
        run.reason, run.error = reason, error
        self._settle(run)

    def _settle(self, run: Run) -> None:
        """Let go of a run that is over, once no step in flight touches its pages."""
        if run.reason is None or run.in_flight:
            return
        if run.is_started:
            self._running.remove(run)
            self._free_slots.append(run.row.slot)
        else:
            self._waiting.remove(run)
        for slice_id in run.slice_ids:
            del self._by_slice[slice_id]
        self._ends.append(
            SliceEnd(
                slice_id=run.grants[0].slice_id, computed=run.computed, reason=run.reason, error=run.error
            )
        )
