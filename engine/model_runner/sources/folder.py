"""A Hugging Face folder: config.json, safetensors, and the files of a tokenizer."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from engine.model_runner.sources.errors import BadModel, one_line
from engine.model_runner.sources.quiet import quiet_transformers

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def read_config(path: Path) -> PretrainedConfig:
    """The config at `path`, a folder or a file. Raises BadModel."""
    file = path / CONFIG if path.is_dir() else path
    values = read_json(file)
    model_type = values.get("model_type")
    if not isinstance(model_type, str):
        raise BadModel(f"{file}: no model_type, so not the config of a model")
    try:
        with quiet_transformers():
            return cast(PretrainedConfig, AutoConfig.for_model(**values))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadModel(f"{file}: not a usable config for a {model_type} model: {one_line(error)}") from error


def load_folder(
    folder: Path, config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Load the weights of `folder`, each straight to the device. Raises BadModel.

    A weight that the model needs and the files lack, or have in another shape, is an error; a weight that
    the model does not need is not.
    """
    check_files(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise BadModel(f"{folder}: its weights are quantised, which is not supported for this format")
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map=None if device.type == "cpu" else {"": device},
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadModel(f"{folder}: weights cannot be loaded: {one_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadModel(f"{folder}: {len(missing)} weights are missing, such as {missing[0]}")
    return cast(PreTrainedModel, model)


def check_files(folder: Path) -> None:
    """Look for the weights and the tokenizer before anything slow begins. Raises BadModel."""
    if (folder / INDEX).is_file():
        shards = set(read_json(folder / INDEX).get("weight_map", {}).values())
        absent = sorted(shard for shard in shards if not (folder / shard).is_file())
        if absent:
            raise BadModel(
                f"{folder}: {len(absent)} of {len(shards)} weight files are missing, as {absent[0]}"
            )
    elif not (folder / "model.safetensors").is_file():
        raise BadModel(f"{folder}: no model.safetensors and no {INDEX} (weights must be safetensors)")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise BadModel(f"{folder}: no tokenizer (none of {', '.join(TOKENIZER_FILES)})")


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of `folder` knows how to write a conversation."""
    if (folder / "chat_template.jinja").is_file():
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("chat_template"))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadModel."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadModel(f"{file.parent}: no {file.name}") from None
    except OSError as error:
        raise BadModel(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadModel(f"{file}: not valid JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise BadModel(f"{file}: not a JSON object")
    return values
