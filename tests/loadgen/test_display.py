import io

from rich.console import Console

from loadgen.display import Rates, client_warning, log_line, screen
from loadgen.monitor import Monitor
from loadgen.results import ErrorKind, Outcome
from tests.loadgen.records import record


def busy_monitor() -> Monitor:
    monitor = Monitor(10, ["a", "b"])
    for tenant in ("a", "a", "b", "b"):
        monitor.on_sent(tenant)
    monitor.on_first("a", 0.05, 1)
    monitor.on_tokens("a", 0.02, 3)
    monitor.on_first("b", 0.15, 1)
    monitor.on_end(record(0, tenant="a", chunks=[1.0]))
    refused = record(1, tenant="b", chunks=[], outcome=Outcome.FAILED, error=ErrorKind.REFUSED)
    monitor.on_end(refused)
    return monitor


def test_the_monitor_counts_by_tenant_and_in_all() -> None:
    monitor = busy_monitor()
    total, a, b = monitor.total, monitor.tenants["a"], monitor.tenants["b"]
    assert (total.sent, total.waiting, total.running, total.finished, total.failed) == (4, 1, 1, 1, 1)
    assert (a.waiting, a.running, a.finished, a.tokens) == (1, 0, 1, 4)
    assert (b.waiting, b.running, b.failed, b.tokens) == (0, 1, 1, 1)
    assert monitor.max_in_flight == 4
    assert monitor.errors == {"connection refused": 1}


def test_a_log_line_says_it_all_in_one_line() -> None:
    line = log_line(busy_monitor(), 12.0, 3.5, 1000.0)
    for part in ("sent 4/10 (3.5/s)", "waiting 1", "running 1", "failed 1", "TTFT p50/p99 100/149 ms"):
        assert part in line
    assert line.endswith("connection refused: 1")
    assert "\n" not in line


def test_the_screen_has_a_row_per_tenant() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(screen(busy_monitor(), 12.0, 3.5, 1000.0))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in text.splitlines()]
    assert ["a", "2", "1", "0", "1", "0", "4", "50/50/50", "20/20"] in rows
    assert any(row and row[0] == "b" for row in rows)
    assert "connection refused: 1" in text


def test_many_tenants_are_cut_short() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(screen(Monitor(1, [f"t{i}" for i in range(20)]), 0.0, 0.0, 0.0))
    assert "and 8 more" in console.file.getvalue()  # type: ignore[attr-defined]


def test_rates_are_of_the_time_since_the_last_look() -> None:
    now_s = 0.0
    monitor = Monitor(10, ["a"])
    rates = Rates(monitor, lambda: now_s)
    monitor.on_sent("a")
    monitor.on_first("a", 0.1, 8)
    now_s = 2.0
    assert rates.take() == (0.5, 4.0)
    now_s = 4.0
    assert rates.take() == (0.0, 0.0)


def test_a_lagging_client_warns() -> None:
    monitor = Monitor(1, ["a"])
    assert client_warning(monitor) is None
    monitor.loop_lag_s.extend([0.5] * 10)
    assert client_warning(monitor) == "client saturated: event loop lags 500 ms"
