"""From a request's fields to the engine's sampling parameters."""

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from api.errors import bad_request
from api.grammar_check import GrammarChecks
from api.schemas import GenerationRequest, ResponseFormat, StructuredOutputs
from api.tools import ToolUse
from engine.messages import Grammar, GrammarKind, ModelCard, Sampling

MAX_GRAMMAR_CHARS = 262_144
SEED_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What completions and chat ask for in different fields. `max_tokens` None: as many as the context
    holds. `own_stops` come from the way the prompt is written, beside the client's."""

    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    own_stops: tuple[str, ...] = ()
    tool_use: ToolUse | None = None


def draw_seed(body: GenerationRequest) -> int:
    """The client's seed, else a random one: every request has one, so that it can be resumed exactly."""
    return secrets.randbits(63) if body.seed is None else body.seed & SEED_MASK


def build_sampling(
    body: GenerationRequest,
    card: ModelCard,
    wanted: Wanted,
    prompt_tokens: int,
    seed: int,
    grammar: Grammar | None,
) -> Sampling:
    """Raises ApiError for token ids that the model does not have."""
    room = card.max_model_len - prompt_tokens
    max_tokens = room if wanted.max_tokens is None else min(wanted.max_tokens, room)
    defaults = card.sampling_defaults
    own = () if body.ignore_eos else card.eos_token_ids
    stop_ids = (*own, *(body.stop_token_ids or ()))
    _require_in_vocabulary("stop_token_ids", body.stop_token_ids or (), card)
    _require_in_vocabulary("logit_bias", body.logit_bias or (), card)

    def chosen(value: float | None, name: str, otherwise: float) -> float:
        return defaults.get(name, otherwise) if value is None else value

    return Sampling(
        max_tokens=max_tokens,
        is_open_ended=wanted.max_tokens is None,
        seed=seed,
        min_tokens=min(body.min_tokens or 0, max_tokens),
        temperature=chosen(body.temperature, "temperature", 1.0),
        top_p=chosen(body.top_p, "top_p", 1.0),
        top_k=max(0, int(chosen(body.top_k, "top_k", 0))),
        min_p=chosen(body.min_p, "min_p", 0.0),
        stop_token_ids=tuple(dict.fromkeys(stop_ids)),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=chosen(body.repetition_penalty, "repetition_penalty", 1.0),
        logit_bias=body.logit_bias or {},
        logprobs=wanted.logprobs,
        prompt_logprobs=wanted.prompt_logprobs,
        grammar=grammar,
    )


def choice_samplings(first: Sampling, num_choices: int) -> list[Sampling]:
    """The choices of one prompt differ by their seeds; the first is what n = 1 gives with the same seed."""
    seeds = [(first.seed + index) & SEED_MASK for index in range(num_choices)]
    return [msgspec.structs.replace(first, seed=seed) for seed in seeds]


async def read_grammar(
    body: GenerationRequest, card: ModelCard, demanded_call: Grammar | None, checks: GrammarChecks
) -> Grammar | None:
    """The one constraint that a request may set. Raises ApiError if it, or any, cannot be used."""
    structured = _structured_grammars("structured_outputs.", body.structured_outputs)
    if structured and not any(structured.values()):
        raise bad_request("structured_outputs", "structured_outputs says nothing that the answer has to fit")
    given = {
        "tool_choice": demanded_call,
        "response_format": _format_grammar(body.response_format),
        **structured,
        **_structured_grammars("guided_", _guided(body)),
    }
    grammars = [(param, grammar) for param, grammar in given.items() if grammar is not None]
    if not grammars:
        return None
    (param, grammar), *others = grammars
    if others:
        raise bad_request(others[0][0], f"{param} and {others[0][0]} exclude each other: give one of them")
    if card.grammars_problem is not None:
        raise bad_request(param, f"{param} cannot be used: {card.grammars_problem}")
    if len(grammar.source) > MAX_GRAMMAR_CHARS:
        raise bad_request(param, f"{param} is over the limit of {MAX_GRAMMAR_CHARS} characters")
    problem = await checks.problem_with(grammar)
    if problem:
        kind = grammar.kind.replace("_", " ")
        raise bad_request(param, f"{param} is not a {kind} that can be used: {problem}")
    return grammar


def _guided(body: GenerationRequest) -> StructuredOutputs:
    """The same under vLLM's older names."""
    return StructuredOutputs(
        json=body.guided_json,
        regex=body.guided_regex,
        choice=body.guided_choice,
        grammar=body.guided_grammar,
    )


def _structured_grammars(prefix: str, wanted: StructuredOutputs | None) -> dict[str, Grammar | None]:
    """By field."""
    if wanted is None:
        return {}
    return {
        f"{prefix}json": _schema_grammar(wanted.json),
        f"{prefix}regex": _grammar(GrammarKind.REGEX, wanted.regex),
        f"{prefix}choice": _grammar(GrammarKind.LARK, _one_of(wanted.choice)),
        f"{prefix}grammar": _grammar(GrammarKind.LARK, wanted.grammar),
        f"{prefix}json_object": _schema_grammar({"type": "object"} if wanted.json_object else None),
    }


def _one_of(answers: list[str] | None) -> str | None:
    """Lark writes strings as JSON does."""
    return None if answers is None else "start: " + " | ".join(map(json.dumps, answers))


def _format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _schema_grammar({"type": "object"})
    if wanted.json_schema is None:
        raise bad_request(
            "response_format.json_schema", "response_format.json_schema is required for this type"
        )
    return _schema_grammar(wanted.json_schema.schema)


def _schema_grammar(schema: dict[str, object] | str | None) -> Grammar | None:
    source = msgspec.json.encode(schema).decode() if isinstance(schema, dict) else schema
    return _grammar(GrammarKind.JSON_SCHEMA, source)


def _grammar(kind: GrammarKind, source: str | None) -> Grammar | None:
    return None if source is None else Grammar(kind=kind, source=source)


def _require_in_vocabulary(param: str, ids: Iterable[int], card: ModelCard) -> None:
    for token_id in ids:
        if token_id >= card.vocab_size:
            raise bad_request(
                param, f"{param}: token id {token_id} is not in the vocabulary of {card.vocab_size} tokens"
            )
