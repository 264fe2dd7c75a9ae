"""A prompt's stay on the device: a slice, and the extensions that go on from it. Pure.

Positions of a run: below `computed`, K and V are valid; below `fed`, they are, or a step in flight writes
them. Feeding the last known position samples the next one. No position at or past `limit` is sampled, so
none at or past `limit - 1` is written beside the slice's own ids: launching ahead stays inside the pages that
the engine gave.
"""

from collections import deque
from dataclasses import dataclass

from engine.messages import EndReason, Sampling, Slice
from engine.model_runner.batch import Row, StepRow


@dataclass(frozen=True, slots=True)
class Grant:
    """A slice's part of a run: positions below `end` may be sampled under `slice_id`."""

    slice_id: int
    end: int


@dataclass(slots=True, eq=False)
class Run:
    """A prompt's stay on the device. `grants[0]` is the slice in effect, the others take over in turn."""

    first: Slice
    grants: deque[Grant]
    slice_ids: list[int]
    row: Row
    fed: int
    computed: int
    known: int  # ids of positions below this are on the host
    latest_id: int  # the id at position known - 1
    stop_ids: frozenset[int]
    is_started: bool = False
    in_flight: int = 0  # launched steps whose results are not taken
    reason: EndReason | None = None  # why it ends; set while steps in flight still hold its pages
    error: str | None = None

    @property
    def prompt_end(self) -> int:
        """First position whose id the slice did not bring."""
        return self.first.start + len(self.first.ids)

    @property
    def last_position(self) -> int:
        """Positions at and past this are never sampled, whatever is granted: max_tokens."""
        return self.first.num_prompt + self.first.sampling.max_tokens

    @property
    def limit(self) -> int:
        return min(self.grants[-1].end, self.last_position)

    @property
    def wants_results(self) -> bool:
        """Results of steps in flight still count: nothing ended the run, or only the engine's wish."""
        return self.reason in (None, EndReason.ENDED)

    @property
    def is_closed(self) -> bool:
        """Its last ids were launched without sampling: nothing can follow in this run."""
        return self.fed >= self.prompt_end >= self.limit

    def next_row(self, max_count: int) -> StepRow | None:
        """What the run can do in the next step with at most `max_count` tokens; None: nothing."""
        if self.reason is not None or max_count < 1:
            return None
        remaining = self.prompt_end - self.fed
        if remaining > 0:
            count = min(remaining, max_count)
            offset = self.fed - self.first.start
            ids = self.first.ids[offset : offset + count]
            sample = count == remaining and self.prompt_end < self.limit
            return StepRow(self.row, self.fed, count, ids, sample)
        if self.fed + 1 >= self.limit:
            return None
        return StepRow(self.row, self.fed, 1, [self.latest_id] if self.fed < self.known else None, True)

    def take(self, step_row: StepRow, token: int | None) -> int:
        """Take the result of a step; returns the id of the slice that it counts for."""
        self.computed = step_row.start + step_row.count
        self._take_over(self.computed)
        slice_id = self.grants[0].slice_id
        if token is None:
            if not step_row.sample and self.computed >= self.prompt_end:
                self.reason = self._limit_reason()
            return slice_id
        position = self.computed
        self.known, self.latest_id = position + 1, token
        if needs_history(self.first.sampling):
            self.row.history.append(token)
        if token in self.stop_ids and self._may_stop_at(position):
            self.reason = EndReason.STOP
        elif position + 1 >= self.limit:
            self.reason = self._limit_reason()
        else:
            self._take_over(position + 1)
        return slice_id

    def _may_stop_at(self, position: int) -> bool:
        """min_tokens holds the end back, but not a grammar's, which leaves nothing else to sample."""
        sampling = self.first.sampling
        return position - self.first.num_prompt >= sampling.min_tokens or sampling.grammar is not None

    def _take_over(self, position: int) -> None:
        """Let the slice be in effect under which `position` is sampled."""
        while len(self.grants) > 1 and position >= self.grants[0].end:
            self.grants.popleft()

    def _limit_reason(self) -> EndReason:
        return EndReason.LENGTH if self.limit == self.last_position else EndReason.USED


def needs_history(sampling: Sampling) -> bool:
    """Whether choosing a token needs the tokens before it on the host."""
    return (
        sampling.grammar is not None
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or sampling.repetition_penalty != 1.0
    )
