from pathlib import Path

import pytest

from loadgen.traces import TraceError
from loadgen.traces.burstgpt import read_burstgpt

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_leaves_out_what_failed_at_the_traced_service(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        HEADER + "5,ChatGPT,472,18,490,API log\n7,GPT-4,9,0,9,API log\n45.5,GPT-4,8,2,10,API log\n"
    )
    rows = list(read_burstgpt(path))
    assert [(row.line, row.arrival_s, row.input_tokens, row.output_tokens, row.key) for row in rows] == [
        (2, 0.0, 472, 18, "ChatGPT"),
        (4, 40.5, 8, 2, "GPT-4"),
    ]


def test_the_session_is_the_key_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Session ID,Model,Request tokens,Response tokens\n1,17,GPT-4,1,2\n1,,GPT-4,1,2\n"
    )
    assert [row.key for row in read_burstgpt(path)] == ["17", "GPT-4"]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("Timestamp,Request tokens\n", 1, "missing column Response tokens"),
        (HEADER + "nan,m,1,2,3,x\n", 2, "Timestamp must be a number of seconds, not 'nan'"),
        (HEADER + "2,m,1,2,3,x\n1,m,1,2,3,x\n", 3, "times out of order: this row is 1 s before"),
        (HEADER + "2,m,1.5,2,3,x\n", 2, "Request tokens must be a whole number"),
    ],
)
def test_names_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        list(read_burstgpt(path))
    assert str(caught.value).startswith(f"{path}:{line}: {reason}")
