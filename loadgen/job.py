"""From the options of `loadgen run` to the records of a run."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from loadgen.plan import BodyMaker, PlannedRequest, Shape, plan_requests
from loadgen.prompts import PromptMaker
from loadgen.results import Counting, Outcome, RequestRecord
from loadgen.session import Connection, RunResult, first_model, run_plan, warm_up
from loadgen.spec import SpecError
from loadgen.tenants import Identity
from loadgen.traces import TraceRow

_WARMUP_ROW = TraceRow(line=0, arrival_s=0.0, input_tokens=16, output_tokens=4)
_UNKNOWN_MODEL = "default"


@dataclass(frozen=True, slots=True)
class Done:
    """A run that was carried out, with what was found out on the way."""

    url: str
    model: str
    num_planned: int
    result: RunResult


def read_rows(options: argparse.Namespace) -> list[TraceRow]:
    """The rows to send, cut to shape. Raises `TraceError`, and `SpecError` if there is none."""
    start, stop = options.rows
    try:
        rows = options.trace.read(start, stop, options.seed)
    except OSError as error:
        raise SpecError(f"{error.filename}: {error.strerror}") from error
    if not rows:
        raise SpecError(f"no rows to send: the trace {options.trace.text} has none in the range asked for")
    shape = Shape(options.max_input, options.output_range)
    return [shape.apply(row) for row in rows]


async def carry_out(options: argparse.Namespace, rows: Sequence[TraceRow], console: Console) -> Done:
    """Make the requests, warm the server up, and send. Raises `SpecError` before anything is sent."""
    identity = Identity.parse(options.tenant_by, options.api_key)
    names: tuple[str, ...] = options.tenants.names
    connection = Connection(
        base_url=options.url,
        endpoint=options.endpoint,
        stall_s=options.stall_timeout,
        timeout_s=options.timeout,
        max_connections=options.max_connections,
        headers=identity.headers(names[0]),
    )
    model = options.model or await first_model(connection)
    if model is None:
        console.print(f"{options.url}/models names no model: asking for {_UNKNOWN_MODEL!r}", soft_wrap=True)
        model = _UNKNOWN_MODEL
    prompts = PromptMaker(options.seed, options.vocab if options.prompts == "ids" else None)

    def bodies(continuous_usage: bool) -> BodyMaker:
        return BodyMaker(
            model, options.endpoint, options.temperature, options.ignore_eos, continuous_usage, options.extra
        )

    trial = _warmup_requests(
        options.warmup, prompts, bodies(options.continuous_usage != "off"), identity, names[0]
    )
    continuous_usage = _show_warmup(await warm_up(connection, trial), console)
    if options.continuous_usage != "auto":
        continuous_usage = options.continuous_usage == "on"
    plan = plan_requests(
        rows,
        options.arrivals,
        options.tenants,
        identity,
        prompts,
        bodies(continuous_usage),
        seed=options.seed,
        duration_s=options.duration,
    )
    result = await run_plan(connection, plan, options.arrivals, options.duration, names, console)
    return Done(connection.url, model, len(plan), result)


def _warmup_requests(
    count: int, prompts: PromptMaker, bodies: BodyMaker, identity: Identity, tenant: str
) -> list[PlannedRequest]:
    row = _WARMUP_ROW
    return [
        PlannedRequest(
            index=number,
            row=0,
            at_s=None,
            tenant=tenant,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            headers={"Content-Type": "application/json"} | identity.headers(tenant),
            body=bodies.encode(
                prompts.make(-1 - number, row), row.output_tokens, identity.body_fields(tenant)
            ),
        )
        for number in range(count)
    ]


def _show_warmup(records: Sequence[RequestRecord], console: Console) -> bool:
    """Say what went wrong, if anything; returns whether the server sent usage in every event."""
    for record in records:
        if record.outcome is not Outcome.OK:
            console.print(f"warm-up failed: {record.error_label}: {record.detail}", soft_wrap=True)
    return any(record.counted_by is Counting.EACH_USAGE for record in records)
