"""A device of a model as the scheduler sees it: what runs there, how fast, and the plan being made for it."""

from collections import deque
from dataclasses import dataclass, field

from engine.memory.context import Context
from engine.messages import CostModel, Extension, Move, Plan, Slice
from engine.prompt import Prompt, Turn

LOOKAHEAD_NS = 20_000_000  # the next slice is planned so long before this one is used up, ...
LOOKAHEAD_STEPS = 2  # ... and at least so many steps


@dataclass(slots=True)
class Outbox:
    """The next plan for a runner, while it is being put together."""

    slices: list[Slice] = field(default_factory=list)
    extensions: list[Extension] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    cancels: list[int] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)

    def take(self) -> Plan | None:
        """The plan so far, and start a new one; None if there is nothing to do."""
        if not (self.slices or self.extensions or self.ends or self.cancels or self.moves):
            return None
        plan = Plan(
            slices=self.slices,
            extensions=self.extensions,
            ends=self.ends,
            cancels=self.cancels,
            moves=self.moves,
        )
        self.slices, self.extensions, self.ends, self.cancels, self.moves = [], [], [], [], []
        return plan


@dataclass(slots=True, eq=False)
class Device:
    """One runner's device. `running` holds the prompts that have a turn here, in order of their start."""

    name: str
    pool_id: int
    max_batch: int
    max_context_tokens: int  # the longest that its pool holds
    cost: CostModel
    step_ns: float  # of a decode step with the batch of now: a moving average
    is_up: bool = True
    running: dict[Prompt, None] = field(default_factory=dict)
    ending: dict[Prompt, None] = field(default_factory=dict)  # of those, whom the runner was told to end
    by_slice: dict[int, Prompt] = field(default_factory=dict)
    suspects: dict[Prompt, None] = field(default_factory=dict)  # to be tried here, each alone (`suspects`)
    cancelled: dict[int, Context] = field(default_factory=dict)  # by slice, until its end is reported
    young: deque[tuple[int, Turn]] = field(default_factory=deque)  # by the time from which they are old
    outbox: Outbox = field(default_factory=Outbox)
    busy_ns: int = 0
    idle_ns: int = 0
    num_steps: int = 0
    lookahead_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self._look_ahead()

    @property
    def num_slots_free(self) -> int:
        """Places in the batch that anybody may have."""
        return 0 if self.suspects else self.max_batch - len(self.running)

    def can_hold(self, prompt: Prompt) -> bool:
        """Whether the prompt's context fits here as long as it is expected to become."""
        return prompt.expected_tokens <= self.max_context_tokens

    def observe_step(self, step_ns: int, idle_ns: int, *, is_decode: bool) -> None:
        """Account for a step; decode steps set the pace by which slices are measured out."""
        self.num_steps += 1
        self.busy_ns += step_ns
        self.idle_ns += idle_ns
        if is_decode:
            self.step_ns += 0.1 * (step_ns - self.step_ns)
            self._look_ahead()

    def _look_ahead(self) -> None:
        self.lookahead_steps = max(LOOKAHEAD_STEPS, round(LOOKAHEAD_NS / self.step_ns))
