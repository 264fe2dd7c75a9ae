"""Requests that the engine works on, with everything that came of them.

A request is owned by this process until its last byte is sent: it keeps the prompts' ids and every token
received, and drops tokens that come twice.
"""

import asyncio

from api.errors import ApiError
from engine.messages import FinishReason, PromptSpec, RateState, Submit, TokenDelta, TokenLogprobs
from engine.wire import ProtocolError


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
        self.rates: dict[str, RateState] = {}
        self.num_engines_lost = 0  # in a row, since it came any further
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
            tokens_per_s=old.tokens_per_s,
            cache_salt=old.cache_salt,
            limits=old.limits,
            resubmitted=self.admitted,
        )
