"""The Starlette application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.connection import ConnectionMiddleware
from api.errors import ApiError, internal_error, on_api_error, on_http_exception
from api.routes.chat import chat_completions
from api.routes.completions import completions
from api.routes.health import health, metrics, ready
from api.routes.models import list_models, show_model
from api.services import Services

ROUTES = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", show_model, methods=["GET"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
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
        routes=ROUTES,
        lifespan=lifespan,
        middleware=[Middleware(ConnectionMiddleware)],
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_exception,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.services = services
    return app


async def _on_bug(_: Request, __: Exception) -> Response:
    """Starlette raises the exception again after this, so that the server logs it."""
    return internal_error().response()
