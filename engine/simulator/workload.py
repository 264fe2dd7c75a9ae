"""What a simulation is given to do: rows of a trace, or what a run of loadgen sent."""

import argparse
from pathlib import Path

from loadgen.plan import Sending, Shape, schedule
from loadgen.results import Outcome, RequestRecord
from loadgen.spec import SpecError
from loadgen.traces import TraceRow


def read_schedule(options: argparse.Namespace) -> list[Sending]:
    """The rows that the options name, cut and timed as loadgen would. Raises SpecError, TraceError."""
    start, stop = options.rows
    try:
        rows = options.trace.read(start, stop, options.seed)
    except OSError as error:
        raise SpecError(f"{error.filename}: {error.strerror}") from error
    shape = Shape(options.max_input, options.output_range)
    shaped = [shape.apply(row) for row in rows]
    sendings = schedule(shaped, options.arrivals, options.tenants, options.seed, None)
    if not sendings:
        raise SpecError(f"nothing to send: {options.trace.text} has no row in the range asked for")
    return sendings


def sent_in(folder: Path, records: list[RequestRecord]) -> list[Sending]:
    """What a run sent, when it was sent and as long as the answers were. Requests that failed are left out.
    A record does not tell what prompts have in common. Raises SpecError if nothing is left."""
    finished = [record for record in records if record.outcome is Outcome.OK and record.output_tokens]
    if not finished:
        raise SpecError(f"{folder}: no request of this run finished")
    return [
        Sending(index, _row(record), record.sent_s, record.tenant)
        for index, record in enumerate(sorted(finished, key=lambda record: record.sent_s))
    ]


def _row(record: RequestRecord) -> TraceRow:
    return TraceRow(
        line=record.row,
        arrival_s=record.sent_s,
        input_tokens=record.input_tokens or record.asked_input_tokens,
        output_tokens=record.output_tokens,
    )
