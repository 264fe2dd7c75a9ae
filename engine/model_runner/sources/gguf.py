"""A GGUF file, converted once into a Hugging Face folder of bfloat16 weights.

Most of the time of a conversion goes into reading the file's metadata, where the vocabulary is; transformers
reads it for the config, for the tokenizer and for the weights.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from engine.model_runner.sources.cache import cached_folder
from engine.model_runner.sources.errors import BadModel, one_line
from engine.model_runner.sources.progress import OnProgress
from engine.model_runner.sources.quiet import quiet_transformers

MAGIC = b"GGUF"
CONVERSION = 1  # counted up when a conversion writes something else, so that old folders are not used

_NAMED_TOKENIZERS = frozenset({"gemma2", "gemma3_text", "qwen2", "qwen3", "qwen3_moe"})
"""Model types with one kind of tokenizer. To name it spares transformers from reading the config for it."""


def is_gguf(file: Path) -> bool:
    """Whether the file begins as a GGUF file does. Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def converted(file: Path, cache: Path, on_progress: OnProgress) -> Path:
    """The folder in `cache` that holds what is in `file`, converted now if it was not before.

    A file that was changed (its size or time) is converted again. Raises BadModel.
    """
    stat = file.stat()
    identity = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    key = f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}-v{CONVERSION}"
    return cached_folder(cache, key, lambda folder: convert(file, folder, on_progress), on_progress)


def convert(file: Path, folder: Path, on_progress: OnProgress) -> None:
    """Write the model and the tokenizer of `file` into `folder`, which exists. Raises BadModel, OSError."""
    with quiet_transformers():
        on_progress(f"converting {file.name}, once: config", 0.0)
        with _file_to_blame(file):
            config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        on_progress(f"converting {file.name}, once: tokenizer", 0.3)
        with _file_to_blame(file):
            tokenizer = _read_tokenizer(file, config)
        tokenizer.save_pretrained(folder)
        on_progress(f"converting {file.name}, once: weights", 0.5)
        with _file_to_blame(file):
            model = _read_model(file, config)
        on_progress(f"converting {file.name}, once: writing", 0.95)
        model.save_pretrained(folder)
    on_progress(f"converting {file.name}, once: done", 1.0)


@contextmanager
def _file_to_blame(file: Path) -> Iterator[None]:
    """Turn what goes wrong while `file` is read into a BadModel. The readers check little of a damaged or
    unusual file and raise whatever comes of it, tokenizers even a plain Exception; so all is caught."""
    try:
        yield
    except BadModel:
        raise
    except Exception as error:
        raise BadModel(f"{file}: not a usable GGUF file: {one_line(error)}") from error


def _read_tokenizer(file: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    known = {"tokenizer_type": config.model_type} if config.model_type in _NAMED_TOKENIZERS else {}
    return cast(
        PreTrainedTokenizerBase,
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True, **known),
    )


def _read_model(file: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model with its weights dequantised to bfloat16 on the CPU; every weight must be in the file."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it tells of the GGUF file, not of the folder that is written
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with redirect_stderr(io.StringIO()):  # it draws a progress bar that cannot be turned off
        weights = load_gguf_checkpoint(
            os.fspath(file), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
        )["tensors"]
    missing = model.load_state_dict(weights, strict=False, assign=True).missing_keys
    model.tie_weights()
    absent = [name for name, weight in model.named_parameters() if weight.is_meta]
    if absent:
        raise BadModel(f"{file}: {len(missing)} weights are missing, such as {absent[0]}")
    return model
