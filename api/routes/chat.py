"""POST /v1/chat/completions."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from api.answers import ChatFormat
from api.auth import Tenant
from api.errors import bad_request
from api.prompts import encode_chat
from api.reader import Reader
from api.routes.generate import FormatMaker, answer, plan_generation
from api.sampling import Wanted
from api.schemas import ChatRequest
from api.services import Services, arrival_s, read_body, services_of
from api.tool_answers import ToolChatFormat
from api.tools import offered_tools, tool_use

NOTICE_HEADER = "x-fairslice-notice"
PLAIN_NOTICE = "base model without a chat template; the messages were written as a plain transcript"

READER = Reader(ChatRequest)


async def chat_completions(request: Request) -> Response:
    arrived_s = arrival_s()
    services = services_of(request)
    tenant = services.tenant_of(request)
    services.generations.check_accepting()
    body = await read_body(request, READER)
    return await answer_chat(request, services, tenant, body, ChatFormat, "chatcmpl", arrived_s)


async def answer_chat(
    request: Request,
    services: Services,
    tenant: Tenant,
    body: ChatRequest,
    make_format: FormatMaker,
    id_prefix: str,
    arrived_s: float,
) -> Response:
    """Answer a conversation in one endpoint's format. Raises ApiError, ClientGoneError."""
    logprobs = _wanted_logprobs(body)
    if body.stream and body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs", "prompt_logprobs is only for requests without stream")
    model = await services.find_model(body.model)
    tools = offered_tools(body)
    prompt = await encode_chat(body.messages, tools, body.chat_template_kwargs, model[1], model[0])
    use = tool_use(body, tools, model[1].chat_template)
    wanted = Wanted(
        max_tokens=body.max_completion_tokens or body.max_tokens or services.config.server.default_max_tokens,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        own_stops=prompt.stops,
        tool_use=use,
    )
    plan = await plan_generation(services, tenant, body, wanted, model, [prompt.ids], id_prefix)
    return await answer(
        request,
        services,
        body,
        plan,
        make_format if use is None else partial(ToolChatFormat, use=use),
        arrived_s=arrived_s,
        logprobs=logprobs is not None,
        headers={NOTICE_HEADER: PLAIN_NOTICE} if prompt.is_plain else {},
    )


def _wanted_logprobs(body: ChatRequest) -> int | None:
    """How many alternatives to report; None: no log probabilities. Raises ApiError."""
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs", "top_logprobs needs logprobs = true")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise bad_request("max_tokens", "max_tokens is the old name of max_completion_tokens: give one")
    return (body.top_logprobs or 0) if body.logprobs else None
