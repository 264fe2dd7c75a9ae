"""Text from tokens, piece by piece: never half a character, never a wrong space.

Every token of the tokenizers we serve stands for a fixed sequence of bytes, so that text is the UTF-8
decoding of those bytes one after the other. `Vocabulary` is the table; `Detokenizer` is the state of one
stream.
"""

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

WORD_MARK = "\u2581"  # sentencepiece writes a space as this


class UnsupportedTokenizerError(Exception):
    """The tokenizer spells its tokens in a way that is not known here."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The bytes of every token id. Special tokens add nothing to text; `names` has them spelled out."""

    pieces: tuple[bytes, ...]
    names: dict[int, str]  # special tokens only
    strips_first_space: bool  # the first word of a text carries a space that the text does not have

    def text_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text; nothing for special tokens and for padding of the vocabulary."""
        return self.pieces[token_id] if token_id < len(self.pieces) else b""

    def ids_named(self, names: Collection[str]) -> frozenset[int]:
        """The special tokens with these names."""
        return frozenset(token_id for token_id, name in self.names.items() if name in names)

    def shown_bytes(self, token_id: int) -> bytes:
        """The same, with special tokens spelled out, as log probabilities and /detokenize show them."""
        name = self.names.get(token_id)
        return name.encode() if name is not None else self.text_bytes(token_id)


class Detokenizer:
    """One stream of tokens becoming text. `at_start` says that nothing but special tokens came before;
    `spelled` are special tokens that are to be seen in the text."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        at_start: bool,
        spell_special: bool = False,
        spelled: frozenset[int] = frozenset(),
    ) -> None:
        self._bytes_of = vocabulary.shown_bytes if spell_special else vocabulary.text_bytes
        if spelled:
            self._bytes_of = partial(_bytes_spelling, vocabulary, spelled)
        self._strip = at_start and vocabulary.strips_first_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The whole characters that `ids` complete."""
        data = b"".join(map(self._bytes_of, ids))
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: a replacement character if the text stopped inside a character."""
        return self._decoder.decode(b"", True)


def _bytes_spelling(vocabulary: Vocabulary, spelled: frozenset[int], token_id: int) -> bytes:
    bytes_of = vocabulary.shown_bytes if token_id in spelled else vocabulary.text_bytes
    return bytes_of(token_id)


def full_text(vocabulary: Vocabulary, ids: Sequence[int], *, spell_special: bool = False) -> str:
    """The text of a whole sequence."""
    detokenizer = Detokenizer(vocabulary, at_start=True, spell_special=spell_special)
    return detokenizer.feed(ids) + detokenizer.flush()


def text_and_offsets(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of a whole sequence, and where in it each token begins."""
    detokenizer = Detokenizer(vocabulary, at_start=True)
    offsets = []
    text = ""
    for token_id in ids:
        offsets.append(len(text))
        text += detokenizer.feed((token_id,))
    return text + detokenizer.flush(), offsets


def read_vocabulary(tokenizer: FastTokenizer) -> Vocabulary:
    """Derive the table from a `tokenizers` tokenizer. Raises UnsupportedTokenizerError."""
    spec = json.loads(tokenizer.to_str())
    steps = _decoder_steps(spec["decoder"])
    special = {token["id"]: token["content"] for token in spec["added_tokens"] if token["special"]}
    ids = tokenizer.get_vocab(with_added_tokens=True)
    spell = _speller(steps)
    pieces = [b""] * (max(ids.values(), default=0) + 1)
    for token, token_id in ids.items():
        if token_id not in special:
            pieces[token_id] = spell(token)
    strips = any(step["type"] == "Strip" and step["start"] > 0 for step in steps)
    return Vocabulary(tuple(pieces), special, strips or any(step["type"] == "Metaspace" for step in steps))


def _decoder_steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _decoder_steps(part)]


def _speller(steps: list[dict[str, Any]]) -> Callable[[str], bytes]:
    """How a token's name is turned into its bytes."""
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _spell_byte_level
    marks_words = any(step["type"] == "Replace" and step["content"] == " " for step in steps)
    if marks_words or "Metaspace" in kinds:
        return _spell_byte_fallback if "ByteFallback" in kinds else _spell_word_mark
    raise UnsupportedTokenizerError(f"tokens are put together by {sorted(kinds) or 'nothing'}")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's names for the 256 bytes: printable Latin-1 characters stand for themselves, the others take
    the code points from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    named = {chr(byte): byte for byte in printable}
    return named | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF_NAME = _byte_level_alphabet()


def _spell_byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_NAME[char] for char in token])
    except KeyError:
        return token.encode()  # an added token with characters outside of the alphabet


def _spell_word_mark(token: str) -> bytes:
    return token.replace(WORD_MARK, " ").encode()


def _spell_byte_fallback(token: str) -> bytes:
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(match[1], 16)]) if match else _spell_word_mark(token)
