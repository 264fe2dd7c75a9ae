"""The lean slices of the simulator do what the runner's do: both are driven with the same plans."""

import random
from array import array

import pytest

from engine.messages import EndReason, Extension, Move, Plan, Sampling, Slice
from engine.model_runner.batch import StepResult
from engine.model_runner.slices import SliceTable
from engine.simulator.runs import Flight, RunTable

MAX_BATCH, MAX_STEP_TOKENS, PART_TOKENS, PAGE_TOKENS = 3, 12, 4, 4


class Both:
    """A SliceTable and a RunTable with up to `depth` steps in flight; every report must be the same."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.real = SliceTable(
            max_batch=MAX_BATCH,
            max_step_tokens=MAX_STEP_TOKENS,
            part_tokens=PART_TOKENS,
            page_tokens=PAGE_TOKENS,
            problem_with=lambda _: None,
        )
        self.lean = RunTable(max_batch=MAX_BATCH, max_step_tokens=MAX_STEP_TOKENS, part_tokens=PART_TOKENS)
        self.flights: list[tuple[list, Flight]] = []
        self.ends: list = []

    def apply(self, plan: Plan) -> None:
        self.real.apply(plan)
        self.lean.apply(plan)
        self._compare_ends()

    def complete(self, move_id: int) -> None:
        assert self.lean.waits_for(move_id) == (move_id in self.real.awaited_moves)
        assert self.lean.is_waiting_for_moves == bool(self.real.awaited_moves)
        self.real.complete_move(move_id)
        self.lean.complete_move(move_id)

    def tick(self) -> None:
        rows, flight = self.real.launch(), self.lean.launch()
        assert bool(rows) == (flight is not None)
        if flight is not None:
            self.flights.append((rows, flight))
        if self.flights and (len(self.flights) >= self.depth or flight is None):
            self._take()
        self._compare_ends()

    def _take(self) -> None:
        rows, flight = self.flights.pop(0)
        tokens = [7 if row.sample else None for row in rows]
        real = self.real.take(StepResult(tokens=tokens, step_ns=5))
        lean, seeds = self.lean.take(flight, 5, 0)
        assert (real is None) == (lean is None)
        if real is not None:
            assert columns(real) == columns(lean)
            assert len(seeds) == sum(token is not None for token in real.tokens)

    def _compare_ends(self) -> None:
        real, lean = self.real.take_ends(), self.lean.take_ends()
        assert sorted(real, key=lambda end: end.slice_id) == sorted(lean, key=lambda end: end.slice_id)
        self.ends += real


def columns(step) -> list:
    return sorted(zip(step.slice_ids, step.fed, step.computed, step.tokens, strict=True), key=repr)


def new_slice(source: random.Random, slice_id: int, move_ids: list[int]) -> Slice:
    start, count, max_new = source.randint(0, 9), source.randint(1, 30), source.randint(0, 6)
    num_pages = -(-(start + count + max_new) // PAGE_TOKENS)
    return Slice(
        slice_id=slice_id,
        start=start,
        ids=[1] * count,
        pages=[array("i", range(1, num_pages + 1))],
        max_new=max_new,
        num_prompt=start + count,
        sampling=Sampling(max_tokens=source.randint(max(1, max_new), 20), seed=slice_id),
        wait_moves=move_ids,
        after=source.choice([None, None, max(1, slice_id - 1)]),
        in_parts=source.random() < 0.8,
    )


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_it_reports_what_the_runner_reports(seed, depth):
    source, both = random.Random(seed), Both(depth)
    last, newest, open_moves = 0, {}, []
    for _ in range(300):
        slices, extensions, ends, cancels, moves = [], [], [], [], []
        if source.random() < 0.2:
            last += 1
            if source.random() < 0.4:
                pages = array("i", [1])
                moves.append(Move(move_id=last, src_pool=1, dst_pool=2, src_pages=pages, dst_pages=pages))
                open_moves.append(last)
            slices.append(new_slice(source, last, [move.move_id for move in moves]))
            newest[last] = last
        if newest and source.random() < 0.3:
            first = source.choice(list(newest))
            last += 1
            more = source.randint(1, 5)
            pages = [array("i", range(1, 3))]
            extensions.append(Extension(slice_id=last, extends=newest[first], pages=pages, max_new=more))
            newest[first] = last
        if newest and source.random() < 0.1:
            source.choice([ends, cancels]).append(newest.pop(source.choice(list(newest))))
        if slices or extensions or ends or cancels:
            both.apply(Plan(slices=slices, extensions=extensions, ends=ends, cancels=cancels, moves=moves))
        if open_moves and source.random() < 0.4:
            both.complete(open_moves.pop(0))
        both.tick()
        ended = {end.slice_id for end in both.ends}
        newest = {first: latest for first, latest in newest.items() if not ended & {first, latest}}
    assert {end.reason for end in both.ends} >= {EndReason.LENGTH, EndReason.USED, EndReason.CANCELLED}
