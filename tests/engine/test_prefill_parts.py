"""Parts of prompts beside rows that decode."""

from hypothesis import given
from hypothesis import strategies as st

from engine.prefill_parts import part_tokens


def test_a_quarter_of_what_is_pending_in_sizes_that_graphs_are_captured_for() -> None:
    assert [part_tokens(n, 128) for n in (1, 512, 513, 1100, 8192)] == [128, 128, 192, 320, 2048]


@given(st.integers(1, 100_000), st.integers(1, 512))
def test_however_much_is_pending_it_takes_few_steps(num_pending: int, least: int) -> None:
    steps, left = 0, num_pending
    while left > 0:
        part = part_tokens(left, least)
        assert part >= least
        assert part >= left / 4
        left, steps = left - part, steps + 1
    assert steps <= 4 + 4 * max(0, (num_pending // (4 * least)).bit_length())
