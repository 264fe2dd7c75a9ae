from pathlib import Path

import pytest

from loadgen.traces import TraceError
from loadgen.traces.mooncake import read_mooncake

LINE = '{"timestamp": 1500, "input_length": 700, "output_length": 5, "hash_ids": [0, 7]}\n'


def test_reads_blocks_and_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(LINE + "\n" + LINE.replace("1500", "4000").replace("[0, 7]", "[]"))
    first, second = read_mooncake(path)
    assert (first.arrival_s, first.input_tokens, first.output_tokens) == (0.0, 700, 5)
    assert (first.hash_ids, first.key) == ((0, 7), "7")
    assert (second.line, second.arrival_s, second.hash_ids, second.key) == (3, 2.5, (), None)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (LINE + '{"timestamp": 1}\n', 2, "missing required field `input_length`"),
        (LINE + "{\n", 2, "truncated"),
        (LINE + LINE.replace("700", '"700"'), 2, "$.input_length"),
        (LINE + LINE.replace("700", "-1"), 2, "$.input_length"),
        (LINE + LINE.replace("1500", "1499"), 2, "times out of order"),
        ("[]\n", 1, "object"),
    ],
)
def test_names_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        list(read_mooncake(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert reason in str(caught.value)


def test_invalid_utf8_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_bytes(LINE.encode() + b'{"timestamp": "\xff"}\n')
    with pytest.raises(TraceError, match=r":2: "):
        list(read_mooncake(path))
