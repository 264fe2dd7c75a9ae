"""From what the configuration names to a model on its device."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from engine.byte_tokenizer import BOS_ID, EOS_ID
from engine.messages import NO_GRAMMARS, ModelCard
from engine.model_runner.families import UnsupportedModel, kv_windows, pin_rope, text_config
from engine.model_runner.sources import embedded, gguf
from engine.model_runner.sources.cache import cache_root
from engine.model_runner.sources.dummy import PREFIX, dummy_config, random_model
from engine.model_runner.sources.errors import BadModel, ModelNotFound
from engine.model_runner.sources.folder import has_chat_template, load_folder, read_config, read_json
from engine.model_runner.sources.progress import OnProgress, ignore_progress

SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode, all of it on its device, and what is to be known about it.

    Its attention is transformers' eager one until `use_attention` names another.
    """

    model: PreTrainedModel
    config: PretrainedConfig
    card: ModelCard

    def use_attention(self, name: str) -> None:
        """Have all layers call the attention function that is registered with transformers as `name`."""
        self.model.set_attn_implementation(name)


def load_model(
    source: str | None,
    *,
    device: str,
    dtype: str | None = None,
    max_model_len: int | None = None,
    cache_dir: str | None = None,
    served_name: str | None = None,
    seed: int = 0,
    on_progress: OnProgress = ignore_progress,
) -> LoadedModel:
    """Load a model: a Hugging Face folder, a GGUF file, `dummy:` and a config or preset, or None, the
    embedded model. `dtype` None or "auto" is bfloat16 on GPUs and float32, which is exact, on a CPU.

    The first load of a GGUF file or of the embedded model converts it into a folder under `cache_dir`.
    Raises ModelNotFound or BadModel, whose message is one line. Never uses the network.
    """
    place = torch.device(device)
    precision = resolve_dtype(dtype, place)
    if source is not None and source.startswith(PREFIX):
        config = dummy_config(source.removeprefix(PREFIX))
        length = _check(config, max_model_len, source)
        on_progress("making random weights", None)
        model = random_model(config, device=place, dtype=precision, seed=seed)
        folder = None
    else:
        folder = resolve_folder(source, cache_root(cache_dir), on_progress)
        config = read_config(folder)
        length = _check(config, max_model_len, source or embedded.NAME)
        on_progress("loading weights", None)
        model = load_folder(folder, config, device=place, dtype=precision)
    model.eval().requires_grad_(False)
    pin_rope(model, model.config, length)
    card = make_card(
        model.config, folder, source=source, served_name=served_name, max_model_len=length, dtype=precision
    )
    return LoadedModel(model, model.config, card)


def resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The dtype of the weights and of K and V."""
    if dtype is None or dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise BadModel(f"dtype {dtype!r} is not one of auto, {', '.join(known)}")
    return known[dtype]


def resolve_folder(source: str | None, cache: Path, on_progress: OnProgress) -> Path:
    """The Hugging Face folder that `source` is, or was converted into. Raises ModelNotFound or BadModel."""
    if source is None:
        return embedded.converted(cache, on_progress)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not path.exists():
        raise ModelNotFound(f"{source}: no such file or folder")
    try:
        if gguf.is_gguf(path):
            return gguf.converted(path, cache, on_progress)
    except OSError as error:
        raise BadModel(f"{source}: cannot be read: {error.strerror}") from error
    raise BadModel(f"{source}: neither a folder with a config.json nor a GGUF file")


def make_card(
    config: PretrainedConfig,
    folder: Path | None,
    *,
    source: str | None,
    served_name: str | None,
    max_model_len: int,
    dtype: torch.dtype,
) -> ModelCard:
    """What the api needs to know. `folder` is None for a dummy, which has the byte tokenizer's tokens."""
    generation = _generation_config(folder) if folder is not None else {}
    text = text_config(config)
    bos = _token_ids(generation, config, "bos_token_id")[:1] if folder is not None else (BOS_ID,)
    eos = _token_ids(generation, config, "eos_token_id") if folder is not None else (EOS_ID,)
    converted_here = folder is not None and (source is None or not Path(source).expanduser().is_dir())
    return ModelCard(
        name=served_name or source or embedded.NAME,
        architecture=(config.architectures or [config.model_type])[0],
        source=source or f"{embedded.NAME}, a base model (package {embedded.PACKAGE})",
        tokenizer=None if folder is None else str(folder),
        vocab_size=text.vocab_size,
        max_model_len=max_model_len,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos,
        loaded_s=int(time.time()),
        sampling_defaults={
            key: float(generation[key]) for key in SAMPLING_KEYS if generation.get(key) is not None
        },
        dtype=str(dtype).removeprefix("torch."),
        is_chat=folder is not None and has_chat_template(folder),
        licence_notice=None if folder is None else embedded.licence_notice(folder),
        cached_at=str(folder) if converted_here else None,
        grammars_problem=f"{NO_GRAMMARS}: it is the built-in one, of bytes" if folder is None else None,
    )


def _check(config: PretrainedConfig, wished_len: int | None, what: str) -> int:
    """Refuse what cannot be served before the weights are read; returns the maximum model length."""
    try:
        kv_windows(config)
    except UnsupportedModel as error:
        raise BadModel(f"{what}: {error}") from error
    limit: int | None = getattr(text_config(config), "max_position_embeddings", None)
    if limit is None and wished_len is None:
        raise BadModel(f"{what}: its config has no max_position_embeddings, so max_model_len must be set")
    if limit is not None and wished_len is not None and wished_len > limit:
        raise BadModel(f"{what}: max_model_len is {wished_len}, but the model has only {limit} positions")
    length = limit if wished_len is None else wished_len
    assert length is not None
    return length


def _generation_config(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    return read_json(file) if file.is_file() else {}


def _token_ids(generation: dict[str, Any], config: PretrainedConfig, key: str) -> tuple[int, ...]:
    """The ids under `key` in both configs, each an int or a list; without repeats, generation's first."""
    found: dict[int, None] = {}
    for value in (generation.get(key), getattr(text_config(config), key, None), getattr(config, key, None)):
        ids = value if isinstance(value, list | tuple) else () if value is None else (value,)
        found.update(dict.fromkeys(ids))
    return tuple(found)
