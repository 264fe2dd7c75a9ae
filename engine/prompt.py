"""A prompt as the scheduler sees it: its tokens, its context, and the slice that it has."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import Struct

from engine.fairness.policy import Task
from engine.memory.context import Context
from engine.memory.prefix_tree import TOKEN_BYTES, pack_tokens
from engine.messages import FinishReason, Sampling, TokenDelta, TokenLogprobs

if TYPE_CHECKING:
    from engine.device import Device


UNSET_ANSWER_TOKENS = 1024  # an answer without a length of its own counts so much, until it is longer


def expected_answer(sampling: Sampling) -> int:
    """Tokens of an answer at its longest; where it has any length, an estimate: few fill the context."""
    if not sampling.is_open_ended:
        return sampling.max_tokens
    return min(sampling.max_tokens, UNSET_ANSWER_TOKENS)


def expected_tokens(num_input: int, num_output: int, sampling: Sampling) -> int:
    """The length of a context at its longest, as far as can be told."""
    return num_input + max(num_output, expected_answer(sampling))


class Turn(Struct, eq=False):
    """The slices that a prompt runs through without a pause, on one device.

    `slice_id` is the slice in force and `next_id` the extension queued behind it, which may turn out void if
    it crosses the end of the slice on its way.
    """

    device: "Device"
    slice_id: int
    until: int  # number of output tokens at which the last slice queued is used up
    old_ns: int | None = None  # from when others may have its place; None: no step was reported yet
    next_id: int | None = None
    is_ending: bool = False  # told to end at the next step boundary
    is_expiring: bool = False  # nearly used up, and back in the fair queue beside those that wait
    is_first: bool = False  # lasts until the first token


@dataclass(slots=True, eq=False, kw_only=True)
class Prompt:
    """One prompt from its admission to its end. Ids are the api's; `task` is what policies see.

    What a plan asks of a prompt that is to run stands first, together: of one that waited among thousands it
    is cold memory.
    """

    task: Task
    context: Context
    input_ids: list[int]
    output_ids: list[int]
    expected_answer: int = field(init=False)  # tokens
    turn: Turn | None = None
    salt: Hashable = None  # prompts with the same one may share prefixes
    packed: bytes = b""  # its tokens, as far as the prefix cache was asked about them
    sampling: Sampling
    has_started: bool = False
    first_token_ns: int | None = None  # of the first that was sampled here
    tokens_per_s: float | None = None  # its reader's own speed; None: everybody's
    arrival_ns: int
    last_token_ns: int  # of the latest token, or the arrival
    prompt_id: str
    api_id: str
    finish: FinishReason | None = None
    uncharged_ns: int = 0  # GPU time used in slices that have not ended
    peak_computed: int = 0  # positions that were computed at some time: below it, computing is recomputing
    num_sent: int = 0  # output tokens that its api has
    num_restored: int = 0  # output tokens that it brought along when it was resubmitted
    num_preemptions: int = 0
    cached_tokens: int = 0  # of the prompt, that its first turn found computed
    longest_gap_ns: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    error: str | None = None

    def __post_init__(self) -> None:
        self.expected_answer = expected_answer(self.sampling)

    @property
    def num_tokens(self) -> int:
        """Tokens that are known: the context length once all are computed, and one more to feed."""
        return len(self.input_ids) + len(self.output_ids)

    @property
    def expected_tokens(self) -> int:
        """The context length for which there has to be room; at least one more than is known."""
        answer, least = self.expected_answer, len(self.output_ids) + 1
        return len(self.input_ids) + (answer if answer > least else least)

    @property
    def has_first_token(self) -> bool:
        return bool(self.output_ids)

    @property
    def num_sampled(self) -> int:
        """Output tokens that it got here."""
        return len(self.output_ids) - self.num_restored

    @property
    def remaining(self) -> int:
        """Output tokens that it may still sample."""
        return self.sampling.max_tokens - len(self.output_ids)

    def ids_from(self, start: int) -> list[int]:
        """Token ids at positions `start` and on; not to be changed."""
        if not start:
            return self.input_ids + self.output_ids if self.output_ids else self.input_ids
        num_input = len(self.input_ids)
        if start >= num_input:
            return self.output_ids[start - num_input :]
        return self.input_ids[start:] + self.output_ids

    def pack(self) -> bytes:
        """All known tokens as the prefix cache compares them."""
        if len(self.packed) != (len(self.input_ids) + len(self.output_ids)) * TOKEN_BYTES:
            self.packed += pack_tokens(self.ids_from(len(self.packed) // TOKEN_BYTES))
        return self.packed

    def take_logprobs(
        self, start: int, sampled: TokenLogprobs | None, of_prompt: list[TokenLogprobs | None] | None
    ) -> None:
        """Keep what a step that computed positions from `start` on reported beside its token. Of a position
        that was computed again, nothing is new."""
        if sampled is not None:
            self.logprobs.append(sampled)
        if of_prompt is not None:
            self.prompt_logprobs += of_prompt[max(0, len(self.prompt_logprobs) - start) :]

    def take_delta(self) -> TokenDelta:
        """What its api does not have yet."""
        start, self.num_sent = self.num_sent, len(self.output_ids)
        return TokenDelta(
            prompt_id=self.prompt_id,
            start=start,
            ids=self.output_ids[start:],
            finish=self.finish,
            service_ns=self.task.service_ns + self.uncharged_ns,
            cached_tokens=self.cached_tokens,
            logprobs=self.logprobs[start - self.num_restored :]
            if self.sampling.logprobs is not None
            else None,
            prompt_logprobs=self.prompt_logprobs if start == 0 and self.prompt_logprobs else None,
            error=self.error,
        )

    def needs_history(self) -> bool:
        """Whether the runner has to know the ids before `start`."""
        sampling = self.sampling
        return (
            sampling.grammar is not None
            or sampling.presence_penalty != 0.0
            or sampling.frequency_penalty != 0.0
            or sampling.repetition_penalty != 1.0
        )
