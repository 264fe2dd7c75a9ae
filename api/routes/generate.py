"""What /v1/completions and /v1/chat/completions have in common once the prompts are known."""

import secrets
import time
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api.answers import AnswerFormat, AnswerOptions
from api.auth import Tenant
from api.connection import Connection
from api.detokenize import Vocabulary
from api.errors import bad_request, rate_headers
from api.generation import Generation, GenerationPlan, expand_prompts
from api.request_log import note_of
from api.request_timer import RequestTimer
from api.sampling import Wanted, build_sampling, choice_samplings, draw_seed, read_grammar
from api.schemas import GenerationRequest
from api.services import Services
from api.streams import EventStream
from api.tokenizers import TextModel
from api.tools import ToolUse
from engine.messages import ModelCard, PromptSpec, Submit

NS_PER_MS = 1_000_000

FormatMaker = Callable[[Generation, AnswerOptions], AnswerFormat]


async def plan_generation(
    services: Services,
    tenant: Tenant,
    body: GenerationRequest,
    wanted: Wanted,
    model: tuple[ModelCard, TextModel],
    prompts: list[list[int]],
    id_prefix: str,
) -> GenerationPlan:
    """Check what is left to check, and expand n. Raises ApiError."""
    card, text_model = model
    num_choices = body.n or 1
    _check_num_prompts(len(prompts), num_choices, services.config.server.max_prompts_per_request)
    _check_speed(body.tokens_per_s, services.config.scheduler.max_floor_tokens_per_s)
    use = wanted.tool_use
    grammar = await read_grammar(body, card, use.grammar if use is not None else None, services.grammars)
    seed = draw_seed(body)
    samplings = [
        choice_samplings(build_sampling(body, card, wanted, len(ids), seed, grammar), num_choices)
        for ids in prompts
    ]
    request_id = f"{id_prefix}-{secrets.token_hex(16)}"
    return GenerationPlan(
        submit=_submit(request_id, card, tenant, body, expand_prompts(request_id, prompts, samplings)),
        card=card,
        text_model=text_model,
        num_choices_per_prompt=num_choices,
        stops=((body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())) + wanted.own_stops,
        shows_stop=bool(body.include_stop_str_in_output),
        counts_offsets=wanted.logprobs is not None,
        spelled=_spelled(text_model.vocabulary, body, use),
    )


def _check_num_prompts(num_prompts: int, num_choices: int, limit: int) -> None:
    if num_prompts * num_choices > limit:
        raise bad_request(
            "n" if num_choices > 1 else "prompt",
            f"{num_prompts} prompts times n = {num_choices} is over the limit of {limit} in one request",
            "too_many_prompts",
        )


def _check_speed(tokens_per_s: float | None, limit: float) -> None:
    if tokens_per_s is not None and tokens_per_s > limit:
        raise bad_request("tokens_per_s", f"{tokens_per_s:g} tokens/s is over the limit of {limit:g} here")


def _spelled(vocabulary: Vocabulary, body: GenerationRequest, use: ToolUse | None) -> frozenset[int]:
    """The special tokens that are seen in the text."""
    if body.skip_special_tokens is False:
        return frozenset(vocabulary.names)
    return frozenset() if use is None else vocabulary.ids_named(use.style.markers)


def _submit(
    request_id: str, card: ModelCard, tenant: Tenant, body: GenerationRequest, prompts: list[PromptSpec]
) -> Submit:
    return Submit(
        request_id=request_id,
        model=card.name,
        prompts=prompts,
        tenant=tenant.name,
        weight=tenant.weight,
        nice=body.priority or 0,
        latency_ns=None if body.latency_ms is None else int(body.latency_ms * NS_PER_MS),
        tokens_per_s=body.tokens_per_s,
        cache_salt=tenant.cache_salt(body.cache_salt),
        limits=tenant.limits,
    )


async def answer(
    request: Request,
    services: Services,
    body: GenerationRequest,
    plan: GenerationPlan,
    make_format: FormatMaker,
    *,
    arrived_s: float,
    logprobs: bool,
    echo: bool = False,
    headers: dict[str, str] | None = None,
) -> Response:
    """Submit and answer, as a stream or whole. Raises ApiError, ClientGoneError."""
    timer = RequestTimer(services.metrics, plan.card.name, arrived_s)
    options = _answer_options(body, logprobs=logprobs, echo=echo)
    note = note_of(request)
    note.name(plan.submit.request_id)
    note.fields |= {"model": plan.card.name, "generation": plan.submit.request_id}
    if body.stream:
        generation = await services.generations.start(plan, timer)
        note.outcome = generation.outcome
        try:
            stream_format = make_format(generation, options)
        except BaseException:
            services.generations.finish(generation)
            raise
        shown_headers = (headers or {}) | rate_headers(generation.request.rates)
        return EventStream(generation, stream_format, services.generations, services.streams, shown_headers)
    connection: Connection = request.state.connection
    async with (
        services.generations.started(plan, timer) as generation,
        connection.watched(generation.client_gone),
    ):
        note.outcome = generation.outcome
        whole = await make_format(generation, options).whole()
    shown_headers = (headers or {}) | rate_headers(generation.request.rates)
    return Response(msgspec.json.encode(whole), 200, shown_headers, media_type="application/json")


def _answer_options(body: GenerationRequest, *, logprobs: bool, echo: bool) -> AnswerOptions:
    wants = body.stream_options
    if wants is not None and not body.stream:
        raise bad_request("stream_options", "stream_options is only for requests with stream = true")
    return AnswerOptions(
        created_s=int(time.time()),
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs is not None,
        echo=echo,
        include_usage=wants is not None and wants.include_usage,
        continuous_usage=wants is not None and wants.include_usage and wants.continuous_usage_stats,
    )
