import pytest

from engine.fairness.reading import ReadingFloor, waits_since_ns

MS = 1_000_000
FLOOR = ReadingFloor(tokens_per_s=20.0, gap_ns=500 * MS)


def tokens(behind: float, step_ns: float = 10 * MS) -> int | None:
    return FLOOR.turn_tokens(num_read=100 + behind, num_tokens=100, step_ns=step_ns)


def test_a_turn_lasts_the_reader_until_the_prompt_is_due_again() -> None:
    """12.5 tokens: the gap of 0.5 s and 12.5 steps of 10 ms are 0.625 s, at 20 tokens/s."""
    assert tokens(0) == round(12.5)
    assert tokens(0, step_ns=1) == 10


@pytest.mark.parametrize(
    ("behind", "wanted"),
    [(5, 15), (10, 20), (500, 20), (-5, 10), (-500, 10)],  # twice the usual turn at most, never less than it
)
def test_who_is_behind_its_reader_catches_up(behind: float, wanted: int) -> None:
    assert tokens(behind, step_ns=1) == wanted


def test_no_turn_is_long_enough_on_a_device_that_is_slower_than_the_reader() -> None:
    assert tokens(0, step_ns=50 * MS) is None
    assert tokens(0, step_ns=49 * MS) == 500


def test_what_a_reader_has_read() -> None:
    assert FLOOR.num_read(1000 * MS, 3000 * MS) == 40


def test_a_reader_has_everybodys_speed_or_its_own() -> None:
    assert FLOOR.at(None) is FLOOR
    assert FLOOR.at(40.0) == ReadingFloor(tokens_per_s=40.0, gap_ns=500 * MS)


@pytest.mark.parametrize(
    ("num_tokens", "due_ms"),
    [
        (1, 2000),  # read long ago: at once
        (50, 2250),
        (60, 2500),
        (110, 2500),  # not read before 3.75 s: when the gap is over
    ],
)
def test_a_prompt_is_due_when_its_own_reader_has_read_everything(num_tokens: int, due_ms: int) -> None:
    """The first token came at 1 s, the last at 2 s."""
    since_ns = waits_since_ns(
        tokens_per_s=40.0,
        first_token_ns=1000 * MS,
        last_token_ns=2000 * MS,
        num_tokens=num_tokens,
        gap_ns=FLOOR.gap_ns,
    )
    assert since_ns + FLOOR.gap_ns == due_ms * MS
