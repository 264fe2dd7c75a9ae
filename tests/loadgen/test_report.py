from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from loadgen.compare import compare_runs
from loadgen.report import PLOTS_FOLDER, REPORT_FILE, SUMMARY_FILE, write_report
from loadgen.results import ClientHealth, ErrorKind, Outcome, RequestRecord, RunInfo
from loadgen.stats import Summary
from tests.loadgen.records import record, run_info

TENANTS = {"a<b": 1.0, "c": 2.0}


def some_run() -> tuple[RunInfo, list[RequestRecord]]:
    records = [
        record(i, tenant=list(TENANTS)[i % 2], sent=i / 4, chunks=[i / 4 + 0.1, i / 4 + 0.2])
        for i in range(8)
    ]
    records.append(
        record(8, tenant="c", chunks=[], outcome=Outcome.FAILED, error=ErrorKind.REFUSED, end_s=0.1)
    )
    return run_info(tenant_weights=TENANTS, num_planned=9), records


def test_a_run_leaves_summary_page_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    info, records = some_run()
    summary, missing = write_report(tmp_path, info, records)
    assert missing is None
    assert msgspec.json.decode((tmp_path / SUMMARY_FILE).read_bytes(), type=Summary) == summary
    page = (tmp_path / REPORT_FILE).read_text()
    assert page.count("<svg") == 6
    assert "prefers-color-scheme: dark" in page
    assert "a&lt;b" in page
    assert "a<b" not in page
    assert "1 of 9 requests failed (connection refused: 1)" in page
    assert 'src="' not in page
    names = {path.stem for path in (tmp_path / PLOTS_FOLDER).iterdir()}
    assert names == {"ttft", "completion", "gaps", "open", "tokens", "service"}
    for path in (tmp_path / PLOTS_FOLDER).iterdir():
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "var(--series-0)" in text
        assert "#0a0b" not in text


@pytest.mark.usefixtures("no_matplotlib")
def test_without_matplotlib_the_report_says_so_in_one_line(tmp_path: Path) -> None:
    _, missing = write_report(tmp_path, *some_run())
    assert missing is not None
    assert "fairslice[plots]" in missing
    page = (tmp_path / REPORT_FILE).read_text()
    assert "matplotlib is not installed" in page
    assert "time to first token" in page
    assert "<svg" not in page


def test_a_run_in_which_everything_failed_has_a_report(tmp_path: Path) -> None:
    failed = [
        record(i, chunks=[], outcome=Outcome.FAILED, error=ErrorKind.REFUSED, end_s=0.1) for i in range(2)
    ]
    summary, _ = write_report(tmp_path, run_info(), failed)
    assert summary.failed == 2
    assert "2 of 2 requests failed" in (tmp_path / REPORT_FILE).read_text()


def test_an_interrupted_run_and_a_saturated_client_are_named(tmp_path: Path) -> None:
    health = ClientHealth(
        lateness_p99_s=0.5,
        lateness_max_s=0.6,
        loop_lag_p99_s=0.0,
        loop_lag_max_s=0.0,
        cpu_fraction=0.2,
        saturated=["1 request in 100 was sent 500 ms late or more"],
    )
    write_report(tmp_path, run_info(num_planned=5, interrupted=True, health=health), [record(0)])
    page = (tmp_path / REPORT_FILE).read_text()
    assert "The run was interrupted: 4 planned requests were not sent." in page
    assert "The client was saturated: 1 request in 100 was sent 500 ms late or more." in page


def test_compare_lays_runs_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    info, records = some_run()
    folders = [tmp_path / "fcfs", tmp_path / "cfs"]
    for folder in folders:
        folder.mkdir()
        write_report(folder, info, records)
    rows, missing = compare_runs(folders, tmp_path)
    assert missing is None
    assert rows[0] == ["", "fcfs", "cfs"]
    assert ["finished", "8", "8"] in rows
    assert ["time to first token p50", "100.0 ms", "100.0 ms"] in rows
    page = (tmp_path / REPORT_FILE).read_text()
    assert page.count("<svg") == 6
    assert "fcfs" in page


@pytest.mark.usefixtures("no_matplotlib")
def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    for folder in folders:
        folder.mkdir(parents=True)
        write_report(folder, *some_run())
    rows, _ = compare_runs(folders, tmp_path)
    assert rows[0] == ["", *map(str, folders)]
