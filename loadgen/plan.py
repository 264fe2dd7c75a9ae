"""Everything that will be sent, decided and encoded before the clock starts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from loadgen.arrivals import Arrivals, ClosedLoop
from loadgen.prompts import Prompt, PromptMaker
from loadgen.tenants import Identity, TenantRule
from loadgen.traces import TraceRow


class Endpoint(StrEnum):
    """The path under /v1 that requests go to."""

    COMPLETIONS = "completions"
    CHAT = "chat/completions"


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, ready to be sent. `at_s` is on the run's clock; None in a closed loop."""

    index: int
    row: int  # line of the trace
    at_s: float | None
    tenant: str
    input_tokens: int
    output_tokens: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """Cuts rows to what the server can take. A row asks for at least one token in and one out."""

    max_input: int | None = None
    output_range: tuple[int, int] | None = None

    def apply(self, row: TraceRow) -> TraceRow:
        most_in = self.max_input or row.input_tokens
        low, high = self.output_range or (1, max(1, row.output_tokens))
        return replace(
            row,
            input_tokens=max(1, min(row.input_tokens, most_in)),
            output_tokens=max(low, min(row.output_tokens, high)),
        )


@dataclass(frozen=True, slots=True)
class BodyMaker:
    """Encodes requests for one endpoint of one model. `extra` is merged into every body, last."""

    model: str
    endpoint: Endpoint
    temperature: float | None = None
    ignore_eos: bool = False
    continuous_usage: bool = False
    extra: dict[str, object] = field(default_factory=dict)

    def encode(self, prompt: Prompt, output_tokens: int, fields: dict[str, object]) -> bytes:
        options: dict[str, object] = {"include_usage": True}
        if self.continuous_usage:
            options["continuous_usage_stats"] = True
        body: dict[str, object] = {"model": self.model, "stream": True, "stream_options": options}
        if self.endpoint is Endpoint.CHAT:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        body["max_tokens"] = output_tokens
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body | fields | self.extra)


@dataclass(frozen=True, slots=True)
class Sending:
    """A row of the trace with its time and its sender."""

    index: int
    row: TraceRow
    at_s: float | None
    tenant: str


def schedule(
    rows: Sequence[TraceRow], arrivals: Arrivals, tenants: TenantRule, seed: int, duration_s: float | None
) -> list[Sending]:
    """In the order of sending, without rows that would be sent after `duration_s`. Raises `SpecError` if the
    rows do not allow the arrivals."""
    times_s: Sequence[float | None]
    times_s = [None] * len(rows) if isinstance(arrivals, ClosedLoop) else arrivals.times_s(rows, seed)
    names = tenants.assign(rows, seed)
    return [
        Sending(index, row, at_s, name)
        for index, (row, at_s, name) in enumerate(zip(rows, times_s, names, strict=True))
        if at_s is None or duration_s is None or at_s <= duration_s
    ]


@dataclass(frozen=True, slots=True)
class RequestMaker:
    """Makes what is sent out of what is to be sent."""

    prompts: PromptMaker
    bodies: BodyMaker
    identity: Identity

    def make(self, sending: Sending) -> PlannedRequest:
        row, tenant = sending.row, sending.tenant
        prompt = self.prompts.make(sending.index, row)
        return PlannedRequest(
            index=sending.index,
            row=row.line,
            at_s=sending.at_s,
            tenant=tenant,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            headers={"Content-Type": "application/json"} | self.identity.headers(tenant),
            body=self.bodies.encode(prompt, row.output_tokens, self.identity.body_fields(tenant)),
        )
