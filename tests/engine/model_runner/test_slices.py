"""The books of slices, alone: a fake executor whose tokens are a function of their position."""

import random
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from engine.messages import EndReason, Extension, Grammar, GrammarKind, Move, Plan, Sampling, Slice, SliceEnd
from engine.model_runner.batch import Row, StepResult, StepRow
from engine.model_runner.slices import SliceTable

PAGE_TOKENS = 4
STOP = 7


def token_at(position: int) -> int:
    """What the fake samples at a position. Every 23rd is a stop token."""
    return STOP if position % 23 == 22 else 100 + position


def no_problem(one_slice: Slice) -> str | None:
    return None if one_slice.ids else "no ids"


def make_table(max_batch: int = 2, max_step_tokens: int = 8, part_tokens: int | None = None) -> SliceTable:
    return SliceTable(
        max_batch=max_batch,
        max_step_tokens=max_step_tokens,
        part_tokens=part_tokens,
        page_tokens=PAGE_TOKENS,
        problem_with=no_problem,
    )


def make_slice(
    slice_id: int,
    num_ids: int = 3,
    *,
    max_new: int = 4,
    start: int = 0,
    num_prompt: int = 3,
    sampling: Sampling | None = None,
    num_pages: int | None = None,
    after: int | None = None,
    wait_moves: Sequence[int] = (),
    in_parts: bool = False,
) -> Slice:
    end = start + num_ids + max_new
    return Slice(
        slice_id=slice_id,
        start=start,
        ids=[token_at(start + i) for i in range(num_ids)],
        pages=[array("i", range(1, 1 + (-(-end // PAGE_TOKENS) if num_pages is None else num_pages)))],
        max_new=max_new,
        num_prompt=num_prompt,
        sampling=sampling or Sampling(max_tokens=1000),
        after=after,
        wait_moves=list(wait_moves),
        in_parts=in_parts,
    )


def extension(slice_id: int, extends: int, max_new: int, num_pages: int = 3) -> Extension:
    return Extension(slice_id=slice_id, extends=extends, pages=[array("i", [9] * num_pages)], max_new=max_new)


def a_move(move_id: int) -> Move:
    return Move(move_id=move_id, src_pool=1, dst_pool=0, src_pages=array("i", [0]), dst_pages=array("i", [1]))


@dataclass
class Fake:
    """Launches what the table gives, `depth` steps ahead, and checks it as an executor would."""

    table: SliceTable
    depth: int = 1
    flights: deque[list[StepRow]] = field(default_factory=deque)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)
    ends: dict[int, SliceEnd] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    last: list[StepRow] = field(default_factory=list)

    def launch(self) -> list[StepRow]:
        rows = self.table.launch()
        if not rows:
            return rows
        assert len({row.row.slot for row in rows}) == len(rows) <= self.table.max_batch
        for row in rows:
            self._check(row)
        self.flights.append(rows)
        self.last = rows
        return rows

    def _check(self, row: StepRow) -> None:
        assert len(row.row.page_tables[0]) * PAGE_TOKENS >= row.start + row.count, "written past the credit"
        if row.ids is None:
            before = [other for other in self.last if other.row is row.row]
            assert before
            assert before[0].sample
            assert before[0].start + before[0].count == row.start
        else:
            assert list(row.ids) == [token_at(row.start + i) for i in range(row.count)]

    def take(self) -> None:
        rows = self.flights.popleft()
        tokens = [token_at(row.start + row.count) if row.sample else None for row in rows]
        step = self.table.take(StepResult(tokens, step_ns=1))
        if step is not None:
            for slice_id, computed, token in zip(step.slice_ids, step.computed, step.tokens, strict=True):
                self.computed[slice_id] = computed
                if token is not None:
                    self.tokens.setdefault(slice_id, []).append(token)
        self.collect()

    def collect(self) -> None:
        for end in self.table.take_ends():
            assert end.slice_id not in self.ends
            self.ends[end.slice_id] = end
            self.order.append(end.slice_id)

    def turn(self) -> bool:
        """Launch as far ahead as may be, take one result; whether there was anything to do."""
        while len(self.flights) < self.depth and self.launch():
            pass
        self.collect()
        if not self.flights:
            return False
        self.take()
        self.table.check_integrity()
        return True

    def run(self) -> None:
        while self.turn():
            pass


def run(*slices: Slice, depth: int = 1, **plan: Sequence[object]) -> Fake:
    fake = Fake(make_table(), depth)
    fake.table.apply(Plan(slices=list(slices), **plan))
    fake.run()
    return fake


def end_of(fake: Fake, slice_id: int) -> tuple[EndReason, int]:
    return fake.ends[slice_id].reason, fake.ends[slice_id].computed


def tokens_from(first: int, count: int) -> list[int]:
    return [token_at(position) for position in range(first, first + count)]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_slice_samples_as_many_as_it_may(depth: int) -> None:
    fake = run(make_slice(1, max_new=5), depth=depth)
    assert fake.tokens[1] == tokens_from(3, 5)
    assert end_of(fake, 1) == (EndReason.USED, 7)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stop_token_ends_it_and_nothing_after_is_told(depth: int) -> None:
    sampling = Sampling(max_tokens=1000, stop_token_ids=(STOP,))
    fake = run(make_slice(1, 19, max_new=30, num_prompt=19, sampling=sampling), depth=depth)
    assert fake.tokens[1] == [119, 120, 121, STOP]
    assert end_of(fake, 1) == (EndReason.STOP, 22)


def test_stop_tokens_count_after_min_tokens() -> None:
    sampling = Sampling(max_tokens=1000, min_tokens=5, stop_token_ids=(STOP,))
    fake = run(make_slice(1, 19, max_new=6, num_prompt=19, sampling=sampling))
    assert end_of(fake, 1)[0] == EndReason.USED


def test_max_tokens_counts_from_the_end_of_the_prompt() -> None:
    sampling = Sampling(max_tokens=6)
    fake = run(make_slice(1, 1, start=5, num_prompt=3, max_new=20, sampling=sampling, num_pages=3))
    assert fake.tokens[1] == tokens_from(6, 3)
    assert end_of(fake, 1) == (EndReason.LENGTH, 8)


def test_decoding_goes_first_and_prompts_share_what_is_left() -> None:
    fake = Fake(make_table(max_batch=3, max_step_tokens=8))
    fake.table.apply(Plan(slices=[make_slice(1)]))
    fake.turn()
    fake.table.apply(Plan(slices=[make_slice(2, 4), make_slice(3, 9)]))
    rows = fake.launch()
    assert [(row.start, row.count, row.sample) for row in rows] == [
        (3, 1, True),
        (0, 4, True),
        (0, 3, False),
    ]


def test_beside_rows_that_decode_prompts_are_computed_in_parts_if_others_wait() -> None:
    fake = Fake(make_table(max_batch=3, max_step_tokens=64, part_tokens=4))
    fake.table.apply(Plan(slices=[make_slice(1, max_new=20)]))
    fake.turn()
    fake.table.apply(Plan(slices=[make_slice(2, 25, in_parts=True), make_slice(3, 9, in_parts=True)]))
    counts = []
    while not counts or max(counts[-1]) > 1:
        counts.append([row.count for row in fake.launch()])
        fake.take()
    # of 34, 24, 18, ... tokens a quarter, rounded up to a multiple of 2, and 4 at least
    assert counts == [[1, 10], [1, 6], [1, 6], [1, 3, 1], [1, 1, 4], [1, 1, 4], [1, 1, 1]]


def test_prompts_are_computed_at_once_if_nothing_decodes_or_one_of_them_is_not_for_parts() -> None:
    fake = Fake(make_table(max_batch=3, max_step_tokens=64, part_tokens=4))
    fake.table.apply(Plan(slices=[make_slice(1, 25, in_parts=True)]))
    assert [row.count for row in fake.launch()] == [25]
    fake.take()
    fake.table.apply(Plan(slices=[make_slice(2, 25, in_parts=True), make_slice(3, 9)]))
    assert [row.count for row in fake.launch()] == [1, 25, 9]


def test_no_more_run_than_there_are_slots() -> None:
    fake = Fake(make_table(max_batch=1))
    fake.table.apply(Plan(slices=[make_slice(1), make_slice(2)]))
    assert len(fake.launch()) == 1
    fake.take()
    fake.run()
    assert fake.order == [1, 2]


@pytest.mark.parametrize("depth", [1, 2])
def test_an_extension_goes_on_without_a_pause(depth: int) -> None:
    fake = run(make_slice(1, max_new=2), extensions=[extension(2, 1, 3), extension(3, 2, 1)], depth=depth)
    assert fake.tokens == {1: tokens_from(3, 2), 2: tokens_from(5, 3), 3: tokens_from(8, 1)}
    assert fake.order == [3]
    assert end_of(fake, 3) == (EndReason.USED, 8)


def test_an_extension_of_a_slice_that_stopped_is_void() -> None:
    fake = run(make_slice(1, max_new=2))
    fake.table.apply(Plan(extensions=[extension(2, 1, 5)], ends=[2], cancels=[9]))
    fake.run()
    assert fake.order == [1]


def test_an_extension_that_never_took_effect_is_not_named_at_the_end() -> None:
    sampling = Sampling(max_tokens=1000, stop_token_ids=(STOP,))
    slices = make_slice(1, 21, max_new=2, num_prompt=21, sampling=sampling)
    fake = run(slices, extensions=[extension(2, 1, 5)], depth=2)
    assert fake.order == [1]
    assert end_of(fake, 1) == (EndReason.STOP, 22)


def test_an_extension_takes_over_as_soon_as_its_slice_is_used_up() -> None:
    fake = Fake(make_table())
    fake.table.apply(Plan(slices=[make_slice(1, max_new=2)], extensions=[extension(2, 1, 5)]))
    fake.turn()
    fake.turn()
    fake.table.apply(Plan(ends=[1]))
    fake.collect()
    assert fake.tokens == {1: tokens_from(3, 2)}
    assert end_of(fake, 2) == (EndReason.ENDED, 4)


def test_a_prefill_without_sampling_takes_no_extension_once_launched() -> None:
    fake = Fake(make_table())
    fake.table.apply(Plan(slices=[make_slice(1, max_new=0)]))
    fake.launch()
    fake.table.apply(Plan(extensions=[extension(2, 1, 3)]))
    fake.take()
    assert end_of(fake, 1) == (EndReason.USED, 3)
    assert not fake.tokens


def test_a_prefill_without_sampling_may_be_extended_before() -> None:
    fake = run(make_slice(1, max_new=0), extensions=[extension(2, 1, 3)])
    assert fake.tokens == {2: tokens_from(3, 3)}
    assert fake.order == [2]


def test_an_end_keeps_what_is_in_flight() -> None:
    fake = Fake(make_table(), depth=2)
    fake.table.apply(Plan(slices=[make_slice(1, max_new=9)]))
    fake.launch()
    fake.launch()
    fake.table.apply(Plan(ends=[1]))
    assert not fake.launch()
    fake.take()
    assert not fake.ends, "a step in flight still writes its pages"
    fake.take()
    assert fake.tokens[1] == tokens_from(3, 2)
    assert end_of(fake, 1) == (EndReason.ENDED, 4)


def test_a_cancel_throws_away_what_is_in_flight() -> None:
    fake = Fake(make_table(), depth=2)
    fake.table.apply(Plan(slices=[make_slice(1, max_new=9)]))
    fake.launch()
    fake.launch()
    fake.table.apply(Plan(cancels=[1]))
    fake.take()
    fake.take()
    assert not fake.tokens
    assert end_of(fake, 1) == (EndReason.CANCELLED, 0)


@pytest.mark.parametrize(("how", "reason"), [("ends", EndReason.ENDED), ("cancels", EndReason.CANCELLED)])
def test_a_waiting_slice_can_be_ended(how: str, reason: EndReason) -> None:
    waiting = make_slice(2, 1, start=5, wait_moves=[4])
    fake = run(waiting, moves=[a_move(4)], **{how: [2]})
    assert end_of(fake, 2) == (reason, 5)


def test_a_slice_waits_for_the_one_before_and_its_extensions() -> None:
    fake = run(make_slice(1, max_new=2), make_slice(2, after=1), extensions=[extension(3, 1, 2)])
    assert fake.order == [3, 2]


def test_a_slice_that_is_over_is_not_waited_for() -> None:
    fake = run(make_slice(1))
    fake.table.apply(Plan(slices=[make_slice(2, after=1)]))
    fake.run()
    assert fake.order == [1, 2]


def test_a_slice_waits_for_its_moves() -> None:
    fake = run(make_slice(1, wait_moves=[4, 5]), moves=[a_move(4), a_move(5), a_move(6)])
    assert not fake.ends
    assert fake.table.awaited_moves == {4, 5}
    fake.table.complete_move(5)
    assert fake.table.awaited_moves == {4}
    fake.table.complete_move(4)
    fake.run()
    assert fake.order == [1]


def test_moves_are_not_awaited_by_what_waits_for_a_slice_or_a_slot() -> None:
    fake = Fake(make_table(max_batch=1))
    slices = [make_slice(1), make_slice(2, after=1, wait_moves=[4]), make_slice(3, wait_moves=[4])]
    fake.table.apply(Plan(slices=slices, moves=[a_move(4)]))
    fake.launch()
    assert fake.table.awaited_moves == set()


def test_too_few_pages_fail_the_slice_alone() -> None:
    fake = run(make_slice(1, max_new=9, num_pages=2), make_slice(2))
    assert end_of(fake, 1) == (EndReason.FAILED, 0)
    assert fake.ends[1].error == "2 pages given for 12 positions"
    assert end_of(fake, 2)[0] == EndReason.USED


def test_too_few_pages_in_an_extension_fail_the_run() -> None:
    fake = run(make_slice(1), extensions=[extension(2, 1, 9, num_pages=0)])
    assert end_of(fake, 1)[0] == EndReason.FAILED


def test_a_problem_fails_the_slice_alone() -> None:
    fake = run(make_slice(1, 0), make_slice(2))
    assert fake.ends[1].error == "no ids"
    assert end_of(fake, 2)[0] == EndReason.USED


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(max_tokens=9), False),
        (Sampling(max_tokens=9, presence_penalty=1.0), True),
        (Sampling(max_tokens=9, grammar=Grammar(kind=GrammarKind.REGEX, source="a")), True),
    ],
)
def test_history_is_kept_where_sampling_needs_it(sampling: Sampling, kept: bool) -> None:
    fake = Fake(make_table())
    fake.table.apply(Plan(slices=[make_slice(1, sampling=sampling)]))
    row: Row = fake.launch()[0].row
    fake.take()
    assert row.history == (tokens_from(0, 4) if kept else [])


@dataclass
class Prompt:
    """A prompt of the random test: what it should be given, and where it stands."""

    num_prompt: int
    sampling: Sampling
    computed: int = 0
    known: int = 0
    live: list[int] = field(default_factory=list)  # slice ids of its run

    @property
    def done_at(self) -> int:
        """First position that it must not sample."""
        end = self.num_prompt + self.sampling.max_tokens
        stops = [p for p in range(self.num_prompt, end) if token_at(p) in self.sampling.stop_token_ids]
        return stops[0] + 1 if stops else end


class RandomEngine:
    """Sends random plans, late and in bulk, and holds the table to its promises."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        table = make_table(max_batch=5, max_step_tokens=12, part_tokens=self.random.choice([None, 2, 4]))
        self.fake = Fake(table, depth=self.random.choice([1, 2]))
        self.prompts: list[Prompt] = []
        self.by_slice: dict[int, Prompt] = {}
        self.granted: dict[int, int] = {}
        self.moves: set[int] = set()
        self.last_id = 0
        self.num_ends = 0

    def new_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def start(self, prompt: Prompt, plan: dict[str, list[object]]) -> None:
        """Give an idle prompt a slice."""
        slice_id, max_new = self.new_id(), self.random.choice([0, 1, 2, 3, 8])
        num_ids = prompt.known - prompt.computed
        if max_new == 0 and num_ids > 1:
            num_ids -= 1  # one has to be left for the slice that samples
        else:
            max_new = max(max_new, 1)
        wait_moves = []
        if self.random.random() < 0.2:
            wait_moves = [self.new_id()]
            plan["moves"].append(a_move(wait_moves[0]))
            self.moves.update(wait_moves)
        live = [prompt.live[-1] for prompt in self.prompts if prompt.live]
        after = self.random.choice(live) if live and self.random.random() < 0.3 else None
        one_slice = make_slice(
            slice_id,
            num_ids,
            start=prompt.computed,
            num_prompt=prompt.num_prompt,
            max_new=max_new,
            sampling=prompt.sampling,
            after=after,
            wait_moves=wait_moves,
            in_parts=self.random.random() < 0.5,
        )
        prompt.live = [slice_id]
        self.by_slice[slice_id] = prompt
        self.granted[slice_id] = one_slice.start + len(one_slice.ids) + max_new
        plan["slices"].append(one_slice)

    def extend(self, prompt: Prompt, plan: dict[str, list[object]]) -> None:
        slice_id, max_new, extends = self.new_id(), self.random.choice([1, 2, 6]), prompt.live[-1]
        before, after = self.granted[extends], self.granted[extends] + max_new
        pages = -(-after // PAGE_TOKENS) + (before // -PAGE_TOKENS)
        plan["extensions"].append(extension(slice_id, extends, max_new, num_pages=pages))
        prompt.live.append(slice_id)
        self.by_slice[slice_id] = prompt
        self.granted[slice_id] = after

    def plan(self) -> Plan:
        plan: dict[str, list[object]] = {
            "slices": [],
            "extensions": [],
            "ends": [],
            "cancels": [],
            "moves": [],
        }
        if len(self.prompts) < 12:
            num_prompt = self.random.randint(1, 30)
            stop = (STOP,) if self.random.random() < 0.5 else ()
            sampling = Sampling(max_tokens=self.random.randint(1, 40), stop_token_ids=stop)
            self.prompts.append(Prompt(num_prompt, sampling, known=num_prompt))
        for prompt in self.prompts:
            chance = self.random.random()
            if not prompt.live and chance < 0.5:
                self.start(prompt, plan)
            elif prompt.live and chance < 0.3 and self.granted[prompt.live[-1]] >= prompt.known:
                self.extend(prompt, plan)
            elif prompt.live and chance < 0.4:
                plan["ends"].append(self.random.choice(prompt.live))
            elif prompt.live and chance < 0.42:
                plan["cancels"].append(prompt.live[-1])
        return Plan(**plan)

    def observe(self) -> None:
        """Hold what came against what may come."""
        for slice_id, tokens in self.fake.tokens.items():
            prompt = self.by_slice[slice_id]
            assert tokens == tokens_from(prompt.known, len(tokens))
            prompt.known += len(tokens)
            assert prompt.known <= min(prompt.done_at, self.granted[slice_id])
        for slice_id, computed in self.fake.computed.items():
            self.by_slice[slice_id].computed = computed
        self.fake.tokens.clear()
        self.fake.computed.clear()
        for slice_id, end in self.fake.ends.items():
            prompt = self.by_slice[slice_id]
            assert slice_id in prompt.live, "a run ends once, under the id of one of its slices"
            assert end.computed == prompt.computed
            assert end.reason is not EndReason.FAILED
            assert (end.reason in (EndReason.STOP, EndReason.LENGTH)) == (prompt.known == prompt.done_at)
            if end.reason is EndReason.USED:
                is_prefill = prompt.computed == self.granted[slice_id]
                assert prompt.known == self.granted[slice_id] + is_prefill
            prompt.live = []
            if prompt.known == prompt.done_at or end.reason is EndReason.CANCELLED:
                self.prompts.remove(prompt)
            self.num_ends += 1
        self.fake.ends.clear()

    def step(self) -> None:
        if self.random.random() < 0.5:
            self.fake.table.apply(self.plan())
        for move_id in sorted(self.moves):
            if self.random.random() < 0.3:
                self.fake.table.complete_move(move_id)
                self.moves.discard(move_id)
        self.fake.turn()
        self.fake.collect()
        self.fake.table.check_integrity()
        self.observe()

    def finish(self) -> None:
        """Let everything that was sent come to its end."""
        for move_id in self.moves:
            self.fake.table.complete_move(move_id)
        while self.fake.turn():
            self.observe()
        self.observe()
        assert not any(prompt.live for prompt in self.prompts)


@pytest.mark.parametrize("seed", range(8))
def test_random_plans(seed: int) -> None:
    engine = RandomEngine(seed)
    for _ in range(600):
        engine.step()
    engine.finish()
    assert engine.num_ends > 200
