"""Grammars of clients: the bad are named, the costly are bounded, and none ends the api."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import grammar_check
from api.grammar_check import TOO_COSTLY, GrammarChecks
from api.grammar_checker import problem_with
from engine.messages import Grammar, GrammarKind
from tests.api.harness import run, running_api
from tests.api.test_bad_input import check_error

# Rules that lead on to each other, deep enough to overflow the stack of whoever follows them.
CHAIN = "start: r0\n" + "\n".join(f'r{i}: "x" r{i + 1}?' for i in range(2800)) + '\nr2800: "y"'


def test_what_kills_the_checker_is_a_bad_request_and_the_next_is_served() -> None:
    async def test() -> None:
        async with running_api() as api:
            assert TOO_COSTLY in check_error(await api.complete(guided_grammar=CHAIN), 400, "guided_grammar")
            assert (await api.complete(guided_regex="a+")).status == 200
            assert (await api.complete(guided_json={"type": "object"})).status == 200

    run(test())


def test_what_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        checks = GrammarChecks()
        grammar = Grammar(kind=GrammarKind.REGEX, source="a")
        monkeypatch.setattr(grammar_check, "CHECK_S", 0.0)
        assert await checks.problem_with(grammar) == TOO_COSTLY
        monkeypatch.setattr(grammar_check, "CHECK_S", 20.0)
        assert await checks.problem_with(grammar) == ""
        await checks.close()

    run(test())


def test_a_grammar_over_the_limit_says_so() -> None:
    async def test() -> None:
        async with running_api() as api:
            schema = {"enum": ["x" * 300_000]}
            assert "262144" in check_error(await api.complete(guided_json=schema), 400, "guided_json")

    run(test())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["string", "object", "^a+$", "#/x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "enum", "anyOf", "pattern", "minLength", "$ref"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(JSON)
def test_schemas_of_any_shape_have_an_answer(schema: object) -> None:
    assert isinstance(problem_with(Grammar(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(schema))), str)


@settings(max_examples=150)
@given(st.text(alphabet="ab(){}[]|*+?.^$\\d0,19-é", max_size=40), st.sampled_from(GrammarKind))
def test_texts_of_any_kind_have_an_answer(source: str, kind: GrammarKind) -> None:
    assert isinstance(problem_with(Grammar(kind=kind, source=source)), str)
