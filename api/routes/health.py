"""GET /health, /ready, /metrics and /openapi.json."""

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from api.auth import require_operator
from api.openapi import document
from api.routes.models import json_response
from api.services import services_of


async def health(request: Request) -> Response:
    """This process is alive."""
    return json_response({"status": "ok"})


async def ready(request: Request) -> Response:
    """200 once a model can be used, until shutdown begins; else 503 with what goes on. Models whose runners
    are all being started again take requests, and answer them later: if there is no other, that is a 503."""
    services = services_of(request)
    client = services.client
    if services.generations.is_draining:
        return json_response({"status": "shutting down"}, 503)
    if not client.is_connected:
        return json_response({"status": "waiting for the engine"}, 503)
    if not client.models:
        return json_response({"status": "loading", "loading": client.loading}, 503)
    serving = sorted(client.models.keys() - client.recovering.keys())
    told = {"models": serving, "loading": client.loading, "recovering": client.recovering}
    if not serving:
        return json_response({"status": "recovering", **told}, 503)
    return json_response({"status": "ready", **told})


async def metrics(request: Request) -> Response:
    """Prometheus text: the api's counters and the engine's. They tell of all tenants: where there are
    keys, an operator's is needed."""
    services = services_of(request)
    require_operator(services.tenant_of(request))
    stats = await services.client.stats()
    text = services.metrics.render(stats.samples if stats is not None else [])
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def openapi(request: Request) -> Response:
    """What this server takes and gives."""
    models = tuple(sorted(services_of(request).client.models))
    return Response(document(models), media_type="application/json")
