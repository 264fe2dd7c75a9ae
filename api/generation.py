"""A request at work: submitted to the engine as prompts, read back as choices."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from api.choices import Choice, ChoiceOptions, Piece
from api.connection import ClientGoneError
from api.detokenize import Detokenizer
from api.engine_client import EngineClient
from api.errors import ApiError, bad_request, unavailable
from api.open_requests import OpenPrompt, OpenRequest
from api.request_timer import RequestTimer
from api.stops import StopStrings
from api.tokenizers import TextModel
from engine.messages import BAD_GRAMMAR, FinishReason, ModelCard, PromptSpec, Sampling, Submit


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """A request that was checked and can be submitted."""

    submit: Submit
    card: ModelCard
    text_model: TextModel
    num_choices_per_prompt: int
    stops: tuple[str, ...]
    shows_stop: bool
    counts_offsets: bool
    spelled: frozenset[int] = frozenset()  # special tokens that the text shows

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many choices it has."""
        return sum(len(spec.input_ids) for spec in self.submit.prompts[:: self.num_choices_per_prompt])


class Generation:
    """The choices of one request while the engine works on them."""

    def __init__(
        self, plan: GenerationPlan, request: OpenRequest, client: EngineClient, timer: RequestTimer
    ) -> None:
        self.plan = plan
        self.request = request
        self.timer = timer
        self.choices = [
            _make_choice(plan, index, prompt, client) for index, prompt in enumerate(request.prompts)
        ]
        self._client_gone = False
        self._interruption: ApiError | None = None

    @property
    def is_done(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def undelivered_tokens(self) -> int:
        """Tokens that came from the engine and were not turned into text yet."""
        return sum(len(choice.prompt.output_ids) - choice.num_tokens for choice in self.choices)

    def client_gone(self) -> None:
        """Nobody reads the answer any more."""
        self._client_gone = True
        self.request.wake()

    def interrupt(self, reason: ApiError) -> None:
        """End the answer with an error."""
        self._interruption = reason
        self.request.wake()

    def nudge(self) -> None:
        """Let `changed` return although nothing came."""
        self.request.wake()

    async def changed(self) -> None:
        """Wait for news. Raises ClientGoneError, ApiError when the answer was interrupted."""
        await self.request.changed()
        if self._client_gone:
            raise ClientGoneError
        if self._interruption is not None:
            raise self._interruption

    def advance(self) -> list[tuple[Choice, Piece]]:
        """Everything that is new. Raises ApiError if a prompt could not be served."""
        news = []
        num_tokens = 0
        for choice in self.choices:
            before = choice.num_tokens
            piece = choice.advance()
            if piece is None:
                continue
            if choice.failed:
                raise _failure(choice.prompt)
            num_tokens += choice.num_tokens - before
            news.append((choice, piece))
        if num_tokens:
            self.timer.tokens(num_tokens)
        return news

    async def complete(self) -> list[list[Piece]]:
        """All pieces of each choice, once every choice has ended. Raises ClientGoneError, ApiError."""
        pieces: list[list[Piece]] = [[] for _ in self.choices]
        while not self.is_done:
            await self.changed()
            for choice, piece in self.advance():
                pieces[choice.index].append(piece)
        return pieces

    def usage(self) -> dict[str, object]:
        """OpenAI's token counts, as of now."""
        prompt_tokens = self.plan.prompt_tokens
        completion_tokens = sum(choice.num_tokens for choice in self.choices)
        firsts = self.request.prompts[:: self.plan.num_choices_per_prompt]
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(prompt.cached_tokens for prompt in firsts)},
        }

    def outcome(self) -> dict[str, object]:
        """How it went, for the log."""
        return {
            "prompt_tokens": self.plan.prompt_tokens,
            "completion_tokens": sum(choice.num_tokens for choice in self.choices),
            "finish": ",".join(self.finish_reasons()),
        }

    def finish_reasons(self) -> list[str]:
        """Of every choice, for the metrics: one that did not end by itself has failed, or was aborted."""
        return [choice.finish_reason or _unfinished(choice.prompt) for choice in self.choices]


class Generations:
    """All requests at work in this process."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._open: set[Generation] = set()
        self._num_starting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._open)

    def check_accepting(self) -> None:
        """Raises ApiError while the server shuts down."""
        if self.is_draining:
            raise unavailable("The server is shutting down", "shutting_down")

    def interrupt_all(self, reason: ApiError) -> None:
        for generation in self._open:
            generation.interrupt(reason)

    async def wait_idle(self, limit_s: float) -> bool:
        """Whether all requests end within the time, those too that the engine has not admitted yet."""
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    @asynccontextmanager
    async def started(self, plan: GenerationPlan, timer: RequestTimer) -> AsyncIterator[Generation]:
        """Submit, and clean up at the end whatever happened. Raises ApiError."""
        generation = await self.start(plan, timer)
        try:
            yield generation
        finally:
            self.finish(generation)

    async def start(self, plan: GenerationPlan, timer: RequestTimer) -> Generation:
        """Submit; the caller must call `finish`. Raises ApiError."""
        self.check_accepting()
        self._num_starting += 1
        self._idle.clear()
        try:
            request = await self._client.submit(plan.submit)
            timer.admitted(plan.prompt_tokens, plan.num_choices_per_prompt)
            generation = Generation(plan, request, self._client, timer)
            self._open.add(generation)
        finally:
            self._num_starting -= 1
            self._note_idle()
        return generation

    def finish(self, generation: Generation) -> None:
        """Free everything; what is still running is aborted."""
        self._open.discard(generation)
        self._note_idle()
        self._client.release(generation.request)
        generation.timer.finished(
            generation.finish_reasons(), [choice.num_tokens for choice in generation.choices]
        )

    def _note_idle(self) -> None:
        if not self._open and not self._num_starting:
            self._idle.set()


def expand_prompts(
    request_id: str, prompts: Sequence[list[int]], samplings: Sequence[Sequence[Sampling]]
) -> list[PromptSpec]:
    """One prompt for each choice; the choices of a prompt are neighbours."""
    pairs = [(ids, sampling) for ids, row in zip(prompts, samplings, strict=True) for sampling in row]
    return [
        PromptSpec(prompt_id=f"{request_id}-{index}", input_ids=ids, sampling=sampling)
        for index, (ids, sampling) in enumerate(pairs)
    ]


def _unfinished(prompt: OpenPrompt) -> str:
    return "error" if prompt.finish is FinishReason.ERROR else "abort"


def _failure(prompt: OpenPrompt) -> ApiError:
    if prompt.finish is FinishReason.ERROR:
        if prompt.error is not None and prompt.error.startswith(BAD_GRAMMAR):  # the model's tokens showed it
            return bad_request(None, prompt.error)
        return ApiError(500, prompt.error or "The prompt could not be served", code="engine_error")
    return unavailable("The engine ended the prompt", "engine_aborted")


def _make_choice(plan: GenerationPlan, index: int, prompt: OpenPrompt, client: EngineClient) -> Choice:
    vocabulary = plan.text_model.vocabulary
    sampling = prompt.spec.sampling
    options = ChoiceOptions(
        stop_token_ids=frozenset(sampling.stop_token_ids),
        shows_stop=plan.shows_stop,
        min_tokens=sampling.min_tokens,
        counts_offsets=plan.counts_offsets,
    )
    at_start = not any(map(vocabulary.text_bytes, prompt.spec.input_ids))
    detokenizer = Detokenizer(vocabulary, at_start=at_start, spelled=plan.spelled)
    return Choice(
        index, prompt, detokenizer, StopStrings(plan.stops, include=plan.shows_stop), options, client.abort
    )
