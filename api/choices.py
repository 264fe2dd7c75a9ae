"""One choice of an answer: the tokens of one prompt becoming text, until it ends."""

from collections.abc import Callable
from dataclasses import dataclass

from api.detokenize import Detokenizer
from api.open_requests import OpenPrompt
from api.stops import StopStrings
from engine.messages import FinishReason

FINISH_NAMES = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of a choice. `first` is the index of its first token in the prompt's output, `offsets` the
    places of its tokens in the text (empty unless they are counted)."""

    text: str
    first: int
    offsets: tuple[int, ...]
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """How a choice's tokens are shown."""

    stop_token_ids: frozenset[int]
    shows_stop: bool
    min_tokens: int
    counts_offsets: bool


class Choice:
    """The state of one choice. `finish_reason` is set when it has ended for the client."""

    __slots__ = (
        "_abort",
        "_chars",
        "_detokenizer",
        "_options",
        "_stops",
        "finish_reason",
        "index",
        "num_tokens",
        "prompt",
    )

    def __init__(
        self,
        index: int,
        prompt: OpenPrompt,
        detokenizer: Detokenizer,
        stops: StopStrings,
        options: ChoiceOptions,
        abort: Callable[[OpenPrompt], None],
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.finish_reason: str | None = None
        self.num_tokens = 0  # taken into account: what usage counts
        self._detokenizer = detokenizer
        self._stops = stops
        self._options = options
        self._abort = abort
        self._chars = 0

    @property
    def failed(self) -> bool:
        """The prompt ended without an answer that could be shown."""
        return self.finish_reason is None and self.prompt.finish in {FinishReason.ERROR, FinishReason.ABORT}

    def advance(self) -> Piece | None:
        """Take in what has come since the last time; None if nothing did."""
        prompt = self.prompt
        first = self.num_tokens
        if self.finish_reason is not None or (len(prompt.output_ids) == first and prompt.finish is None):
            return None
        end = len(prompt.output_ids)
        hidden = self._hides_last(end)
        self.num_tokens = end
        offsets: tuple[int, ...] = ()
        if self._stops.is_active or self._options.counts_offsets:
            text, offsets = self._take_one_by_one(first, end - hidden)
        else:
            text = self._detokenizer.feed(prompt.output_ids[first : end - hidden])
        if self._stops.found is None:
            text += self._finish()
        else:
            self._abort(prompt)
            self.finish_reason = "stop"
        return Piece(text, first, offsets, self.finish_reason)

    def _hides_last(self, end: int) -> bool:
        prompt, options = self.prompt, self._options
        return (
            prompt.finish is FinishReason.STOP
            and not options.shows_stop
            and end > 0
            and prompt.output_ids[-1] in options.stop_token_ids
        )

    def _take_one_by_one(self, first: int, end: int) -> tuple[str, tuple[int, ...]]:
        """Stop strings end the text at the same token however many tokens arrive together."""
        shown: list[str] = []
        offsets: list[int] = []
        for position in range(first, end):
            text = self._detokenizer.feed(self.prompt.output_ids[position : position + 1])
            offsets.append(self._chars)
            self._chars += len(text)
            shown.append(self._stops.feed(text) if position + 1 > self._options.min_tokens else text)
            if self._stops.found is not None:
                self.num_tokens = position + 1
                break
        return "".join(shown), tuple(offsets)

    def _finish(self) -> str:
        """The last text, once the prompt has ended."""
        finish = self.prompt.finish
        if finish is None:
            return ""
        self.finish_reason = FINISH_NAMES.get(finish)
        text = self._stops.feed(self._detokenizer.flush())
        if self._stops.found is not None:
            self.finish_reason = "stop"
            return text
        return text + self._stops.flush()
