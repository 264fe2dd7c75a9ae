import pytest

from loadgen.spec import SpecError
from loadgen.traces.synthetic import Synthetic


def test_lengths_stay_in_range_and_follow_the_seed() -> None:
    made = Synthetic.parse("rows=200,input=5-9,output=3")
    rows = list(made.rows(seed=1))
    assert len(rows) == 200
    assert {row.input_tokens for row in rows} == {5, 6, 7, 8, 9}
    assert {row.output_tokens for row in rows} == {3}
    assert rows == list(made.rows(seed=1))
    assert rows != list(made.rows(seed=2))


@pytest.mark.parametrize("text", ["rows", "rows=0", "input=9-5", "prefix=4", "rows=1;input=2"])
def test_refuses_what_it_cannot_read(text: str) -> None:
    with pytest.raises(SpecError):
        Synthetic.parse(text)
