"""A runner without a model, for tests of the engine: real slices and page tables, pages that hold token ids.

It writes each token's id into the pages of every layer group where K and V would go, and chooses the next
token by a hash of what it reads back through the page tables. So a page that was moved too late, freed too
early or given twice changes the output, as it would with a model.
"""

import random
import zlib
from collections.abc import Sequence

from engine.memory.page import LayerGroup, PageLayout
from engine.messages import (
    EndReason,
    Move,
    MoveEnd,
    Plan,
    Report,
    SliceEnd,
    Step,
)
from engine.model_runner.batch import StepResult, StepRow
from engine.model_runner.slices import SliceTable

VOCAB = 1000
Pools = dict[int, list[list[int]]]  # pool id -> page -> token id at each position of the page

FULL = PageLayout((LayerGroup((0, 1)),), 4, 2, 1, 4, 4)
WINDOWED = PageLayout((LayerGroup((0,)), LayerGroup((1,), 6)), 4, 1, 1, 4, 4)


def make_pools(layout: PageLayout, sizes: dict[int, int]) -> Pools:
    return {pool: [[-7] * layout.page_tokens for _ in range(size)] for pool, size in sizes.items()}


def next_token(layout: PageLayout, ids: Sequence[int]) -> int:
    """What a prompt continues with: a function of what each group of layers can see."""
    seen = []
    for group in layout.groups:
        first = 0 if group.window is None else max(0, len(ids) - group.window)
        seen += list(ids[first:])
    return zlib.crc32(repr(seen).encode()) % VOCAB


def generate(layout: PageLayout, ids: Sequence[int], num_tokens: int, stop: Sequence[int] = ()) -> list[int]:
    """The reference: what a prompt gets alone."""
    known = list(ids)
    for _ in range(num_tokens):
        known.append(next_token(layout, known))
        if known[-1] in stop:
            break
    return known[len(ids) :]


class FakeRunner:
    """Drives a SliceTable. `depth` steps stay in flight; a move takes `move_ticks`, or a random number."""

    def __init__(
        self,
        layout: PageLayout,
        pools: Pools,
        local: int,
        *,
        max_batch: int = 4,
        max_step_tokens: int = 16,
        part_tokens: int | None = None,
        depth: int = 1,
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self.pools = pools
        self.local = local
        self.depth = depth
        self.table = SliceTable(
            max_batch=max_batch,
            max_step_tokens=max_step_tokens,
            part_tokens=part_tokens,
            page_tokens=layout.page_tokens,
            problem_with=lambda _slice: None,
        )
        self.num_plans = 0
        self.move_ticks: int | None = None
        self._random = random.Random(seed)
        self._moves: list[Move] = []
        self._ages: dict[int, int] = {}  # of moves, in ticks
        self._launched: list[list[tuple[StepRow, int | None]]] = []
        self._last_sampled: dict[int, int] = {}  # by slot

    def apply(self, plan: Plan) -> None:
        self.num_plans += 1
        self._moves += plan.moves
        self.table.apply(plan)

    def tick(self) -> Report:
        """Make some moves, a step if there is one, and say what happened."""
        steps: list[Step] = []
        moved = self._make_moves()
        rows = self.table.launch()
        if rows:
            self._launched.append([(row, self._compute(row)) for row in rows])
        if self._launched and (len(self._launched) >= self.depth or not rows):
            tokens = [token for _, token in self._launched.pop(0)]
            step = self.table.take(StepResult(tokens=tokens, step_ns=1_000_000))
            steps += [step] if step is not None else []
        return Report(steps=steps, ends=self._ends(), moves=moved)

    def _ends(self) -> list[SliceEnd]:
        ends = self.table.take_ends()
        assert not [end for end in ends if end.reason is EndReason.FAILED], ends
        return ends

    def _make_moves(self) -> list[MoveEnd]:
        done = [move for move in self._moves if self._is_made(move)]
        for move in done:
            self._moves.remove(move)
            for src, dst in zip(move.src_pages, move.dst_pages, strict=True):
                self.pools[move.dst_pool][dst] = list(self.pools[move.src_pool][src])
            self.table.complete_move(move.move_id)
        return [MoveEnd(move_id=move.move_id, duration_ns=1000) for move in done]

    def _is_made(self, move: Move) -> bool:
        if self.move_ticks is None:
            return self._random.random() < 0.4
        age = self._ages[move.move_id] = self._ages.get(move.move_id, 0) + 1
        return age >= self.move_ticks

    def _compute(self, row: StepRow) -> int | None:
        ids = row.ids if row.ids is not None else [self._last_sampled[row.row.slot]]
        pool, size = self.pools[self.local], self.layout.page_tokens
        for offset, token in enumerate(ids):
            position = row.start + offset
            for table in row.row.page_tables:
                assert table[position // size] != 0, "a token has no page"
                pool[table[position // size]][position % size] = token
        if not row.sample:
            return None
        end = row.start + row.count
        seen = []
        for table, group in zip(row.row.page_tables, self.layout.groups, strict=True):
            first = 0 if group.window is None else max(0, end - group.window)
            seen += [pool[table[i // size]][i % size] for i in range(first, end)]
        token = zlib.crc32(repr(seen).encode()) % VOCAB
        self._last_sampled[row.row.slot] = token
        return token
