"""How many streams, and how many tokens a second, loadgen holds on this machine.

    python -m bench.loadgen_capacity [--row STREAMS:RATE ...] [--seconds 15]

A fake server in a process of its own shares the cores. Each row opens the streams within the first seconds
and lets them run side by side; the limit to hold is 5,000 streams and 10,000 tokens/s on two cores with a
client that does not call itself saturated.
"""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import uvloop
from rich.console import Console

from loadgen.arrivals import Constant
from loadgen.plan import BodyMaker, Endpoint, RequestMaker, schedule
from loadgen.prompts import PromptMaker, TokenIds
from loadgen.results import Outcome, RequestRecord
from loadgen.session import Connection, RunResult, raise_file_limit, run_plan
from loadgen.stats import gaps_s, max_in_flight, percentile
from loadgen.tenants import Identity, RoundRobin
from loadgen.traces import TraceRow

_LIMIT_STREAMS, _LIMIT_TOKENS_PER_S = 5000, 10_000
_PROMPT_TOKENS = 16


async def measure(url: str, num_streams: int, num_tokens: int, opening_s: float) -> RunResult:
    """Open `num_streams` streams of `num_tokens` tokens within `opening_s` seconds and read them all."""
    rows = [TraceRow(i + 1, None, _PROMPT_TOKENS, num_tokens) for i in range(num_streams)]
    arrivals, tenants = Constant(num_streams / opening_s), RoundRobin(("tenant-1", "tenant-2"))
    bodies = BodyMaker("fake", Endpoint.COMPLETIONS)
    maker = RequestMaker(PromptMaker(0, TokenIds()), bodies, Identity.parse("user", []))
    plan = [maker.make(sending) for sending in schedule(rows, arrivals, tenants, 0, None)]
    connection = Connection(f"{url}/v1", Endpoint.COMPLETIONS, 60.0, None, None)
    return await run_plan(connection, plan, arrivals, None, tenants.names, Console(stderr=True))


def plateau_tokens_per_s(records: list[RequestRecord]) -> float:
    """Tokens per second while all streams are open: from the last first token to the first end."""
    start_s = max(record.chunk_s[0] for record in records if record.chunk_s)
    end_s = min(record.end_s for record in records)
    if end_s <= start_s:
        return 0.0
    inside = sum(
        count
        for record in records
        for when, count in zip(record.chunk_s, record.chunk_tokens, strict=True)
        if start_s <= when <= end_s
    )
    return inside / (end_s - start_s)


def figures(streams: int, rate: float, result: RunResult) -> dict[str, str]:
    """A row of the table, by column."""
    gaps = sorted(gap for record in result.records for gap in gaps_s(record)) or [0.0]
    health = result.health
    return {
        "streams": f"{streams:,}",
        "each t/s": f"{rate:g}",
        "open": f"{max_in_flight(result.records):,}",
        "tokens/s": f"{plateau_tokens_per_s(result.records):,.0f}",
        "failed": f"{sum(record.outcome is Outcome.FAILED for record in result.records)}",
        "gap p50 ms": f"{percentile(gaps, 50) * 1000:.1f}",
        "p99 ms": f"{percentile(gaps, 99) * 1000:.1f}",
        "lag p99 ms": f"{health.loop_lag_p99_s * 1000:.1f}",
        "late p99 ms": f"{health.lateness_p99_s * 1000:.1f}",
        "core": f"{health.cpu_fraction:.0%}",
        "kept from it": "-" if health.cpu_wait_fraction is None else f"{health.cpu_wait_fraction:.0%}",
        "saturated": "; ".join(health.saturated) or "no",
    }


def print_cells(cells: Iterable[str]) -> None:
    print("  ".join(f"{cell:>12}" for cell in cells), flush=True)


def run_row(streams: int, rate: float, seconds: float) -> dict[str, str]:
    """One row: `streams` streams of `rate` tokens/s each, for about `seconds` together."""
    opening_s = max(2.0, streams / 500)
    num_tokens = int((seconds + opening_s) * rate)
    command = [sys.executable, str(Path(__file__).with_name("fake_sse.py")), "--tokens-per-s", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                result = runner.run(measure(url, streams, num_tokens, opening_s))
        finally:
            server.terminate()
    return figures(streams, rate, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", action="append", help="STREAMS:TOKENS_PER_S_OF_EACH, may be repeated")
    parser.add_argument("--seconds", type=float, default=15.0, help="that all streams run together")
    options = parser.parse_args()
    rows = options.row or ["500:20", "5000:2", "5000:3", "5000:4"]
    files = raise_file_limit()
    print(
        f"# {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores shared with the server, "
        f"load average {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {files:,} files; "
        f"wanted: {_LIMIT_STREAMS:,} streams and {_LIMIT_TOKENS_PER_S:,} tokens/s"
    )
    for number, row in enumerate(rows):
        streams, _, rate = row.partition(":")
        cells = run_row(int(streams), float(rate), options.seconds)
        if number == 0:
            print_cells(cells)
        print_cells(cells.values())


if __name__ == "__main__":
    main()
