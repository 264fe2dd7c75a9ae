"""The run as it goes: a live table on a terminal, a line now and then elsewhere."""

import asyncio
from collections.abc import Collection

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.client import Clock
from loadgen.monitor import Monitor, Tally
from loadgen.stats import percentile

_REFRESH_S = 0.5  # a redraw takes milliseconds of the event loop
_LOG_S = 5.0
_MAX_TENANTS = 12
_LAG_WARNING_S = 0.02
_COLUMNS = ("sent", "waiting", "running", "done", "failed", "tokens", "TTFT ms\n50/90/99%", "gap ms\n50/99%")


class Rates:
    """Sent requests and tokens per second since the last look."""

    def __init__(self, monitor: Monitor, clock: Clock) -> None:
        self._monitor = monitor
        self._clock = clock
        self._last = (0.0, 0, 0)

    def take(self) -> tuple[float, float]:
        total = self._monitor.total
        now_s, sent, tokens = self._clock(), total.sent, total.tokens
        then_s, sent_then, tokens_then = self._last
        self._last = (now_s, sent, tokens)
        span_s = max(now_s - then_s, 1e-9)
        return (sent - sent_then) / span_s, (tokens - tokens_then) / span_s


async def watch(console: Console, monitor: Monitor, clock: Clock) -> None:
    """Show the monitor until cancelled."""
    rates = Rates(monitor, clock)
    if not console.is_terminal:
        while True:
            await asyncio.sleep(_LOG_S)
            console.print(log_line(monitor, clock(), *rates.take()), soft_wrap=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(screen(monitor, clock(), *rates.take()), refresh=True)
            await asyncio.sleep(_REFRESH_S)


def milliseconds(values_s: Collection[float], q: float) -> str:
    return f"{percentile(sorted(values_s), q) * 1000:,.0f}" if values_s else "-"


def log_line(monitor: Monitor, now_s: float, sent_per_s: float, tokens_per_s: float) -> str:
    total = monitor.total
    line = (
        f"{now_s:7.1f} s  sent {total.sent}/{monitor.num_planned} ({sent_per_s:.1f}/s)  "
        f"waiting {total.waiting}  running {total.running}  done {total.finished}  failed {total.failed}  "
        f"{tokens_per_s:,.0f} tokens/s  "
        f"TTFT p50/p99 {milliseconds(total.ttft_s, 50)}/{milliseconds(total.ttft_s, 99)} ms  "
        f"gap p50/p99 {milliseconds(total.gap_s, 50)}/{milliseconds(total.gap_s, 99)} ms"
    )
    if monitor.errors:
        line += "  " + errors_text(monitor)
    if warning := client_warning(monitor):
        line += f"  {warning}"
    return line


def errors_text(monitor: Monitor) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in monitor.errors.most_common())


def client_warning(monitor: Monitor) -> str | None:
    """One line if the client itself lately lags."""
    for what, values_s in (
        ("event loop lags", monitor.loop_lag_s),
        ("sending is late by", monitor.lateness_s),
    ):
        if values_s and percentile(sorted(values_s), 99) > _LAG_WARNING_S:
            return f"client saturated: {what} {milliseconds(values_s, 99)} ms"
    return None


def screen(monitor: Monitor, now_s: float, sent_per_s: float, tokens_per_s: float) -> RenderableType:
    total = monitor.total
    done = total.finished + total.failed
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(f"{now_s:.1f} s", style="bold"),
        ProgressBar(total=max(1, monitor.num_planned), completed=done, width=30),
        f"{done}/{monitor.num_planned} ended",
        f"{sent_per_s:.1f} requests/s",
        f"{tokens_per_s:,.0f} tokens/s",
    )
    parts: list[RenderableType] = [head, _table(monitor)]
    if monitor.errors:
        parts.append(Text(errors_text(monitor), style="red"))
    if warning := client_warning(monitor):
        parts.append(Text(warning, style="yellow"))
    return Group(*parts)


def _table(monitor: Monitor) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    table.add_row("all", *_cells(monitor.total), style="bold")
    tenants = list(monitor.tenants.items())
    if len(tenants) > 1:
        for name, tally in tenants[:_MAX_TENANTS]:
            table.add_row(name, *_cells(tally))
        if len(tenants) > _MAX_TENANTS:
            table.add_row(f"and {len(tenants) - _MAX_TENANTS} more")
    return table


def _cells(tally: Tally) -> list[str]:
    counts = (tally.sent, tally.waiting, tally.running, tally.finished, tally.failed, tally.tokens)
    return [
        *(f"{count:,}" for count in counts),
        "/".join(milliseconds(tally.ttft_s, q) for q in (50, 90, 99)),
        "/".join(milliseconds(tally.gap_s, q) for q in (50, 99)),
    ]
