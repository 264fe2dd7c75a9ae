"""The JSON in the events of a streamed completion, as far as loadgen looks at it.

msgspec decodes into these types in under a microsecond and steps over everything else, so each event is
decoded: nothing is guessed from its bytes.
"""

from typing import Any

import msgspec


class Delta(msgspec.Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    def has_token(self) -> bool:
        """Whether the event came with a token.

        Text is proof. Without text, an event that neither opens the answer (it names the role) nor closes it
        is a token whose text the server holds back, such as half of a character.
        """
        delta = self.delta
        if self.text or (delta and (delta.content or delta.reasoning_content or delta.tool_calls)):
            return True
        return self.finish_reason is None and (delta is None or delta.role is None)


class PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None


class Event(msgspec.Struct, gc=False):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


decode_event = msgspec.json.Decoder(Event).decode

DONE = b"[DONE]"
