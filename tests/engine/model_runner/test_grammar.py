import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.messages import Grammar, GrammarKind, Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.grammar import BadGrammar, Grammars

EOS = 256


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerFast) -> Grammars:
    return Grammars(tokenizer, 260, [EOS])


def row_of(kind: GrammarKind, source: str, slot: int = 0) -> Row:
    sampling = Sampling(max_tokens=50, grammar=Grammar(kind=kind, source=source))
    return Row(slot, sampling, num_prompt=2, page_tables=[], history=[7, 8])


def allowed(grammars: Grammars, *rows: Row) -> list[set[int]]:
    """Ids that may come next in each row."""
    steps = [StepRow(row, len(row.history) - 1, 1, None, sample=True) for row in rows]
    bits = grammars.next_bits(steps).numpy()
    unpacked = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row).tolist()) for row in unpacked]


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> set[int]:
    return set(tokenizer.encode(text))


def test_a_regex_is_followed_and_then_only_the_end_may_come(
    grammars: Grammars, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = row_of(GrammarKind.REGEX, "a[bc]d?")
    for text, expected in (("", "a"), ("a", "bc")):
        row.history[2:] = tokenizer.encode(text) if text else []
        assert allowed(grammars, row)[0] == ids_of(tokenizer, expected)
    row.history += tokenizer.encode("b")
    assert allowed(grammars, row)[0] == ids_of(tokenizer, "d") | {EOS}
    row.history += tokenizer.encode("d")
    assert allowed(grammars, row)[0] == {EOS}


def test_a_row_that_resumes_is_replayed_from_its_history(
    grammars: Grammars, tokenizer: PreTrainedTokenizerFast
) -> None:
    first, resumed = row_of(GrammarKind.REGEX, "xyz"), row_of(GrammarKind.REGEX, "xyz")
    allowed(grammars, first)
    resumed.history += tokenizer.encode("xy")
    assert allowed(grammars, resumed)[0] == ids_of(tokenizer, "z")


def test_rows_have_grammars_of_their_own(grammars: Grammars, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        row_of(GrammarKind.REGEX, "[0-9]", 0),
        row_of(GrammarKind.LARK, 'start: "p" | "q"', 1),
        row_of(GrammarKind.JSON_SCHEMA, '{"const": true}', 2),
    ]
    assert allowed(grammars, *rows) == [ids_of(tokenizer, text) for text in ("0123456789", "pq", "t")]


def test_any_walk_under_a_schema_gives_valid_json(
    grammars: Grammars, tokenizer: PreTrainedTokenizerFast
) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }
    for walk in range(5):
        row = row_of(GrammarKind.JSON_SCHEMA, json.dumps(schema))
        while EOS not in (choices := sorted(allowed(grammars, row)[0])):
            row.history.append(choices[(walk + len(row.history)) % len(choices)])
            assert len(row.history) < 100
        answer = json.loads(tokenizer.decode(row.history[2:]))
        assert 0 <= answer["n"] <= 99
        assert isinstance(answer["ok"], bool)


def test_output_that_left_the_grammar_may_only_end(
    grammars: Grammars, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = row_of(GrammarKind.REGEX, "abc")
    row.history += tokenizer.encode("ax")
    assert allowed(grammars, row)[0] == {EOS}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        (GrammarKind.REGEX, "a(b"),
        (GrammarKind.LARK, "start: nothing"),
        (GrammarKind.JSON_SCHEMA, "{"),
        (GrammarKind.JSON_SCHEMA, '{"type": "no such type"}'),
        (GrammarKind.JSON_SCHEMA, "[1]"),
    ],
)
def test_a_bad_grammar_is_refused_with_its_reason(grammars: Grammars, kind: GrammarKind, source: str) -> None:
    with pytest.raises(BadGrammar, match=r"\w+"):
        grammars.check(Grammar(kind=kind, source=source))


def test_a_model_without_end_tokens_can_use_grammars(tokenizer: PreTrainedTokenizerFast) -> None:
    row = row_of(GrammarKind.REGEX, "ab")
    assert allowed(Grammars(tokenizer, 260, []), row)[0] == ids_of(tokenizer, "a")
