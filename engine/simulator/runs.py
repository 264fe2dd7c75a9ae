"""The slices of a simulated runner: `model_runner.slices.SliceTable` without ids, pages and sampling.

It must behave as that one does (a test drives both with the same plans); it is an order of magnitude faster,
since a row that decodes is a few integers.
"""

from collections import deque
from dataclasses import dataclass, field

from engine.messages import EndReason, Extension, Plan, Slice, SliceEnd, Step
from engine.prefill_parts import part_tokens

_TOKEN = 7  # what every prompt says


@dataclass(slots=True, eq=False)
class Run:
    """A prompt's stay on the device. Positions below `limit` may be sampled, those below `grant_end` under
    `slice_id`; `grants` are the slices that take over in turn: (id, end). `seed` is the sampling's."""

    seed: int
    slice_id: int
    grant_end: int
    limit: int
    last_position: int
    prompt_end: int
    in_parts: bool
    after: int | None
    wait_moves: list[int]
    fed: int
    computed: int
    slice_ids: list[int]
    grants: deque[tuple[int, int]] = field(default_factory=deque)
    last_end: int = 0  # of the last grant, before max_tokens cuts it
    is_started: bool = False
    in_flight: int = 0
    reason: EndReason | None = None


@dataclass(slots=True)
class Flight:
    """A step that was launched: rows that decode one token each, and the others as (run, count, sample)."""

    decoding: list[Run]
    others: list[tuple[Run, int, bool]]
    num_context: int  # tokens of context that it reads, summed over the rows

    def num_prefilled(self) -> int:
        return sum(count for _, count, _ in self.others)

    def num_attended(self) -> int:
        """Positions that its prefilled tokens look back on, summed over the tokens."""
        return sum(count * run.fed - count * (count - 1) // 2 for run, count, _ in self.others)


class RunTable:
    """See `SliceTable`, whose methods these are; `take` also returns the seeds of the prompts that got a
    token."""

    def __init__(self, *, max_batch: int, max_step_tokens: int, part_tokens: int | None = None) -> None:
        self._max_step_tokens = max_step_tokens
        self._part_tokens = part_tokens
        self._num_slots_free = max_batch
        self._by_slice: dict[int, Run] = {}
        self._waiting: list[Run] = []
        self._running: list[Run] = []
        self._open_moves: set[int] = set()
        self._ends: list[SliceEnd] = []

    # ------------------------------------------------------------------ what the engine wants

    def apply(self, plan: Plan) -> None:
        self._open_moves.update(move.move_id for move in plan.moves)
        for one_slice in plan.slices:
            self._add(one_slice)
        for extension in plan.extensions:
            self._extend(extension)
        for slice_id in plan.ends:
            self._end(slice_id, EndReason.ENDED)
        for slice_id in plan.cancels:
            self._end(slice_id, EndReason.CANCELLED)

    @property
    def num_waiting(self) -> int:
        """Runs that have not begun."""
        return len(self._waiting)

    def complete_move(self, move_id: int) -> None:
        self._open_moves.discard(move_id)

    def waits_for(self, move_id: int) -> bool:
        """Whether a run that has everything else waits for this move."""
        return bool(self._num_slots_free) and any(
            move_id in run.wait_moves and run.after not in self._by_slice for run in self._waiting
        )

    @property
    def is_waiting_for_moves(self) -> bool:
        return bool(self._waiting and self._num_slots_free and self._open_moves) and any(
            run.after not in self._by_slice and not self._open_moves.isdisjoint(run.wait_moves)
            for run in self._waiting
        )

    def _add(self, one_slice: Slice) -> None:
        sampling = one_slice.sampling
        prompt_end = one_slice.start + len(one_slice.ids)
        end = prompt_end + one_slice.max_new
        last_position = one_slice.num_prompt + sampling.max_tokens
        run = Run(
            seed=sampling.seed,
            slice_id=one_slice.slice_id,
            grant_end=end,
            limit=min(end, last_position),
            last_position=last_position,
            prompt_end=prompt_end,
            in_parts=one_slice.in_parts,
            after=one_slice.after,
            wait_moves=one_slice.wait_moves,
            fed=one_slice.start,
            computed=one_slice.start,
            slice_ids=[one_slice.slice_id],
            last_end=end,
        )
        self._by_slice[one_slice.slice_id] = run
        self._waiting.append(run)

    def _extend(self, extension: Extension) -> None:
        run = self._by_slice.get(extension.extends)
        if run is None or run.reason is not None or run.fed >= run.prompt_end >= run.limit:
            return
        run.last_end += extension.max_new
        run.limit = min(run.last_end, run.last_position)
        run.grants.append((extension.slice_id, run.last_end))
        run.slice_ids.append(extension.slice_id)
        self._by_slice[extension.slice_id] = run

    def _end(self, slice_id: int, reason: EndReason) -> None:
        run = self._by_slice.get(slice_id)
        if run is not None and run.reason in (None, EndReason.ENDED):
            run.reason = reason
            self._settle(run)

    # ------------------------------------------------------------------ steps

    def launch(self) -> Flight | None:
        """The rows of the next step, now counted as in flight; None if nothing can be launched."""
        if self._waiting:
            self._start_ready()
        decoding: list[Run] = []
        others: list[tuple[Run, int, bool]] = []
        prefilling: list[Run] = []
        num_context = 0
        for run in self._running:
            fed = run.fed
            if fed >= run.prompt_end:
                if run.reason is None and fed + 1 < run.limit:
                    decoding.append(run)
                    run.fed = fed + 1
                    run.in_flight += 1
                    num_context += fed + 1
            elif run.reason is None:
                if run.prompt_end - fed > 1:
                    prefilling.append(run)
                else:
                    others.append((run, 1, run.prompt_end < run.limit))
        budget = self._prefill_budget(len(decoding) + len(others), prefilling) if prefilling else 0
        for run in prefilling:
            remaining = run.prompt_end - run.fed
            count = min(remaining, budget)
            if count >= 1:
                others.append((run, count, count == remaining and run.prompt_end < run.limit))
                budget -= count
        for run, count, _ in others:
            run.fed += count
            run.in_flight += 1
            num_context += run.fed
        return Flight(decoding, others, num_context) if decoding or others else None

    def _prefill_budget(self, num_decoding: int, prefilling: list[Run]) -> int:
        most, least = max(self._max_step_tokens - num_decoding, 1), self._part_tokens
        if not num_decoding or least is None or not all(run.in_parts for run in prefilling):
            return most
        return min(most, part_tokens(sum(run.prompt_end - run.fed for run in prefilling), least))

    def take(self, flight: Flight, step_ns: int, idle_ns: int) -> tuple[Step | None, list[int]]:
        """The result of the oldest step in flight; no step if nobody wants any of it."""
        slice_ids: list[int] = []
        computed: list[int] = []
        seeds: list[int] = []
        for run in flight.decoding:
            run.in_flight -= 1
            reason = run.reason
            if reason is None or reason is EndReason.ENDED:
                run.computed = position = run.computed + 1
                if position >= run.grant_end:
                    self._take_over(run, position)
                slice_ids.append(run.slice_id)
                computed.append(position)
                seeds.append(run.seed)
                if position + 1 >= run.grant_end or position + 1 >= run.limit:
                    self._use_up(run, position + 1)
                    reason = run.reason
            if reason is not None:
                self._settle(run)
        fed = [1] * len(slice_ids)
        tokens: list[int | None] = [_TOKEN] * len(slice_ids)
        for run, count, sample in flight.others:
            run.in_flight -= 1
            if run.reason in (None, EndReason.ENDED):
                run.computed += count
                self._take_over(run, run.computed)
                slice_ids.append(run.slice_id)
                fed.append(count)
                computed.append(run.computed)
                tokens.append(_TOKEN if sample else None)
                if sample:
                    seeds.append(run.seed)
                    self._use_up(run, run.computed + 1)
                elif run.computed >= run.prompt_end:
                    run.reason = _limit_reason(run)
            self._settle(run)
        if not slice_ids:
            return None, seeds
        step = Step(
            step_ns=step_ns,
            idle_ns=idle_ns,
            slice_ids=slice_ids,
            fed=fed,
            computed=computed,
            tokens=tokens,
        )
        return step, seeds

    def take_ends(self) -> list[SliceEnd]:
        """Runs that ended since the last call."""
        ends, self._ends = self._ends, []
        return ends

    def _start_ready(self) -> None:
        still_waiting: list[Run] = []
        for run in self._waiting:
            is_ready = run.after not in self._by_slice and self._open_moves.isdisjoint(run.wait_moves)
            if is_ready and self._num_slots_free:
                self._num_slots_free -= 1
                run.is_started = True
                self._running.append(run)
            else:
                still_waiting.append(run)
        self._waiting = still_waiting

    def _take_over(self, run: Run, position: int) -> None:
        """Let the slice be in effect under which `position` is sampled."""
        while run.grants and position >= run.grant_end:
            run.slice_id, run.grant_end = run.grants.popleft()

    def _use_up(self, run: Run, position: int) -> None:
        """A token was sampled at `position - 1`, maybe the last that was granted."""
        if position >= run.limit:
            run.reason = _limit_reason(run)
        else:
            self._take_over(run, position)

    def _settle(self, run: Run) -> None:
        """Let go of a run that is over, once no step in flight has a row of it."""
        if run.reason is None or run.in_flight:
            return
        if run.is_started:
            self._running.remove(run)
            self._num_slots_free += 1
        else:
            self._waiting.remove(run)
        for slice_id in run.slice_ids:
            del self._by_slice[slice_id]
        self._ends.append(SliceEnd(slice_id=run.slice_id, computed=run.computed, reason=run.reason))


def _limit_reason(run: Run) -> EndReason:
    return EndReason.LENGTH if run.limit == run.last_position else EndReason.USED
