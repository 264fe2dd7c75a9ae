"""POST /v1/completions."""

from starlette.requests import Request
from starlette.responses import Response

from api.answers import CompletionFormat
from api.errors import bad_request
from api.prompts import encode_completion_prompts
from api.reader import Reader
from api.routes.generate import answer, plan_generation
from api.sampling import Wanted
from api.schemas import CompletionRequest
from api.services import arrival_s, read_body, services_of

DEFAULT_MAX_TOKENS = 16  # as OpenAI's

READER = Reader(CompletionRequest)


async def completions(request: Request) -> Response:
    arrived_s = arrival_s()
    services = services_of(request)
    tenant = services.tenant_of(request)
    services.generations.check_accepting()
    body = await read_body(request, READER)
    if body.stream and body.prompt_logprobs is not None:
        raise bad_request("prompt_logprobs", "prompt_logprobs is only for requests without stream")
    model = await services.find_model(body.model)
    prompts = await encode_completion_prompts(body.prompt, model[1], model[0])
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(body.logprobs, prompt_logprobs or 0)
    wanted = Wanted(
        max_tokens=body.max_tokens or services.config.server.default_max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
    )
    plan = await plan_generation(services, tenant, body, wanted, model, prompts, "cmpl")
    return await answer(
        request,
        services,
        body,
        plan,
        CompletionFormat,
        arrived_s=arrived_s,
        logprobs=body.logprobs is not None,
        echo=bool(body.echo),
    )
