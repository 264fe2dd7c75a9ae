from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.traces import TraceError
from loadgen.traces.azure import read_azure

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_rows_count_from_the_first_arrival(tmp_path: Path) -> None:
    text = "2023-11-16 18:15:46.6805900,374,44\n\n2023-11-16 18:15:50.6805900,396,109\n"
    first, second = read_azure(write(tmp_path, HEADER + text))
    assert (first.line, first.arrival_s, first.input_tokens, first.output_tokens) == (2, 0.0, 374, 44)
    assert (second.line, second.arrival_s, second.input_tokens) == (4, 4.0, 396)


def test_reads_the_time_zones_of_the_2024_trace(tmp_path: Path) -> None:
    text = "2024-05-10 00:00:00.009930+00:00,1,2\r\n2024-05-10 00:00:01+00:00,3,4\r\n"
    rows = list(read_azure(write(tmp_path, HEADER.replace("\n", "\r\n") + text)))
    assert rows[1].arrival_s == pytest.approx(0.99007)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "missing column TIMESTAMP, ContextTokens, GeneratedTokens (the header has nothing)"),
        ("TIMESTAMP,ContextTokens\n2023-11-16,1\n", 1, "missing column GeneratedTokens"),
        (HEADER + "2023-11-16,1,2\n2023-11-16,1\n", 3, "2 cells where the header has 3"),
        (HEADER + "2023-11-16,1,2\n2023-11-16,x,2\n", 3, "ContextTokens must be a whole number"),
        (HEADER + "2023-11-16,-1,2\n", 2, "ContextTokens must be a whole number, 0 or more, not '-1'"),
        (HEADER + "yesterday,1,2\n", 2, "TIMESTAMP must be a date and time, not 'yesterday'"),
        (HEADER + "2023-11-16,1,2\n2023-11-15,1,2\n", 3, "times out of order: this row is 86400 s before"),
        (HEADER + "2023-11-16,1,2\n2023-11-16T01:00+00:00,1,2\n", 3, "a time zone on some lines"),
    ],
)
def test_names_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        list(read_azure(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert reason in message
    assert "\n" not in message


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER.encode() + b"2023-11-16,\xff\xfe,2\n")
    with pytest.raises(TraceError, match=r":2: ContextTokens"):
        list(read_azure(path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**6)),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_written_is_read(tmp_path: Path, rows: list[tuple[int, int, int]]) -> None:
    rows.sort(key=lambda row: row[0])
    epoch = datetime(2023, 11, 16)
    moments = [epoch + timedelta(microseconds=row[0]) for row in rows]
    text = "".join(f"{moment},{row[1]},{row[2]}\n" for moment, row in zip(moments, rows, strict=True))
    read = list(read_azure(write(tmp_path, HEADER + text)))
    assert [(row.input_tokens, row.output_tokens) for row in read] == [row[1:] for row in rows]
    assert [row.arrival_s for row in read] == [
        pytest.approx((row[0] - rows[0][0]) / 1e6, abs=1e-9) for row in rows
    ]
