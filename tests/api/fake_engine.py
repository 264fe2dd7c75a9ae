"""An engine that computes nothing: it speaks `engine.messages` on a real Unix socket and answers with
tokens from a script."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.messages import (
    Abort,
    Admitted,
    FinishReason,
    FromApi,
    GetLive,
    GetStats,
    Hello,
    Live,
    LiveModel,
    LiveTenant,
    ModelCard,
    PromptSpec,
    RateState,
    Rejected,
    Sample,
    SliceRecord,
    Stats,
    Submit,
    TokenDelta,
    TokenLogprobs,
    Tokens,
    Welcome,
)
from engine.wire import MessageStream

EOS = 257
CARD = ModelCard(
    name="fake",
    architecture="FakeForCausalLM",
    source="dummy:fake",
    tokenizer=None,
    vocab_size=300,
    max_model_len=1000,
    bos_token_id=256,
    eos_token_ids=(EOS,),
    loaded_s=1_700_000_000,
)

Script = Callable[[PromptSpec], list[int]]


def say(text: str) -> Script:
    """Every prompt is answered with this text and the end token."""
    return lambda spec: [*text.encode(), EOS]


@dataclass
class Running:
    """A prompt that is being answered."""

    spec: PromptSpec
    script: list[int]
    position: int


@dataclass
class FakeEngine:
    """Answers each prompt with `script(spec)`, `per_step` tokens every `step_s`, until its own limits."""

    socket_path: Path
    cards: list[ModelCard] = field(default_factory=lambda: [CARD])
    loading: dict[str, str] = field(default_factory=dict)
    recovering: dict[str, str] = field(default_factory=dict)
    script: Script = field(default_factory=lambda: say("hello world"))
    step_s: float = 0.0
    per_step: int = 1
    paused: bool = False
    reject: Rejected | None = None
    rates: dict[str, RateState] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.submits: list[Submit] = []
        self.aborted: list[str] = []
        self.live_asked: list[int] = []
        self.slices: list[SliceRecord] = []
        self.running: dict[str, Running] = {}
        self.streams: list[MessageStream[FromApi]] = []
        self._server: asyncio.AbstractServer | None = None
        self._stepper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "FakeEngine":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def is_running(self) -> bool:
        return self._server is not None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connect, str(self.socket_path))
        self._stepper = asyncio.create_task(self._step_for_ever())

    async def stop(self) -> None:
        """Die: connections close, everything is forgotten."""
        assert self._server is not None
        assert self._stepper is not None
        self._stepper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._stepper
        self._server.close()
        for stream in self.streams:
            stream.close()
        self.streams.clear()
        self.running.clear()
        self._server = None
        self.socket_path.unlink(missing_ok=True)
        await asyncio.sleep(0)

    def announce(self) -> None:
        """Tell every connection what is served now."""
        for stream in self.streams:
            self._welcome(stream)

    def _connect(self) -> MessageStream[FromApi]:
        holder: list[MessageStream[FromApi]] = []
        stream: MessageStream[FromApi] = MessageStream(
            FromApi, lambda message: self._on_message(holder[0], message), lambda error: None
        )
        holder.append(stream)
        return stream

    def _on_message(self, stream: MessageStream[FromApi], message: FromApi) -> None:
        match message:
            case Hello():
                self.streams.append(stream)
                self._welcome(stream)
            case Submit():
                self._submit(stream, message)
            case Abort():
                self.aborted += message.prompt_ids
                for prompt_id in message.prompt_ids:
                    self.running.pop(prompt_id, None)
            case GetStats():
                sample = Sample(name="fairslice:slices", help="Slices", kind="counter", value=3.0)
                stream.send(Stats(serial=message.serial, samples=[sample]))
            case GetLive():
                self.live_asked.append(message.since_ns)
                stream.send(self._live(message))

    def _welcome(self, stream: MessageStream[FromApi]) -> None:
        stream.send(
            Welcome(engine_id="fake", ready=self.cards, loading=self.loading, recovering=self.recovering)
        )

    def _submit(self, stream: MessageStream[FromApi], message: Submit) -> None:
        self.submits.append(message)
        if self.reject is not None and not message.resubmitted:
            stream.send(
                Rejected(
                    request_id=message.request_id,
                    code=self.reject.code,
                    message=self.reject.message,
                    retry_after_s=self.reject.retry_after_s,
                    rates=self.rates,
                )
            )
            return
        for spec in message.prompts:
            self.running[spec.prompt_id] = Running(spec, self.script(spec), len(spec.output_ids))
        stream.send(Admitted(request_id=message.request_id, rates=self.rates))

    def _live(self, message: GetLive) -> Live:
        now_ns = time.monotonic_ns()
        ended = [record for record in self.slices if (record.end_ns or 0) > message.since_ns]
        names = sorted({record.tenant for record in self.slices})
        model = LiveModel(
            name="fake",
            stage=None,
            page_bytes=1024,
            devices=[],
            tiers=[],
            paths=[],
            tenants=[
                LiveTenant(name=name, weight=1.0, service_ns=5, num_running=1, num_waiting=2)
                for name in names
            ],
            output_tokens=0,
            computed_tokens=0,
            recomputed_tokens=0,
            num_slices=len(self.slices),
            num_preemptions=0,
            move_wait_ns=0,
            ended=ended,
            in_force=[],
        )
        return Live(serial=message.serial, engine_id="fake", now_ns=now_ns, models=[model], lenders=[])

    async def _step_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            if not self.paused and self.running:
                self.step()

    def step(self) -> None:
        """Send the next tokens of every prompt."""
        deltas = [self._advance(running) for running in list(self.running.values())]
        for stream in self.streams:
            stream.send(Tokens(deltas=deltas))

    def fail_all(self, reason: str) -> None:
        """End every prompt with an error."""
        deltas = [
            TokenDelta(prompt_id=key, start=running.position, finish=FinishReason.ERROR, error=reason)
            for key, running in self.running.items()
        ]
        self.running.clear()
        for stream in self.streams:
            stream.send(Tokens(deltas=deltas))

    def _advance(self, running: Running) -> TokenDelta:
        sampling = running.spec.sampling
        start = running.position
        end = min(start + self.per_step, len(running.script), sampling.max_tokens)
        ids = running.script[start:end]
        finish = None
        for count, token_id in enumerate(ids, 1):
            if token_id in sampling.stop_token_ids and start + count > sampling.min_tokens:
                ids, finish = ids[:count], FinishReason.STOP
                break
        running.position = start + len(ids)
        if finish is None and running.position >= min(len(running.script), sampling.max_tokens):
            finish = FinishReason.LENGTH
        if finish is not None:
            del self.running[running.spec.prompt_id]
        logprobs = None
        if sampling.logprobs is not None:
            logprobs = [fake_logprobs(token_id, sampling.logprobs) for token_id in ids]
        prompt_logprobs = None
        if sampling.prompt_logprobs is not None and start == 0:
            rest = running.spec.input_ids[1:]
            prompt_logprobs = [None, *(fake_logprobs(token, sampling.prompt_logprobs) for token in rest)]
        return TokenDelta(
            prompt_id=running.spec.prompt_id,
            start=start,
            ids=ids,
            finish=finish,
            service_ns=1000 * running.position,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


def fake_logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    top = [(token_id + rank, -0.5 - rank) for rank in range(num_top)]
    return TokenLogprobs(logprob=-0.5, rank=1, top=top)
