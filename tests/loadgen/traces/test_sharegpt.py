import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadgen.traces import TraceError
from loadgen.traces.sharegpt import read_sharegpt


def entry(prompt: str, reply: str, speaker: str = "human") -> dict[str, object]:
    turns = [{"from": speaker, "value": prompt}, {"from": "gpt", "value": reply}]
    return {"id": "x1", "conversations": turns}


def test_first_turn_is_the_prompt_and_its_reply_the_length(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    odd = [entry("a", "b", speaker="gpt"), {"conversations": []}, entry("", "b")]
    path.write_text(json.dumps([*odd, entry("How are you?", "Fine.")], indent=1))
    (row,) = read_sharegpt(path)
    assert (row.text, row.input_tokens, row.output_tokens, row.key) == ("How are you?", 3, 2, "x1")
    assert row.arrival_s is None


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('{"a": 1}', 1, "must be a JSON array"),
        ("", 1, "must be a JSON array"),
        ('[\n{"conversations": []},\n{"conversation": []}\n]', 3, "missing required field `conversations`"),
        ('[\n{"conversations": []}\n{}]', 3, "expected ',' or ']'"),
        ('[\n{"conversations": []},\n]', 3, "Expecting value"),
        ('[\n{"conversations":\n', 3, "Expecting value"),
        ('[{"conversations": []}', 1, "expected ',' or ']'"),
    ],
)
def test_names_file_and_line(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "share.json"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        list(read_sharegpt(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert reason in str(caught.value)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pairs=st.lists(st.tuples(texts, texts), max_size=6), indent=st.none() | st.integers(0, 3))
def test_what_is_written_is_read(tmp_path: Path, pairs: list[tuple[str, str]], indent: int | None) -> None:
    path = tmp_path / "share.json"
    path.write_text(json.dumps([entry(*pair) for pair in pairs], indent=indent), encoding="utf-8")
    assert [row.text for row in read_sharegpt(path)] == [prompt for prompt, _ in pairs]
