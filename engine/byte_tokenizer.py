"""A tokenizer that needs no files: one token per byte. It serves models whose weights are random.

Ids 0 to 255 are the bytes themselves, then come BOS, EOS and PAD. A model may have a larger vocabulary (a
dummy of a real model keeps its shape); its further ids stand for printable ASCII characters in turn, so that
whatever random weights sample can be seen in a stream. Those ids are never produced by `encode`.
"""

from collections.abc import Iterable

NUM_BYTES = 256
BOS_ID, EOS_ID, PAD_ID = 256, 257, 258
MIN_VOCAB_SIZE = 259

_FIRST_PRINTABLE, _NUM_PRINTABLE = 0x20, 95


class ByteTokenizer:
    """Text to bytes and back, for a vocabulary of `vocab_size` >= 259 ids."""

    bos_token_id = BOS_ID
    eos_token_id = EOS_ID
    pad_token_id = PAD_ID

    def __init__(self, vocab_size: int = MIN_VOCAB_SIZE) -> None:
        if vocab_size < MIN_VOCAB_SIZE:
            raise ValueError(
                f"the byte tokenizer needs {MIN_VOCAB_SIZE} ids, the vocabulary has {vocab_size}"
            )
        self.vocab_size = vocab_size

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        """The UTF-8 bytes of `text`, after BOS if asked. Never adds EOS."""
        ids = list(text.encode())
        return [BOS_ID, *ids] if add_bos else ids

    def token_bytes(self, token_id: int) -> bytes:
        """What one id adds to the text; nothing for BOS, EOS and PAD.

        Raises ValueError for an id outside of the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is not in 0..{self.vocab_size - 1}")
        if token_id < NUM_BYTES:
            return bytes((token_id,))
        if token_id < MIN_VOCAB_SIZE:
            return b""
        return bytes((_FIRST_PRINTABLE + (token_id - MIN_VOCAB_SIZE) % _NUM_PRINTABLE,))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that `ids` stand for; they need not be valid UTF-8."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, with U+FFFD where the bytes are not UTF-8."""
        return self.decode_bytes(ids).decode(errors="replace")
