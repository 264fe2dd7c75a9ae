"""The connection to the engine: one per api process, made again for ever when it is lost.

A request is owned here until its last byte is sent. After each reconnection every open request is submitted
again with the tokens that came so far, and tokens that come twice are dropped, so that a client of an engine
that died sees a pause and nothing else.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

from api.errors import ApiError, rejected, unavailable
from engine.messages import (
    Abort,
    Admitted,
    FinishReason,
    GetStats,
    Hello,
    ModelCard,
    PromptSpec,
    Rejected,
    Stats,
    Submit,
    ToApi,
    TokenDelta,
    TokenLogprobs,
    Tokens,
    Welcome,
)
from engine.wire import MessageStream, ProtocolError

logger = logging.getLogger(__name__)

PRESENCE_WAIT_S = 3.0  # a new request waits this long for an engine that is not there
ADMISSION_WAIT_S = 10.0  # and this long for its answer
STATS_WAIT_S = 2.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0


class OpenPrompt:
    """A prompt that the engine works on, with everything that came of it so far."""

    __slots__ = (
        "cached_tokens",
        "error",
        "finish",
        "input_ids",
        "logprobs",
        "output_ids",
        "prompt_id",
        "prompt_logprobs",
        "request",
        "service_ns",
        "spec",
    )

    def __init__(self, request: "OpenRequest", spec: PromptSpec) -> None:
        self.request = request
        self.spec = spec
        self.output_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []  # parallel to output_ids where the spec asks for them
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.finish: FinishReason | None = None
        self.error: str | None = None
        self.service_ns = 0
        self.cached_tokens = 0

    def receive(self, delta: TokenDelta) -> None:
        """Take in what is new in a delta. Raises ProtocolError if tokens are missing before it."""
        known = len(self.output_ids) - delta.start
        if known < 0:
            raise ProtocolError(f"tokens from {len(self.output_ids)} to {delta.start} are missing")
        self.output_ids += delta.ids[known:] if known else delta.ids
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs[known:]
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.service_ns = max(self.service_ns, delta.service_ns)
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        self.finish = delta.finish
        self.error = delta.error

    def fail(self, message: str) -> None:
        self.finish = FinishReason.ERROR
        self.error = message

    def resubmission(self) -> PromptSpec:
        """What an engine that may have forgotten the prompt needs to go on with it."""
        return PromptSpec(
            prompt_id=self.spec.prompt_id,
            input_ids=self.spec.input_ids,
            sampling=self.spec.sampling,
            output_ids=list(self.output_ids),
            service_ns=self.service_ns,
        )


class OpenRequest:
    """A request from its submission until its answer is complete or its client is gone."""

    def __init__(self, submit: Submit) -> None:
        self.submit = submit
        self.prompts = [OpenPrompt(self, spec) for spec in submit.prompts]
        self.admitted = False
        self.refusal: ApiError | None = None
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Something changed: let `changed` return."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def changed(self) -> None:
        """Wait until something has changed since the last time that this returned."""
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._news = False

    def fail(self, message: str) -> None:
        for prompt in self.prompts:
            if prompt.finish is None:
                prompt.fail(message)
        self.wake()

    def submission(self) -> Submit:
        """The message for an engine that may or may not know the request."""
        old = self.submit
        return Submit(
            request_id=old.request_id,
            model=old.model,
            prompts=[prompt.resubmission() for prompt in self.prompts if prompt.finish is None],
            tenant=old.tenant,
            weight=old.weight,
            nice=old.nice,
            latency_ns=old.latency_ns,
            cache_salt=old.cache_salt,
            resubmitted=self.admitted,
        )


class EngineClient:
    """Everything that an api process knows of the engine."""

    def __init__(self, socket_path: str, on_ready: Callable[[ModelCard], None] = lambda card: None) -> None:
        self.socket_path = socket_path
        self.models: dict[str, ModelCard] = {}
        self.loading: dict[str, str] = {}
        self.reconnections = 0
        self._api_id = secrets.token_hex(8)
        self._on_ready = on_ready
        self._stream: MessageStream[ToApi] | None = None
        self._closed = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._requests: dict[str, OpenRequest] = {}
        self._unsent: set[str] = set()  # open requests not yet submitted on this connection
        self._unsent_aborts: list[str] = []
        self._prompts: dict[str, OpenPrompt] = {}
        self._stats: dict[int, asyncio.Future[Stats]] = {}
        self._next_serial = 0

    @property
    def is_connected(self) -> bool:
        """An engine is there and has said what it serves."""
        return self._welcomed.is_set()

    @property
    def open_requests(self) -> int:
        return len(self._requests)

    def check_integrity(self) -> None:
        """Every open prompt belongs to an open request, and nothing else is kept."""
        owned = {
            prompt.spec.prompt_id
            for request in self._requests.values()
            for prompt in request.prompts
            if prompt.finish is None
        }
        assert owned == set(self._prompts), (owned, set(self._prompts))
        assert self._unsent <= set(self._requests)

    async def run(self) -> None:
        """Keep a connection to the engine until cancelled."""
        backoff_s = FIRST_BACKOFF_S
        try:
            while True:
                if await self._connect():
                    backoff_s = FIRST_BACKOFF_S
                    await self._closed.wait()
                    self.reconnections += 1
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        finally:
            if self._stream is not None:
                self._stream.close()

    async def submit(self, submit: Submit) -> OpenRequest:
        """Have the engine accept a request. The caller must `release` it in the end.

        Raises ApiError: what the engine objects to, or 503 if it does not answer in time.
        """
        request = OpenRequest(submit)
        self._requests[submit.request_id] = request
        self._prompts |= {prompt.spec.prompt_id: prompt for prompt in request.prompts}
        self._unsent.add(submit.request_id)
        self._send_unsent()
        try:
            async with asyncio.timeout(ADMISSION_WAIT_S):
                while not request.admitted and request.refusal is None:
                    await request.changed()
            if request.refusal is not None:
                raise request.refusal
            request.wake()  # tokens may have come together with the admission
        except TimeoutError:
            self.release(request)
            raise unavailable("The engine does not answer", "engine_unavailable") from None
        except BaseException:
            self.release(request)
            raise
        return request

    def abort(self, prompt: OpenPrompt) -> None:
        """End a prompt whose remaining tokens nobody wants."""
        if self._prompts.pop(prompt.spec.prompt_id, None) is not None:
            prompt.finish = FinishReason.ABORT
            self._send_abort([prompt.spec.prompt_id])

    def release(self, request: OpenRequest) -> None:
        """Forget a request; what is not finished of it is aborted."""
        self._requests.pop(request.submit.request_id, None)
        self._unsent.discard(request.submit.request_id)
        left = [prompt for prompt in request.prompts if prompt.finish is None]
        for prompt in left:
            prompt.finish = FinishReason.ABORT
            self._prompts.pop(prompt.spec.prompt_id, None)
        if left:
            self._send_abort([prompt.spec.prompt_id for prompt in left])

    async def wait_present(self) -> bool:
        """Whether an engine is there, or comes within a short time."""
        try:
            async with asyncio.timeout(PRESENCE_WAIT_S):
                await self._welcomed.wait()
        except TimeoutError:
            return False
        return True

    async def stats(self) -> Stats | None:
        """The engine's counters now; None when it does not answer in time."""
        if self._stream is None or not self.is_connected:
            return None
        serial, self._next_serial = self._next_serial, self._next_serial + 1
        answer: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._stats[serial] = answer
        self._send(GetStats(serial=serial))
        try:
            async with asyncio.timeout(STATS_WAIT_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._stats.pop(serial, None)

    async def _connect(self) -> bool:
        self._closed.clear()
        loop = asyncio.get_running_loop()
        stream: MessageStream[ToApi] = MessageStream(ToApi, self._on_message, self._on_close)
        try:
            await loop.create_unix_connection(lambda: stream, self.socket_path)
        except OSError:
            return False
        self._stream = stream
        self._unsent = set(self._requests)
        self._send(Hello(api_id=self._api_id))
        if self._unsent_aborts:
            self._send_abort(self._unsent_aborts)
            self._unsent_aborts = []
        return True

    def _on_close(self, error: Exception | None) -> None:
        logger.warning("lost the engine: %s", error or "connection closed")
        self._stream = None
        self._welcomed.clear()
        self._closed.set()

    def _send_abort(self, prompt_ids: list[str]) -> None:
        """At once, or as soon as the engine is back: it may still have the prompts."""
        if self._stream is None:
            self._unsent_aborts += prompt_ids
        else:
            self._send(Abort(prompt_ids=prompt_ids))

    def _send(self, message: Abort | GetStats | Hello | Submit) -> None:
        if self._stream is not None:
            self._stream.send(message)

    def _send_unsent(self) -> None:
        """Submit what waits, of the models that are ready."""
        if not self.is_connected:
            return
        for request_id in list(self._unsent):
            request = self._requests[request_id]
            if request.submit.model in self.models:
                self._unsent.discard(request_id)
                if any(prompt.finish is None for prompt in request.prompts):
                    self._send(request.submission())

    def _on_message(self, message: ToApi) -> None:
        match message:
            case Tokens():
                self._on_tokens(message)
            case Admitted():
                if (request := self._requests.get(message.request_id)) is not None:
                    request.admitted = True
                    request.wake()
            case Rejected():
                self._on_rejected(message)
            case Welcome():
                self._on_welcome(message)
            case Stats():
                if (answer := self._stats.get(message.serial)) is not None and not answer.done():
                    answer.set_result(message)

    def _on_tokens(self, message: Tokens) -> None:
        for delta in message.deltas:
            prompt = self._prompts.get(delta.prompt_id)
            if prompt is None:
                continue  # aborted, and the engine did not know it yet
            prompt.receive(delta)
            if prompt.finish is not None:
                del self._prompts[delta.prompt_id]
            prompt.request.wake()

    def _on_rejected(self, message: Rejected) -> None:
        request = self._requests.get(message.request_id)
        if request is None:
            return
        for prompt in request.prompts:
            self._prompts.pop(prompt.spec.prompt_id, None)
        if request.admitted:
            request.fail(message.message)
        else:
            request.refusal = rejected(message.code, message.message, message.retry_after_s)
            request.wake()

    def _on_welcome(self, message: Welcome) -> None:
        new = [card for card in message.ready if card.name not in self.models]
        self.models = {card.name: card for card in message.ready}
        self.loading = message.loading
        self._welcomed.set()
        self._send_unsent()
        for card in new:
            self._on_ready(card)
