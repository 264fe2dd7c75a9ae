"""Tokenizers of the models that are served.

A folder's tokenizer.json is read with `tokenizers` directly: importing transformers' AutoTokenizer brings
in torch, seconds of start and hundreds of MiB in every api process. Only a folder without that file (an older
sentencepiece or GPT-2 one) goes through AutoTokenizer, which converts it.
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer as FastTokenizer

from api.chat_template import ChatTemplate, read_chat_template, special_tokens
from api.detokenize import Vocabulary, read_vocabulary
from engine.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, ByteTokenizer
from engine.messages import ModelCard

logger = logging.getLogger(__name__)

INLINE_CHARS = 2048  # shorter texts are encoded faster than a thread is reached


class Encoder(Protocol):
    """Text to token ids, nothing added."""

    def __call__(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class TextModel:
    """Everything about a model's text: both directions and the chat template."""

    vocabulary: Vocabulary
    chat_template: ChatTemplate | None
    prefix: tuple[int, ...]  # what a prompt begins with: a BOS, or nothing
    encoder: Encoder

    def encode(self, text: str, *, add_prefix: bool) -> list[int]:
        """Token ids of a text. With `add_prefix` it begins with one BOS, even if the text spells one too."""
        ids = self.encoder(text)
        if not add_prefix or tuple(ids[: len(self.prefix)]) == self.prefix:
            return ids
        return [*self.prefix, *ids]

    async def encode_all(self, texts: list[str], *, add_prefix: bool) -> list[list[int]]:
        """`encode` for several texts, in a thread if they are long."""

        def encode() -> list[list[int]]:
            return [self.encode(text, add_prefix=add_prefix) for text in texts]

        return encode() if sum(map(len, texts)) < INLINE_CHARS else await asyncio.to_thread(encode)


class TextModels:
    """Loads each model's tokenizer once, in a thread."""

    def __init__(self) -> None:
        self._loads: dict[tuple[str | None, int], asyncio.Task[TextModel]] = {}

    async def get(self, card: ModelCard) -> TextModel:
        """The text side of a model. Raises OSError, UnsupportedTokenizerError."""
        key = (card.tokenizer, card.vocab_size)
        load = self._loads.get(key)
        if load is None or (load.done() and load.exception() is not None):
            load = asyncio.create_task(asyncio.to_thread(load_text_model, card))
            self._loads[key] = load
        return await asyncio.shield(load)


def load_text_model(card: ModelCard) -> TextModel:
    """Read the tokenizer that a model card names. Raises OSError, UnsupportedTokenizerError."""
    model = (
        _byte_text_model(card.vocab_size)
        if card.tokenizer is None
        else _folder_text_model(Path(card.tokenizer))
    )
    if model.chat_template is None:
        logger.info("%s is a base model, without a chat template: chat is a plain transcript", card.name)
    return model


def _folder_text_model(folder: Path) -> TextModel:
    fast = _read_fast_tokenizer(folder)
    fast.no_truncation()
    fast.no_padding()
    config = _read_json(folder / "tokenizer_config.json")

    def encode(text: str) -> list[int]:
        ids: list[int] = fast.encode(text, add_special_tokens=False).ids
        return ids

    return TextModel(
        read_vocabulary(fast), read_chat_template(folder, config), _prompt_prefix(fast, config), encode
    )


def _byte_text_model(vocab_size: int) -> TextModel:
    tokenizer = ByteTokenizer(vocab_size)
    pieces = tuple(tokenizer.token_bytes(token_id) for token_id in range(vocab_size))
    names = {BOS_ID: "<bos>", EOS_ID: "<eos>", PAD_ID: "<pad>"}
    vocabulary = Vocabulary(pieces, names, strips_first_space=False)
    return TextModel(vocabulary, None, (BOS_ID,), tokenizer.encode)


def _read_fast_tokenizer(folder: Path) -> FastTokenizer:
    file = folder / "tokenizer.json"
    if file.exists():
        return FastTokenizer.from_buffer(file.read_bytes())
    from transformers import AutoTokenizer

    converted: FastTokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    return converted


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return table


def _prompt_prefix(fast: FastTokenizer, config: dict[str, Any]) -> tuple[int, ...]:
    """What the tokenizer puts before a text: what its post-processor adds, unless `add_bos_token` says."""
    added = tuple(fast.encode("", add_special_tokens=True).ids)
    wants_bos = config.get("add_bos_token")
    if wants_bos is None:
        return added[:1]
    bos = fast.token_to_id(special_tokens(config).get("bos_token", ""))
    return (bos,) if wants_bos and bos is not None else ()
