import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.spec import SpecError, named_numbers, positive, row_slice, whole, whole_range


@given(low=st.integers(0, 10**9), extra=st.integers(0, 10**9))
def test_ranges_read_as_written(low: int, extra: int) -> None:
    assert whole_range(f"{low}:{low + extra}", ":") == (low, low + extra)
    assert whole_range(str(low), ":") == (low, low)


def test_rows_slice_as_python_does() -> None:
    assert row_slice("0:300") == (0, 300)
    assert row_slice("5:") == (5, None)
    assert row_slice(":") == (0, None)


def test_named_numbers() -> None:
    assert named_numbers("a=1,b=2.5") == {"a": 1.0, "b": 2.5}


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "1_000", "٣"])
def test_whole_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        whole(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_positive_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        positive(text)


@pytest.mark.parametrize("text", ["5", "3:3", "4:2", "a:b"])
def test_row_slice_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        row_slice(text)


@pytest.mark.parametrize("text", ["", "a", "a=", "=1", "a=1,a=2", "a=0"])
def test_named_numbers_refuses(text: str) -> None:
    with pytest.raises(SpecError):
        named_numbers(text)
