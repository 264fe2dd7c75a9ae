"""How the endpoints write their answers: one format per endpoint, for streams and for whole answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from api.choices import Choice, Piece
from api.detokenize import text_and_offsets
from api.generation import Generation
from api.logprobs import Entry, chat_logprobs, completion_logprobs, entries, prompt_logprobs
from api.sse import DONE, ChunkWriter, StreamHead
from api.streams import StreamFormat

Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What a client asked to see beside the text."""

    created_s: int
    logprobs: bool = False
    prompt_logprobs: bool = False
    echo: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(slots=True)
class Shown:
    """Text of one choice as the client sees it; tokens and their places only where it asked for them."""

    text: str = ""
    tokens: list[Entry] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)


class AnswerFormat(StreamFormat, Protocol):
    """How one endpoint writes its answer. One is made for each request."""

    async def whole(self) -> Fields:
        """The answer in one. Raises ClientGoneError, ApiError."""


class ChoicesFormat(ABC):
    """What completions and chat have in common; subclasses give the names and nestings."""

    object_name: str
    chunk_object: str
    before_text: bytes
    after_text: bytes

    def __init__(self, generation: Generation, options: AnswerOptions) -> None:
        self.generation = generation
        self.options = options
        self.vocabulary = generation.plan.text_model.vocabulary
        submit = generation.plan.submit
        self.head = StreamHead(submit.request_id, self.chunk_object, options.created_s, submit.model)
        self.writers = [
            ChunkWriter(
                self.head,
                index,
                self.before_text,
                self.after_text,
                null_usage=options.include_usage and not options.continuous_usage,
            )
            for index in range(len(generation.choices))
        ]

    def opening(self) -> bytes:
        """Chunks that come before any token."""
        return b""

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """The chunk of a piece; nothing if there is nothing to show."""
        shown = self.shown(choice, piece)
        writer = self.writers[choice.index]
        if piece.finish_reason is None and not shown.tokens and not self.options.continuous_usage:
            return writer.text(shown.text) if shown.text else b""
        logprobs = self.logprobs(shown) if self.options.logprobs else None
        usage = self.generation.usage() if self.options.continuous_usage else None
        return writer.chunk(shown.text, logprobs, piece.finish_reason, usage)

    def closing(self) -> bytes:
        """What comes after all tokens."""
        usage = self.head.usage_event(self.generation.usage()) if self.options.include_usage else b""
        return usage + DONE

    async def whole(self) -> Fields:
        """The answer in one. Raises ClientGoneError, ApiError."""
        generation = self.generation
        pieces = await generation.complete()
        return {
            "id": generation.plan.submit.request_id,
            "object": self.object_name,
            "created": self.options.created_s,
            "model": generation.plan.submit.model,
            "choices": [
                self.whole_choice(choice, [self.shown(choice, piece) for piece in own])
                for choice, own in zip(generation.choices, pieces, strict=True)
            ],
            "usage": generation.usage(),
        }

    def shown(self, choice: Choice, piece: Piece) -> Shown:
        """What a piece shows."""
        if not self.options.logprobs:
            return Shown(piece.text)
        return Shown(piece.text, entries(choice, piece), list(piece.offsets))

    @abstractmethod
    def logprobs(self, shown: Shown) -> Fields:
        """`choices[].logprobs`."""

    @abstractmethod
    def text_fields(self, text: str) -> Fields:
        """What a whole choice has its text in."""

    def whole_choice(self, choice: Choice, parts: list[Shown]) -> Fields:
        """A complete choice of an answer that is not streamed."""
        whole = Shown(
            "".join(part.text for part in parts),
            list(chain.from_iterable(part.tokens for part in parts)),
            list(chain.from_iterable(part.offsets for part in parts)),
        )
        fields: Fields = {
            "index": choice.index,
            **self.text_fields(whole.text),
            "logprobs": self.logprobs(whole) if self.options.logprobs else None,
            "finish_reason": choice.finish_reason,
        }
        prompt = choice.prompt
        if self.options.prompt_logprobs and prompt.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(
                self.vocabulary, prompt.spec.input_ids, prompt.prompt_logprobs
            )
        return fields


class ChatFormat(ChoicesFormat):
    object_name = "chat.completion"
    chunk_object = "chat.completion.chunk"
    before_text = b'"delta":{"content":'
    after_text = b"}"

    def opening(self) -> bytes:
        """The role, once per choice."""
        heads = (
            ChunkWriter(
                self.head,
                index,
                b'"delta":{"role":"assistant","content":',
                b"}",
                null_usage=self.options.include_usage,
            )
            for index in range(len(self.generation.choices))
        )
        return b"".join(head.text("") for head in heads)

    def logprobs(self, shown: Shown) -> Fields:
        return chat_logprobs(self.vocabulary, shown.tokens)

    def text_fields(self, text: str) -> Fields:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}


class CompletionFormat(ChoicesFormat):
    object_name = "text_completion"
    chunk_object = "text_completion"
    before_text = b'"text":'
    after_text = b""

    def __init__(self, generation: Generation, options: AnswerOptions) -> None:
        super().__init__(generation, options)
        self._echoes = [
            text_and_offsets(self.vocabulary, choice.prompt.spec.input_ids) if options.echo else ("", [])
            for choice in generation.choices
        ]
        self._to_echo = {choice.index for choice in generation.choices} if options.echo else set()

    def shown(self, choice: Choice, piece: Piece) -> Shown:
        """With `echo`, the prompt comes before the first piece."""
        shown = super().shown(choice, piece)
        if not self.options.echo:
            return shown
        prompt = choice.prompt
        text, offsets = self._echoes[choice.index]
        shown.offsets = [len(text) + offset for offset in shown.offsets]
        if choice.index in self._to_echo:
            self._to_echo.discard(choice.index)
            shown.text = text + shown.text
            if self.options.logprobs:
                ids = prompt.spec.input_ids
                values = prompt.prompt_logprobs or [None] * len(ids)
                shown.tokens = [*zip(ids, values, strict=True), *shown.tokens]
                shown.offsets = offsets + shown.offsets
        return shown

    def logprobs(self, shown: Shown) -> Fields:
        return completion_logprobs(self.vocabulary, shown.tokens, shown.offsets)

    def text_fields(self, text: str) -> Fields:
        return {"text": text}
