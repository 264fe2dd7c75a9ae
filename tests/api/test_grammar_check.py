"""Grammars of clients: the bad are named, the costly are bounded, and none ends the api."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api import grammar_check
from api.errors import ApiError
from api.grammar_check import TOO_COSTLY, GrammarChecks, _answer_of
from api.grammar_checker import NOTHING_FITS, problem_with
from engine.messages import BAD_GRAMMAR, NO_GRAMMARS, Grammar, GrammarKind
from tests.api.fake_engine import CARD
from tests.api.harness import run, run_for, running_api, until
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


def test_only_the_check_counts_not_the_start_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of a second is more than a simple grammar costs, and less than to load the library."""

    async def test() -> None:
        monkeypatch.setattr(grammar_check, "CHECK_CPU_S", 0.05)
        checks = GrammarChecks()
        simple = [Grammar(kind=GrammarKind.REGEX, source=source) for source in ("a", "[0-9]+")]
        assert await checks.problem_with(simple[0]) == ""
        costly = Grammar(kind=GrammarKind.JSON_SCHEMA, source=wide_schema(4000))
        assert await checks.problem_with(costly) == TOO_COSTLY
        assert await checks.problem_with(simple[1]) == ""
        await checks.close()

    run(test())


def test_a_checker_that_gets_no_time_is_not_the_grammars_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with running_api() as api:
            monkeypatch.setattr(grammar_check, "WAIT_S", 0.0)
            late = await api.complete(guided_regex="a")
            assert (late.status, late.json["error"]["code"]) == (503, "overloaded")
            assert "retry-after" in late.headers
            monkeypatch.undo()
            assert (await api.complete(guided_regex="a")).status == 200

    run(test())


def test_a_checker_that_ended_while_it_waited_is_not_the_grammars_fault() -> None:
    async def test() -> None:
        checks = GrammarChecks()
        assert await checks.problem_with(Grammar(kind=GrammarKind.REGEX, source="a")) == ""
        (checker,) = checks._idle
        checker.kill()  # as the system does for want of memory
        await checker.wait()
        assert await checks.problem_with(Grammar(kind=GrammarKind.REGEX, source="b")) == ""
        await checks.close()

    run(test())


@pytest.mark.parametrize("executable", ["/nonexistent/python", "/bin/false"])
def test_a_checker_that_cannot_start_is_not_the_grammars_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, executable: str
) -> None:
    async def test() -> None:
        async with running_api() as api:
            monkeypatch.setattr(sys, "executable", executable)
            failed = await api.complete(guided_regex="a")
            assert (failed.status, failed.json["error"]["code"]) == (503, "overloaded")
            assert failed.json["error"]["type"] == "server_error"
            assert "retry-after" in failed.headers
            assert any("a grammar checker " in record.message for record in caplog.records)
            monkeypatch.undo()
            assert (await api.complete(guided_regex="a")).status == 200

    run(test())


def test_a_checker_that_has_ended_before_it_is_asked_has_no_answer() -> None:
    async def test() -> None:
        process = await asyncio.create_subprocess_exec("/bin/true", stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        await until(process.stdin.is_closing)
        assert await _answer_of(process, b"question") == b""

    run(test())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_checker_that_somebody_kills_is_not_the_grammars_fault(number: signal.Signals) -> None:
    async def test() -> None:
        checks = GrammarChecks()
        assert await checks.problem_with(Grammar(kind=GrammarKind.REGEX, source="a")) == ""
        (checker,) = checks._idle
        checker.send_signal(signal.SIGSTOP)
        asking = asyncio.create_task(checks.problem_with(Grammar(kind=GrammarKind.REGEX, source="b")))
        await until(lambda: not checks._idle)
        checker.send_signal(number)
        checker.send_signal(signal.SIGCONT)
        with pytest.raises(ApiError) as failed:
            await asking
        assert failed.value.status == 503
        assert await checks.problem_with(Grammar(kind=GrammarKind.REGEX, source="b")) == ""
        await checks.close()

    run(test())


def test_a_grammar_over_the_limit_says_so() -> None:
    async def test() -> None:
        async with running_api() as api:
            schema = {"enum": ["x" * 300_000]}
            assert "262144" in check_error(await api.complete(guided_json=schema), 400, "guided_json")

    run(test())


def test_what_only_the_models_tokens_show_is_a_bad_request_too() -> None:
    async def test() -> None:
        async with running_api(paused=True) as api:
            asked = asyncio.create_task(api.complete(guided_regex="a+"))
            await until(lambda: api.engine.running)
            api.engine.fail_all(f"{BAD_GRAMMAR}: its lexer is too large")
            assert "its lexer is too large" in check_error(await asked, 400, None)

    run(test())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs.choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_model_without_grammars_refuses_them_by_field_before_it_streams(
    fields: dict[str, object], param: str, stream: bool
) -> None:
    async def test() -> None:
        card = msgspec.structs.replace(CARD, grammars_problem=f"{NO_GRAMMARS}: it is a SlowTokenizer")
        async with running_api(cards=[card]) as api:
            says = check_error(await api.complete(stream=stream, **fields), 400, param)
            assert says == f"{param} cannot be used: {NO_GRAMMARS}: it is a SlowTokenizer"
            assert api.engine.submits == []
            assert (await api.complete(stream=stream)).status == 200

    run(test())


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        (GrammarKind.REGEX, "a(?=b)", "look-around"),
        (GrammarKind.REGEX, "(" * 5000 + "a" + ")" * 5000, "invalid regex"),
        (GrammarKind.REGEX, "[z-a]", "invalid"),
        (GrammarKind.LARK, "start: missing", "missing"),
        (GrammarKind.LARK, 'start: "a', "1("),
        (GrammarKind.JSON_SCHEMA, "[1]", "schema"),
        (GrammarKind.JSON_SCHEMA, '{"type": "number", "multipleOf": 1e-300}', "multipleOf"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "http://127.0.0.1:1/schema"}', "http://127.0.0.1:1/schema"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "#"}', NOTHING_FITS),
        (GrammarKind.JSON_SCHEMA, '{"enum": []}', ""),
    ],
)
def test_the_bad_are_told_what_is_wrong(kind: GrammarKind, source: str, says: str) -> None:
    problem = problem_with(Grammar(kind=kind, source=source))
    assert problem
    assert says in problem


def wide_schema(num_keys: int) -> str:
    return json.dumps({"properties": {f"p{index}": {"type": "string"} for index in range(num_keys)}})


COSTLY = [  # by repetition, alternatives, depth, recursion, sheer size
    (GrammarKind.REGEX, "((a{1,1000}){1,1000}){1,1000}"),
    (GrammarKind.REGEX, "(a|aa|aaa)*" * 400),
    (GrammarKind.REGEX, "(.{0,1000}){0,1000}x"),
    (GrammarKind.JSON_SCHEMA, json.dumps({"type": "array", "minItems": 10**9, "items": {"type": "string"}})),
    (GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "minLength": 10**8, "maxLength": 10**9})),
    (GrammarKind.JSON_SCHEMA, '{"items": ' * 400 + "{}" + "}" * 400),
    (GrammarKind.JSON_SCHEMA, wide_schema(4000)),
    (GrammarKind.LARK, 'start: start start | "a"'),
    (GrammarKind.LARK, "start: " + " | ".join(f'"w{index}"' for index in range(6000))),
]


def test_the_costly_are_answered_and_the_next_is_served() -> None:
    """Each is refused or served, and none of them more slowly than a check may take."""

    async def test() -> None:
        checks = GrammarChecks()
        for kind, source in COSTLY:
            async with asyncio.timeout(20.0):  # CHECK_CPU_S, and a start on a busy machine
                assert isinstance(await checks.problem_with(Grammar(kind=kind, source=source)), str)
        assert await checks.problem_with(Grammar(kind=GrammarKind.REGEX, source="[a-z]+")) == ""
        await checks.close()

    run_for(test(), 240)


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
