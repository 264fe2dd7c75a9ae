"""The connection to the engine: one per api process, made again for ever when it is lost.

After each reconnection every open request is submitted again with the tokens that came so far, so that a
client of an engine that died sees a pause and nothing else.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable

from api.errors import rejected, unavailable
from api.open_requests import OpenPrompt, OpenRequest
from engine.messages import (
    Abort,
    Admitted,
    FinishReason,
    GetLive,
    GetStats,
    Hello,
    Live,
    ModelCard,
    Rejected,
    Stats,
    Submit,
    ToApi,
    Tokens,
    Welcome,
)
from engine.restarts import MAX_QUICK_ENDS
from engine.wire import MessageStream

logger = logging.getLogger(__name__)

PRESENCE_WAIT_S = 3.0  # a new request waits this long for an engine that is not there
ADMISSION_WAIT_S = 10.0  # and this long for its answer
STATS_WAIT_S = 2.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 1.0
MAX_ENGINES = MAX_QUICK_ENDS - 1  # may end in a row at one request, before one more would be given up
ABORT_MEMORY_S = 10.0  # an abort that was sent so shortly before a connection broke may not have arrived


class EngineClient:
    """Everything that an api process knows of the engine."""

    def __init__(self, socket_path: str, on_ready: Callable[[ModelCard], None] = lambda card: None) -> None:
        self.socket_path = socket_path
        self.models: dict[str, ModelCard] = {}
        self.loading: dict[str, str] = {}
        self.recovering: dict[str, str] = {}  # models that can be used, but will answer later
        self.reconnections = 0
        self._api_id = secrets.token_hex(8)
        self._on_ready = on_ready
        self._stream: MessageStream[ToApi] | None = None
        self._closed = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._requests: dict[str, OpenRequest] = {}
        self._unsent: set[str] = set()  # open requests not yet submitted on this connection
        self._aborted: deque[tuple[float, list[str]]] = deque()  # (time, prompts), to be sent again
        self._prompts: dict[str, OpenPrompt] = {}
        self._answers: dict[int, asyncio.Future[Stats | Live]] = {}
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
        answer = await self._ask(GetStats(serial=self._new_serial()))
        return answer if isinstance(answer, Stats) else None

    async def live(self, since_ns: int) -> Live | None:
        """What the engine does now, and the slices that ended after `since_ns` of its clock; None when it
        does not answer in time."""
        answer = await self._ask(GetLive(serial=self._new_serial(), since_ns=since_ns))
        return answer if isinstance(answer, Live) else None

    def _new_serial(self) -> int:
        self._next_serial += 1
        return self._next_serial

    async def _ask(self, question: GetStats | GetLive) -> Stats | Live | None:
        if self._stream is None or not self.is_connected:
            return None
        answer: asyncio.Future[Stats | Live] = asyncio.get_running_loop().create_future()
        self._answers[question.serial] = answer
        self._send(question)
        try:
            async with asyncio.timeout(STATS_WAIT_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._answers.pop(question.serial, None)

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
        aborted = [prompt_id for _, prompt_ids in self._aborted for prompt_id in prompt_ids]
        if aborted:
            self._send(Abort(prompt_ids=aborted))
        return True

    def _on_close(self, error: Exception | None) -> None:
        logger.warning("lost the engine: %s", error or "connection closed")
        self._give_up_deadly()
        self._stream = None
        self._welcomed.clear()
        self._closed.set()

    def _give_up_deadly(self) -> None:
        """Whatever was submitted may be why the engine ended. What gets nowhere with one engine after the
        other is failed, lest there be none for anybody."""
        for request in [r for key, r in self._requests.items() if key not in self._unsent]:
            request.num_engines_lost += 1
            if request.num_engines_lost == MAX_ENGINES:
                logger.error("giving up %s: no engine survives it", request.submit.request_id)
                self._drop_prompts(request)
                request.fail(f"the engine ended {MAX_ENGINES} times while it worked on this request")

    def _drop_prompts(self, request: OpenRequest) -> None:
        for prompt in request.prompts:
            self._prompts.pop(prompt.spec.prompt_id, None)

    def _send_abort(self, prompt_ids: list[str]) -> None:
        """At once, and again on the next connection: the engine may not have read it, or may be away and
        still have the prompts. One that does not know them does nothing."""
        now_s = time.monotonic()
        while self.is_connected and self._aborted and self._aborted[0][0] < now_s - ABORT_MEMORY_S:
            self._aborted.popleft()
        self._aborted.append((now_s, prompt_ids))
        self._send(Abort(prompt_ids=prompt_ids))

    def _send(self, message: Abort | GetLive | GetStats | Hello | Submit) -> None:
        if self._stream is not None:
            self._stream.send(message)

    def _send_unsent(self) -> None:
        """Submit what waits, of the models that are ready; an engine may come back without a model."""
        if not self.is_connected:
            return
        for request_id in list(self._unsent):
            request = self._requests[request_id]
            model = request.submit.model
            if model in self.models:
                self._unsent.discard(request_id)
                if any(prompt.finish is None for prompt in request.prompts):
                    self._send(request.submission())
            elif model not in self.loading:
                self._unsent.discard(request_id)
                message = f"the model {model!r} is not served any more"
                self._on_rejected(Rejected(request_id=request_id, code="model_not_found", message=message))

    def _on_message(self, message: ToApi) -> None:
        match message:
            case Tokens():
                self._on_tokens(message)
            case Admitted():
                if (request := self._requests.get(message.request_id)) is not None:
                    request.admitted = True
                    request.rates = message.rates
                    request.wake()
            case Rejected():
                self._on_rejected(message)
            case Welcome():
                self._on_welcome(message)
            case Stats() | Live():
                if (answer := self._answers.get(message.serial)) is not None and not answer.done():
                    answer.set_result(message)

    def _on_tokens(self, message: Tokens) -> None:
        for delta in message.deltas:
            prompt = self._prompts.get(delta.prompt_id)
            if prompt is None:
                continue  # aborted, and the engine did not know it yet
            prompt.receive(delta)
            prompt.request.num_engines_lost = 0
            if prompt.finish is not None:
                del self._prompts[delta.prompt_id]
            prompt.request.wake()

    def _on_rejected(self, message: Rejected) -> None:
        request = self._requests.get(message.request_id)
        if request is None:
            return
        self._drop_prompts(request)
        if request.admitted:
            request.fail(message.message)
        else:
            request.refusal = rejected(message)
            request.wake()

    def _on_welcome(self, message: Welcome) -> None:
        new = [card for card in message.ready if card.name not in self.models]
        self.models = {card.name: card for card in message.ready}
        self.loading = message.loading
        self.recovering = message.recovering
        self._welcomed.set()
        self._send_unsent()
        for card in new:
            self._on_ready(card)
