"""Loading a folder, and one clear line for every kind of mistake. Other sources: tests in `sources`."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.model_runner.sources.errors import BadModel, ModelNotFound
from tests.engine.model_runner.small_models import edit, load, write_folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("loading a model must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "small-llama")


def one_line_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_folder_gives_the_same_logits_as_transformers(folder: Path) -> None:
    loaded = load(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.arange(20)[None]
    assert torch.equal(loaded.model(ids).logits, reference(ids).logits)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())


def test_card_of_a_folder(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[9, 8], temperature=0.6, top_k=40, top_p=None)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    before_s = int(time.time())
    card = load(folder, served_name="small").card
    assert before_s <= card.loaded_s <= time.time()
    assert (card.name, card.architecture, card.source) == ("small", "LlamaForCausalLM", str(folder))
    assert card.tokenizer == str(folder)
    assert (card.vocab_size, card.max_model_len, card.dtype) == (300, 128, "float32")
    assert (card.bos_token_id, card.eos_token_ids) == (7, (9, 8))
    assert card.sampling_defaults == {"temperature": 0.6, "top_k": 40.0}
    assert card.is_chat
    assert card.grammars_problem is None
    assert card.cached_at is None


def test_a_folder_without_generation_config_or_template(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    card = load(folder).card
    assert (card.bos_token_id, card.eos_token_ids, card.sampling_defaults) == (7, (8,), {})
    assert not card.is_chat


@pytest.mark.parametrize(
    ("asked", "got"),
    [(None, "float32"), ("auto", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")],
)
def test_dtype(folder: Path, asked: str | None, got: str) -> None:
    loaded = load(folder, dtype=asked)
    assert loaded.card.dtype == got
    assert loaded.model.dtype == getattr(torch, got)


def test_attention_is_swapped_for_all_layers(folder: Path) -> None:
    loaded = load(folder)
    assert loaded.config._attn_implementation == "eager"
    loaded.use_attention("sdpa")
    assert loaded.config._attn_implementation == "sdpa"


def test_max_model_len_may_only_be_lowered(folder: Path) -> None:
    assert load(folder, max_model_len=64).card.max_model_len == 64
    with pytest.raises(BadModel) as error:
        load(folder, max_model_len=129)
    assert "max_model_len is 129, but the model has only 128 positions" in one_line_of(error)


def break_nothing_there(folder: Path) -> Path:
    return folder / "absent"


def break_config_missing(folder: Path) -> Path:
    (folder / "config.json").unlink()
    return folder


def break_config_syntax(folder: Path) -> Path:
    (folder / "config.json").write_text("{")
    return folder


def break_config_without_type(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


def break_unknown_type(folder: Path) -> Path:
    edit(folder / "config.json", model_type="never-heard-of")
    return folder


def break_refused_family(folder: Path) -> Path:
    edit(folder / "config.json", model_type="bloom")
    return folder


def break_quantised(folder: Path) -> Path:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    return folder


def break_no_weights(folder: Path) -> Path:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def break_no_tokenizer(folder: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    return folder


def break_truncated(folder: Path) -> Path:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def break_missing_tensor(folder: Path) -> Path:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def break_shape(folder: Path) -> Path:
    edit(folder / "config.json", intermediate_size=72)
    return folder


def break_missing_shard(folder: Path) -> Path:
    shards = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    return folder


def break_not_a_model(folder: Path) -> Path:
    return folder / "tokenizer.json"


def break_gguf(folder: Path) -> Path:
    file = folder / "cut.gguf"
    file.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 16)
    return file


@pytest.mark.parametrize(
    ("damage", "kind", "says"),
    [
        (break_nothing_there, ModelNotFound, "no such file or folder"),
        (break_config_missing, BadModel, "no config.json"),
        (break_config_syntax, BadModel, "config.json: not valid JSON"),
        (break_config_without_type, BadModel, "no model_type"),
        (break_unknown_type, BadModel, "never-heard-of"),
        (break_refused_family, BadModel, "bloom is not supported"),
        (break_quantised, BadModel, "quantised"),
        (break_no_weights, BadModel, "no model.safetensors"),
        (break_no_tokenizer, BadModel, "no tokenizer"),
        (break_truncated, BadModel, "weights cannot be loaded"),
        (break_missing_tensor, BadModel, "1 weights are missing, such as model.norm.weight"),
        (break_shape, BadModel, "weights cannot be loaded"),
        (break_missing_shard, BadModel, "model-00002-of-00002.safetensors"),
        (break_not_a_model, BadModel, "neither a folder with a config.json nor a GGUF file"),
        (break_gguf, BadModel, "not a usable GGUF file"),
    ],
)
def test_mistakes_are_named_in_one_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Path], kind: type[Exception], says: str
) -> None:
    source = damage(folder)
    with pytest.raises(kind) as error:
        load(source, tmp_path / "cache")
    message = one_line_of(error)
    assert says in message
    assert str(source) in message
