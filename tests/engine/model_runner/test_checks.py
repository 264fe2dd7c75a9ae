from array import array

import pytest

from engine.messages import Grammar, GrammarKind, Sampling, Slice
from engine.model_runner.checks import SliceCheck
from engine.model_runner.grammar import BadGrammar


class FakeGrammars:
    def check(self, grammar: Grammar) -> None:
        if grammar.source == "(":
            raise BadGrammar("an open\n    bracket")


def problem(
    ids: list[int], sampling: Sampling, *, start: int = 0, grammars: FakeGrammars | None = None
) -> str | None:
    check = SliceCheck(vocab_size=100, max_model_len=8, grammars=grammars)
    return check(
        Slice(
            slice_id=1,
            start=start,
            ids=ids,
            pages=[array("i", [1])],
            max_new=1,
            num_prompt=2,
            sampling=sampling,
        )
    )


def constrained(source: str) -> Sampling:
    return Sampling(max_tokens=1, grammar=Grammar(kind=GrammarKind.REGEX, source=source))


def test_what_can_be_served_has_no_problem() -> None:
    assert problem([0, 99], Sampling(max_tokens=1, stop_token_ids=(5,), logit_bias={99: 1.0})) is None
    assert problem([0] * 5, Sampling(max_tokens=1), start=3) is None
    assert problem([1], constrained("a+"), grammars=FakeGrammars()) is None


@pytest.mark.parametrize(
    ("ids", "sampling", "start", "part"),
    [
        ([], Sampling(max_tokens=1), 0, "without ids"),
        ([100], Sampling(max_tokens=1), 0, "from 0 to 99, got 100"),
        ([-1, 5], Sampling(max_tokens=1), 0, "got -1 to 5"),
        ([1], Sampling(max_tokens=1, stop_token_ids=(100,)), 0, "got 100"),
        ([1], Sampling(max_tokens=1, logit_bias={100: 1.0}), 0, "got 100"),
        ([1, 1], Sampling(max_tokens=1), 7, "8 positions"),
        ([1], constrained("a"), 0, "the grammar cannot be used: this model's tokenizer has no grammars"),
    ],
)
def test_problems_are_named(ids: list[int], sampling: Sampling, start: int, part: str) -> None:
    found = problem(ids, sampling, start=start)
    assert found is not None
    assert part in found


def test_a_grammar_that_does_not_compile_is_named_with_its_fault() -> None:
    found = problem([1], constrained("("), grammars=FakeGrammars())
    assert found == "the grammar cannot be used: an open bracket"
