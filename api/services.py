"""What the routes work with, made once per process."""

import asyncio
import logging
import time
from dataclasses import dataclass

from starlette.requests import Request

from api.auth import Auth, Tenant, make_auth
from api.connection import Connection
from api.detokenize import UnsupportedTokenizerError
from api.engine_client import EngineClient
from api.errors import ApiError, unavailable, unknown_model
from api.generation import Generations
from api.grammar_check import GrammarChecks
from api.live import LiveFeed
from api.metrics import Metrics
from api.reader import Body, Reader
from api.request_log import note_of
from api.streams import OpenStreams
from api.tokenizers import TextModel, TextModels
from engine.config import Config
from engine.messages import ModelCard

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """Everything of one api process that outlives a request."""

    config: Config
    client: EngineClient
    auth: Auth
    text_models: TextModels
    metrics: Metrics
    generations: Generations
    streams: OpenStreams
    grammars: GrammarChecks
    live: LiveFeed

    @classmethod
    def make(cls, config: Config, client: EngineClient) -> "Services":
        """Raises ConfigError if the keys cannot be used."""
        metrics = Metrics()
        generations = Generations(client)
        auth = make_auth(config.server)
        streams = OpenStreams(metrics)
        grammars, live = GrammarChecks(), LiveFeed(client, metrics)
        return cls(config, client, auth, TextModels(), metrics, generations, streams, grammars, live)

    async def run(self) -> None:
        """The tasks behind the routes, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.client.run())
                group.create_task(self.streams.watch())
        finally:
            await self.grammars.close()

    def tenant_of(self, request: Request) -> Tenant:
        """Whose request it is. Raises ApiError (401)."""
        tenant = self.auth.resolve(request)
        note_of(request).fields["tenant"] = tenant.name
        return tenant

    async def find_model(self, name: str) -> tuple[ModelCard, TextModel]:
        """A model that is ready, with its tokenizer. Raises ApiError."""
        card = await self.find_card(name)
        try:
            return card, await self.text_models.get(card)
        except (OSError, ValueError, UnsupportedTokenizerError):
            logger.exception("the tokenizer of %s cannot be used", name)
            message = f"The tokenizer of {name!r} cannot be used; the server's log says why"
            raise ApiError(500, message, code="tokenizer_error") from None

    async def find_card(self, name: str) -> ModelCard:
        """Raises ApiError: 404 for an unknown model, 503 for one that is not ready."""
        client = self.client
        if name not in client.models and not await client.wait_present():
            raise unavailable("The engine is not running", "engine_unavailable")
        card = client.models.get(name)
        if card is not None:
            return card
        if (stage := client.loading.get(name)) is not None:
            raise unavailable(f"The model {name!r} is not ready: {stage}", "model_loading", 5.0)
        raise unknown_model(name, sorted(client.models))


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def read_body(request: Request, reader: Reader[Body]) -> Body:
    """The request's body, checked. Raises ApiError, ClientGoneError."""
    connection: Connection = request.state.connection
    limit = services_of(request).config.server.max_body
    return reader.read(await connection.read_body(request.headers.get("content-length"), limit))


def arrival_s() -> float:
    """The clock that latencies are measured by."""
    return time.monotonic()
