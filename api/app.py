"""The Starlette application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.connection import ConnectionMiddleware
from api.errors import ApiError, error_response
from api.routes.chat import chat_completions
from api.routes.completions import completions
from api.routes.health import health, metrics, openapi, ready
from api.routes.live import live_state, page
from api.routes.models import list_models, show_model
from api.routes.responses import responses
from api.routes.tokens import detokenize, tokenize
from api.services import Services, services_of
from engine.config import ServerConfig

ROUTES = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", show_model, methods=["GET"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/live/state", live_state, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
]
PAGE_ROUTES = [
    Route("/", page, methods=["GET"]),
    Route("/static/{name}", page, methods=["GET"]),
]


def make_app(services: Services) -> Starlette:
    """The application over services whose tasks run while its lifespan lasts."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(services.run())
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    app = Starlette(
        routes=[*ROUTES, *PAGE_ROUTES],
        lifespan=lifespan,
        middleware=[*_cors(services.config.server), Middleware(ConnectionMiddleware)],
        exception_handlers={
            ApiError: _on_error,
            HTTPException: _on_error,
            Exception: _on_error,
        },
    )
    app.router.redirect_slashes = False
    app.state.services = services
    return app


def _cors(server: ServerConfig) -> list[Middleware]:
    """Lets scripts of other web pages in. A key is a header that a script sets, so cookies are not needed."""
    if not server.allowed_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=server.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    ]


async def _on_error(request: Request, error: Exception) -> Response:
    """Every error answer leaves here. Starlette raises unknown ones again, so that the server logs them."""
    response = error_response(request, error)
    services_of(request).metrics.errors.labels(str(response.status_code)).inc()
    return response
