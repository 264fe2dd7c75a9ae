import pytest

from engine.byte_tokenizer import BOS_ID, EOS_ID, MIN_VOCAB_SIZE, PAD_ID, ByteTokenizer


@pytest.mark.parametrize("text", ["", "plain", "naïve 😀 漢字", "\x00\n\t"])
def test_text_comes_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_one_id_per_byte_and_bos_only_when_asked() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é") == [0xC3, 0xA9]
    assert tokenizer.encode("é", add_bos=True) == [BOS_ID, 0xC3, 0xA9]


def test_special_ids_add_no_text() -> None:
    assert ByteTokenizer().decode_bytes([BOS_ID, 65, PAD_ID, 66, EOS_ID]) == b"AB"


def test_half_a_character_is_replaced_in_text_and_kept_in_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode_bytes([0xC3]) == b"\xc3"
    assert tokenizer.decode([0xC3]) == "\ufffd"


def test_every_further_id_is_a_printable_character() -> None:
    tokenizer = ByteTokenizer(128_256)
    further = tokenizer.decode(range(MIN_VOCAB_SIZE, 128_256))
    assert len(further) == 128_256 - MIN_VOCAB_SIZE
    assert further.isascii()
    assert further.isprintable()


def test_ids_outside_of_the_vocabulary_are_refused() -> None:
    tokenizer = ByteTokenizer(300)
    tokenizer.token_bytes(299)
    for token_id in (-1, 300):
        with pytest.raises(ValueError, match=r"not in 0\.\.299"):
            tokenizer.token_bytes(token_id)


def test_a_vocabulary_too_small_for_all_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 259 ids, the vocabulary has 258"):
        ByteTokenizer(258)
