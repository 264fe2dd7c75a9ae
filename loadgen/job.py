"""From the options of `loadgen run` to the records of a run."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from loadgen.plan import BodyMaker, RequestMaker, Sending, Shape, schedule
from loadgen.prompts import PromptMaker
from loadgen.results import Counting, Outcome
from loadgen.session import Connection, RunResult, first_model, run_plan, warm_up
from loadgen.spec import SpecError
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


def read_schedule(options: argparse.Namespace) -> list[Sending]:
    """What to send and when, cut to shape. Raises `TraceError`, or `SpecError` if that is nothing."""
    start, stop = options.rows
    try:
        rows = options.trace.read(start, stop, options.seed)
    except OSError as error:
        raise SpecError(f"{error.filename}: {error.strerror}") from error
    shape = Shape(options.max_input, options.output_range)
    shaped = [shape.apply(row) for row in rows]
    sendings = schedule(shaped, options.arrivals, options.tenants, options.seed, options.duration)
    if not sendings:
        raise SpecError(f"nothing to send: {options.trace.text} has no row in the range and time asked for")
    return sendings


async def carry_out(options: argparse.Namespace, sendings: Sequence[Sending], console: Console) -> Done:
    """Warm the server up, make the requests, and send them."""
    names: tuple[str, ...] = options.tenants.names
    connection = Connection(
        base_url=options.url,
        endpoint=options.endpoint,
        stall_s=options.stall_timeout,
        timeout_s=options.timeout,
        max_connections=options.max_connections,
        headers=options.identity.headers(names[0]),
    )
    model = options.model or await _ask_model(connection, console)
    trial = _request_maker(options, model, continuous_usage=options.continuous_usage != "off")
    each_usage = await _warm_up(connection, trial, names[0], options.warmup, console)
    if options.continuous_usage != "auto":
        each_usage = options.continuous_usage == "on"
    maker = _request_maker(options, model, continuous_usage=each_usage)
    plan = [maker.make(sending) for sending in sendings]
    result = await run_plan(connection, plan, options.arrivals, options.duration, names, console)
    return Done(connection.url, model, len(plan), result)


def _request_maker(options: argparse.Namespace, model: str, *, continuous_usage: bool) -> RequestMaker:
    bodies = BodyMaker(
        model, options.endpoint, options.temperature, options.ignore_eos, continuous_usage, options.extra
    )
    vocabulary = options.vocab if options.prompts == "ids" else None
    return RequestMaker(PromptMaker(options.seed, vocabulary), bodies, options.identity)


async def _ask_model(connection: Connection, console: Console) -> str:
    model = await first_model(connection)
    if model is None:
        line = f"{connection.base_url}/models names no model: asking for {_UNKNOWN_MODEL!r}"
        console.print(line, soft_wrap=True)
    return model or _UNKNOWN_MODEL


async def _warm_up(
    connection: Connection, maker: RequestMaker, tenant: str, count: int, console: Console
) -> bool:
    """Send `count` short requests and say what went wrong with them, if anything. Returns whether the server
    sent usage in every event."""
    sendings = [Sending(-1 - number, _WARMUP_ROW, None, tenant) for number in range(count)]
    records = await warm_up(connection, [maker.make(sending) for sending in sendings])
    for record in records:
        if record.outcome is not Outcome.OK:
            console.print(f"warm-up failed: {record.error_label}: {record.detail}", soft_wrap=True)
    return any(record.counted_by is Counting.EACH_USAGE for record in records)
