"""Chat answers in which functions may be called."""

from api.answers import AnswerOptions, ChatFormat, Fields, Shown
from api.choices import Choice, Piece
from api.generation import Generation
from api.sse import to_json
from api.tool_parser import Parsed, ToolCall, ToolParser
from api.tools import ToolUse


class ToolChatFormat(ChatFormat):
    """Calls become `tool_calls`; in a stream each comes in one chunk, once it is complete."""

    def __init__(self, generation: Generation, options: AnswerOptions, *, use: ToolUse) -> None:
        super().__init__(generation, options)
        self._use = use
        self._parsers = [ToolParser(use.style, use.names) for _ in generation.choices]
        self._num_calls = [0 for _ in generation.choices]

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        parsed = self._parse(choice, piece)
        shown = self.shown(choice, piece)
        finish_reason = piece.finish_reason
        calls = b"".join(self._call_event(choice.index, call) for call in self._wanted(choice, parsed))
        if finish_reason == "stop" and self._num_calls[choice.index]:
            finish_reason = "tool_calls"
        if finish_reason is None and not parsed.text and not shown.tokens:
            return calls
        logprobs = self.logprobs(shown) if self.options.logprobs else None
        usage = self.generation.usage() if self.options.continuous_usage else None
        writer = self.writers[choice.index]
        text = writer.chunk(parsed.text, logprobs, None, usage) if parsed.text or shown.tokens else b""
        end = writer.chunk("", None, finish_reason, usage) if finish_reason is not None else b""
        return text + calls + end

    def whole_choice(self, choice: Choice, parts: list[Shown]) -> Fields:
        fields = super().whole_choice(choice, parts)
        parser = self._parsers[choice.index]
        fed, rest = parser.feed("".join(part.text for part in parts)), parser.finish()
        calls = [call.encode() for call in (*fed.calls, *rest.calls)][: self._use.max_calls]
        text = fed.text + rest.text
        message: Fields = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": calls}
            if choice.finish_reason == "stop":
                fields["finish_reason"] = "tool_calls"
        return fields | {"message": message}

    def _parse(self, choice: Choice, piece: Piece) -> Parsed:
        parser = self._parsers[choice.index]
        parsed = parser.feed(piece.text)
        if piece.finish_reason is not None:
            rest = parser.finish()
            parsed = Parsed(parsed.text + rest.text, parsed.calls + rest.calls)
        return parsed

    def _wanted(self, choice: Choice, parsed: Parsed) -> list[ToolCall]:
        """The calls that are given out."""
        limit = self._use.max_calls
        return parsed.calls if limit is None else parsed.calls[: limit - self._num_calls[choice.index]]

    def _call_event(self, index: int, call: ToolCall) -> bytes:
        number = self._num_calls[index]
        self._num_calls[index] += 1
        choice = {
            "index": index,
            "delta": {"tool_calls": [{"index": number} | call.encode()]},
            "logprobs": None,
            "finish_reason": None,
        }
        tail = b',"usage":null' if self.options.include_usage else b""
        return self.head.encode() + to_json(choice) + b"]" + tail + b"}\n\n"
