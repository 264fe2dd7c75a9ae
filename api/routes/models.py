"""GET /v1/models and /v1/models/{id}."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api.errors import unknown_model
from api.services import services_of
from engine.messages import ModelCard


def describe(card: ModelCard) -> dict[str, object]:
    """A model in OpenAI's form, with vLLM's `max_model_len`. `created` is when it was loaded."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.loaded_s,
        "owned_by": "fairslice",
        "max_model_len": card.max_model_len,
    }


async def list_models(request: Request) -> Response:
    services = services_of(request)
    services.tenant_of(request)
    client = services.client
    await client.wait_present()
    cards = [describe(card) for _, card in sorted(client.models.items())]
    return json_response({"object": "list", "data": cards})


async def show_model(request: Request) -> Response:
    services = services_of(request)
    services.tenant_of(request)
    client = services.client
    name = request.path_params["model"]
    if name not in client.models:
        raise unknown_model(name, sorted(client.models))
    return json_response(describe(client.models[name]))


def json_response(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
