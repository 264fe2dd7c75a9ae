"""GET / and its files, and GET /live/state, which the page shows."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.errors import bad_request, unavailable
from api.page_files import HEADERS, page_files
from api.routes.models import json_response
from api.services import services_of

MAX_CURSOR_DIGITS = 18


async def page(request: Request) -> Response:
    """The page, or a file of it. There is nothing in them that a key protects."""
    file = page_files().get(request.path_params.get("name", "index.html"))
    if file is None:
        raise HTTPException(404)
    headers = HEADERS | {"etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


async def live_state(request: Request) -> Response:
    """What the engine does now. With keys, others' prompts are seen by operators alone."""
    services = services_of(request)
    tenant = services.tenant_of(request)
    cursor = request.query_params.get("cursor", "0")
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= MAX_CURSOR_DIGITS):
        raise bad_request("cursor", "cursor must be the one of an earlier answer")
    state = await services.live.state(tenant, int(cursor))
    if state is None:
        raise unavailable("The engine is not running", "engine_unavailable")
    response = json_response(state)
    response.headers["cache-control"] = "no-store"
    return response
