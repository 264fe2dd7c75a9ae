"""`dummy:` models: the shape of a real model and random weights. For benchmarks, and where no model is."""

from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from engine.byte_tokenizer import MIN_VOCAB_SIZE
from engine.model_runner.sources.errors import BadModel, ModelNotFound, one_line
from engine.model_runner.sources.folder import read_config
from engine.model_runner.sources.quiet import quiet_transformers

PREFIX = "dummy:"
PRESETS = Path(__file__).parent.parent / "presets"


def dummy_config(name: str) -> PretrainedConfig:
    """The config that `dummy:name` means: a config.json, a folder that has one, or a preset.

    Raises ModelNotFound or BadModel.
    """
    path, preset = Path(name).expanduser(), PRESETS / f"{name}.json"
    if not path.exists() and not preset.is_file():
        presets = ", ".join(sorted(file.stem for file in PRESETS.glob("*.json")))
        raise ModelNotFound(f"{PREFIX}{name}: no such file or folder, and not one of the presets ({presets})")
    config = read_config(path if path.exists() else preset)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # random weights are made in the serving dtype
    vocab_size = config.get_text_config().vocab_size
    if vocab_size < MIN_VOCAB_SIZE:
        raise BadModel(
            f"{PREFIX}{name}: vocab_size is {vocab_size}, the byte tokenizer needs {MIN_VOCAB_SIZE}"
        )
    return config


def random_model(
    config: PretrainedConfig, *, device: torch.device, dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    """A model with random weights, made on the device: nothing passes through the CPU.

    They are what transformers initialises a new model with (matrices normal with the config's
    initializer_range, norms the identity), and the same for the same seed, device type and torch. The
    generators of the process are left as they were. Raises BadModel.
    """
    forked = [device] if device.type == "cuda" else []
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=forked), device:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise BadModel(
            f"no {config.model_type} model can be made of the config: {one_line(error)}"
        ) from error
    return cast(PreTrainedModel, model)
