"""A small Llama in the files that a model comes in, and how the tests of loading load it."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from engine.model_runner.loading import LoadedModel, load_model

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 7,
    "eos_token_id": 8,
}


def write_folder(path: Path) -> Path:
    """A small Llama as transformers saves it, with a tokenizer."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return path


def load(source: str | Path | None, cache: Path | None = None, **options: Any) -> LoadedModel:
    """`load_model` on the CPU."""
    name = None if source is None else str(source)
    return load_model(name, device="cpu", cache_dir=None if cache is None else str(cache), **options)


def edit(file: Path, **changes: Any) -> None:
    """Change top-level values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
