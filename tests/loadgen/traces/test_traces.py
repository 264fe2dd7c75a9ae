from pathlib import Path

import pytest

from loadgen.spec import SpecError
from loadgen.traces import TraceError, TraceSpec

CSV = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,1,2\n2023-11-16,3,4\nbroken\n"


def test_reads_a_range_and_no_line_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    spec = TraceSpec.parse(f"azure:{path}")
    assert [row.input_tokens for row in spec.read(1, 2, seed=0)] == [3]
    with pytest.raises(TraceError, match=r"a\.csv:4: 1 cells"):
        spec.read(0, None, seed=0)


@pytest.mark.parametrize("text", ["azure", "azure:", "parquet:x", "", "synthetic:rows=x"])
def test_refuses_unknown_forms(text: str) -> None:
    with pytest.raises(SpecError):
        TraceSpec.parse(text)
