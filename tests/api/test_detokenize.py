"""Text from tokens equals what the tokenizer itself decodes, however the tokens arrive."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from api.detokenize import (
    Detokenizer,
    UnsupportedTokenizerError,
    Vocabulary,
    full_text,
    read_vocabulary,
    text_and_offsets,
)

CORPUS = ["the quick brown fox jumps over the lazy dog", "héllo wörld, 你好 世界", "naïve 🙂 café " * 3]
BYTE_TOKENS = [f"<0x{value:02X}>" for value in range(256)]


@cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<tool>", "«é 世»"])
    return tokenizer


@cache
def sentencepiece(strips: bool) -> Tokenizer:
    """As Llama 2's (which strips the first space) and Gemma's (which does not)."""
    words = ["\u2581", "\u2581the", "the", "h", "é", "llo", "\u2581wor", "ld", ",", "a", "b"]
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *words]
    vocab = {token: rank for rank, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@cache
def vocabulary_of(name: str) -> tuple[Tokenizer, Vocabulary]:
    makers = {
        "byte_level": byte_level,
        "strips": lambda: sentencepiece(True),
        "keeps": lambda: sentencepiece(False),
    }
    tokenizer = makers[name]()
    return tokenizer, read_vocabulary(tokenizer)


def in_pieces(vocabulary: Vocabulary, ids: list[int], cuts: list[int]) -> list[str]:
    detokenizer = Detokenizer(vocabulary, at_start=True)
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    pieces = [detokenizer.feed(ids[start:end]) for start, end in pairwise(bounds)]
    return [*pieces, detokenizer.flush()]


@given(ids=st.lists(st.integers(0, 401), max_size=30), cuts=st.lists(st.integers(0, 99), max_size=6))
def test_byte_level_equals_the_tokenizers_decoding_of_any_ids(ids: list[int], cuts: list[int]) -> None:
    tokenizer, vocabulary = vocabulary_of("byte_level")
    assert "".join(in_pieces(vocabulary, ids, cuts)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["strips", "keeps"])
@given(
    parts=st.lists(
        st.one_of(st.sampled_from(["\u2581", "\u2581the", "ld", "<s>"]), st.text(max_size=2)),
        max_size=12,
    ),
    cuts=st.lists(st.integers(0, 99), max_size=6),
)
def test_sentencepiece_equals_the_tokenizers_decoding(name: str, parts: list[str], cuts: list[int]) -> None:
    """Any tokens, and any characters spelled in bytes."""
    tokenizer, vocabulary = vocabulary_of(name)
    ids: list[int] = []
    for part in parts:
        known = tokenizer.token_to_id(part)
        spelled = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in part.encode("utf-8", "ignore")]
        ids += spelled if known is None else [known]
    assert "".join(in_pieces(vocabulary, ids, cuts)) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_never_half_a_character(text: str) -> None:
    tokenizer, vocabulary = vocabulary_of("byte_level")
    ids = tokenizer.encode(text).ids
    pieces = in_pieces(vocabulary, ids, list(range(len(ids))))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_continuation_keeps_the_space_before_its_first_word() -> None:
    tokenizer, vocabulary = vocabulary_of("strips")
    ids = [tokenizer.token_to_id("\u2581wor"), tokenizer.token_to_id("ld")]
    assert Detokenizer(vocabulary, at_start=False).feed(ids) == " world"
    assert Detokenizer(vocabulary, at_start=True).feed(ids) == "world"


def test_invalid_bytes_do_not_spoil_characters_beside_them() -> None:
    tokenizer, vocabulary = vocabulary_of("keeps")
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode() + b"\xff\xc3"]
    assert full_text(vocabulary, ids) == "é\ufffd\ufffd"


def test_special_tokens_are_hidden_or_spelled() -> None:
    tokenizer, vocabulary = vocabulary_of("byte_level")
    ids = [tokenizer.token_to_id("<s>"), *tokenizer.encode("dog").ids, 9999]
    assert full_text(vocabulary, ids) == "dog"
    assert full_text(vocabulary, ids, spell_special=True) == "<s>dog"


def test_offsets_are_where_tokens_begin() -> None:
    tokenizer, vocabulary = vocabulary_of("byte_level")
    ids = [token for part in ("the", " quick") for token in tokenizer.encode(part).ids]
    text, offsets = text_and_offsets(vocabulary, ids)
    assert text == "the quick"
    assert [text[start:end] for start, end in zip(offsets, [*offsets[1:], None], strict=True)] == [
        tokenizer.decode([token]) for token in ids
    ]


def test_an_unknown_spelling_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UnsupportedTokenizerError, match="nothing"):
        read_vocabulary(tokenizer)
