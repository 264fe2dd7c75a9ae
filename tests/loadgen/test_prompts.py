from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from loadgen.prompts import PromptMaker, TokenIds
from loadgen.traces import BLOCK_TOKENS, TraceRow

ROW = TraceRow(line=2, arrival_s=0.0, input_tokens=1200, output_tokens=1, hash_ids=(3, 4, 5))


@given(length=st.integers(1, 2000), blocks=st.lists(st.integers(0, 99), max_size=5), seed=st.integers(0, 9))
def test_ids_have_the_exact_length_and_stay_in_the_vocabulary(
    length: int, blocks: list[int], seed: int
) -> None:
    row = TraceRow(2, 0.0, length, 1, hash_ids=tuple(blocks))
    prompt = PromptMaker(seed, TokenIds(7, 12)).make(0, row)
    assert len(prompt) == length
    assert set(prompt) <= {7, 8, 9, 10, 11}
    assert prompt == PromptMaker(seed, TokenIds(7, 12)).make(0, row)


def test_equal_blocks_give_equal_tokens_and_nothing_else_does() -> None:
    maker = PromptMaker(0, TokenIds())
    one = maker.make(0, ROW)
    two = maker.make(1, replace(ROW, hash_ids=(3, 4, 9), input_tokens=1100))
    assert one[: 2 * BLOCK_TOKENS] == two[: 2 * BLOCK_TOKENS]
    assert one[2 * BLOCK_TOKENS : 1100] != two[2 * BLOCK_TOKENS :]
    assert maker.make(0, replace(ROW, hash_ids=())) != maker.make(1, replace(ROW, hash_ids=()))
    assert PromptMaker(1, TokenIds()).make(0, ROW) != one


def test_a_last_block_that_is_cut_is_a_prefix_of_the_whole_one() -> None:
    maker = PromptMaker(0, TokenIds())
    assert maker.make(0, replace(ROW, input_tokens=600)) == maker.make(5, ROW)[:600]


def test_text_has_a_word_per_token_and_shares_prefixes() -> None:
    maker = PromptMaker(0, None)
    one, two = maker.make(0, ROW), maker.make(1, replace(ROW, hash_ids=(3,)))
    assert isinstance(one, str)
    assert isinstance(two, str)
    assert len(one.split()) == 1200
    assert one.split()[:BLOCK_TOKENS] == two.split()[:BLOCK_TOKENS]


def test_the_traces_own_text_is_sent_and_cut() -> None:
    row = TraceRow(line=1, arrival_s=None, input_tokens=2, output_tokens=1, text="abcdefghijkl")
    assert PromptMaker(0, None).make(0, row) == "abcdefgh"
