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
from api.errors import bad_request, rate_headers
from api.generation import Generation, GenerationPlan, expand_prompts
from api.request_log import note_of
from api.request_timer import RequestTimer
from api.sampling import build_sampling, choice_seed, draw_seed, read_grammar
from api.schemas import GenerationRequest
from api.services import Services
from api.streams import EventStream
from api.tokenizers import TextModel
from api.tools import ToolUse
from engine.messages import ModelCard, Submit

NS_PER_MS = 1_000_000

FormatMaker = Callable[[Generation, AnswerOptions], AnswerFormat]


async def plan_generation(
    services: Services,
    tenant: Tenant,
    body: GenerationRequest,
    model: tuple[ModelCard, TextModel],
    prompts: list[list[int]],
    *,
    id_prefix: str,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    own_stops: tuple[str, ...] = (),
    use: ToolUse | None = None,
) -> GenerationPlan:
    """Check what is left to check, and expand n. `max_tokens` None: as many as the context holds.

    Raises ApiError.
    """
    card, text_model = model
    num_choices = body.n or 1
    limit = services.config.server.max_prompts_per_request
    if len(prompts) * num_choices > limit:
        param = "n" if num_choices > 1 else "prompt"
        raise bad_request(
            param,
            f"{len(prompts)} prompts times n = {num_choices} is over the limit of {limit} in one request",
            "too_many_prompts",
        )
    seed = draw_seed(body)
    grammar = await read_grammar(body, use.grammar if use is not None else None, services.grammars)
    samplings = []
    for ids in prompts:
        room = card.max_model_len - len(ids)
        first = build_sampling(
            body,
            card,
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            seed=seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
        )
        samplings.append(
            [msgspec.structs.replace(first, seed=choice_seed(seed, index)) for index in range(num_choices)]
        )
    request_id = f"{id_prefix}-{secrets.token_hex(16)}"
    submit = Submit(
        request_id=request_id,
        model=card.name,
        prompts=expand_prompts(request_id, prompts, samplings),
        tenant=tenant.name,
        weight=tenant.weight,
        nice=body.priority or 0,
        latency_ns=None if body.latency_ms is None else int(body.latency_ms * NS_PER_MS),
        cache_salt=tenant.cache_salt(body.cache_salt),
        limits=tenant.limits,
    )
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return GenerationPlan(
        submit=submit,
        card=card,
        text_model=text_model,
        num_choices_per_prompt=num_choices,
        stops=stops + own_stops,
        shows_stop=bool(body.include_stop_str_in_output),
        counts_offsets=logprobs is not None,
        spelled=text_model.vocabulary.ids_named(use.style.markers) if use is not None else frozenset(),
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
    wants = body.stream_options
    if wants is not None and not body.stream:
        raise bad_request("stream_options", "stream_options is only for requests with stream = true")
    options = AnswerOptions(
        created_s=int(time.time()),
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs is not None,
        echo=echo,
        include_usage=wants is not None and wants.include_usage,
        continuous_usage=wants is not None and wants.include_usage and wants.continuous_usage_stats,
    )
    timer = RequestTimer(services.metrics, plan.card.name, arrived_s)
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
