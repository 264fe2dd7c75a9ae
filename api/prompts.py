"""The prompts of a request as token ids: from text, ids or chat messages, checked against the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.chat_template import OWN_VARIABLES, PLAIN_STOPS, ChatTemplateError, render_plain
from api.errors import bad_request, context_too_long
from api.schemas import ChatTurn, Tool
from api.tokenizers import TextModel
from api.tools import template_messages, tool_value
from engine.messages import ModelCard


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation. A plain one ends at `stops`, as the model has no end-of-turn token."""

    ids: list[int]
    stops: tuple[str, ...]
    is_plain: bool


async def encode_completion_prompts(
    prompt: str | list[str | int | list[int]], model: TextModel, card: ModelCard
) -> list[list[int]]:
    """One list of ids per prompt. Raises ApiError."""
    if isinstance(prompt, str):
        prompts = await model.encode_all([prompt], add_prefix=True) if prompt else [[]]
        return [check_prompt(prompts[0], card, "prompt")]
    if not prompt:
        raise bad_request("prompt", "prompt: it has no tokens")
    if all(isinstance(entry, int) for entry in prompt):
        return [check_prompt([entry for entry in prompt if isinstance(entry, int)], card, "prompt")]
    texts = [entry for entry in prompt if isinstance(entry, str)]
    if len(texts) == len(prompt):
        encoded = await model.encode_all(texts, add_prefix=True)
        prompts = [ids if text else [] for ids, text in zip(encoded, texts, strict=True)]
    else:
        prompts = [entry for entry in prompt if isinstance(entry, list)]
    if len(prompts) != len(prompt):
        raise bad_request(
            "prompt", "prompt: expected a text, texts, token ids or lists of ids, not a mixture"
        )
    return [check_prompt(ids, card, f"prompt[{index}]") for index, ids in enumerate(prompts)]


async def encode_chat(
    turns: Sequence[ChatTurn],
    tools: Sequence[Tool],
    variables: Mapping[str, object] | None,
    model: TextModel,
    card: ModelCard,
) -> ChatPrompt:
    """The conversation in the model's own form, or as a plain transcript. Raises ApiError."""
    text, is_plain = render_chat(turns, tools, variables, model)
    encoded = await model.encode_all([text], add_prefix=is_plain)
    ids = check_prompt(encoded[0], card, "messages")
    return ChatPrompt(ids, PLAIN_STOPS if is_plain else (), is_plain)


def render_chat(
    turns: Sequence[ChatTurn],
    tools: Sequence[Tool],
    variables: Mapping[str, object] | None,
    model: TextModel,
) -> tuple[str, bool]:
    """The conversation as text, and whether that is a plain transcript. `variables` are the client's, for
    the template; one that does not ask for them is not changed by them. Raises ApiError."""
    _check_turns(turns)
    _check_variables(variables or {})
    template = model.chat_template
    messages = template_messages(turns, tools, template)
    if template is None:
        return render_plain(messages), True
    shown = [tool_value(tool) for tool in tools] if template.tool_style is not None else None
    try:
        return template.render(messages, shown, variables), False
    except ChatTemplateError as error:
        raise bad_request("messages", f"messages do not fit the model's chat template: {error}") from None


def _check_variables(variables: Mapping[str, object]) -> None:
    for name in variables:
        if name in OWN_VARIABLES or name.endswith("_token"):
            param = f"chat_template_kwargs.{name}"
            raise bad_request(param, f"{param} is not the client's to set")


def _check_turns(turns: Sequence[ChatTurn]) -> None:
    """What a turn must have depends on who speaks."""
    for index, turn in enumerate(turns):
        place = f"messages[{index}]"
        if turn.content is None and not turn.tool_calls:
            raise bad_request(
                f"{place}.content", f"{place}.content is required", "missing_required_parameter"
            )
        if turn.tool_calls and turn.role != "assistant":
            raise bad_request(f"{place}.tool_calls", f"{place}.tool_calls: only an assistant makes them")
        if (turn.role == "tool") != (turn.tool_call_id is not None):
            problem = "is required" if turn.role == "tool" else "is only for the role tool"
            raise bad_request(f"{place}.tool_call_id", f"{place}.tool_call_id {problem}")


def check_prompt(ids: list[int], card: ModelCard, param: str) -> list[int]:
    """Raises ApiError unless the model can take these ids and answer at least one token."""
    if not ids:
        raise bad_request(param, f"{param}: it has no tokens")
    if len(ids) >= card.max_model_len:
        raise context_too_long(len(ids), card.max_model_len, param)
    if min(ids) < 0 or max(ids) >= card.vocab_size:
        outside = next(token_id for token_id in ids if not 0 <= token_id < card.vocab_size)
        raise bad_request(
            param, f"{param}: token id {outside} is not in the vocabulary of {card.vocab_size} tokens"
        )
    return ids
