import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from gguf import GGUFWriter
from transformers import Qwen3Config, Qwen3ForCausalLM

from engine.model_runner.sources.errors import BadModel
from tests.engine.model_runner.small_models import SHAPE, load

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
    writer.add_token_list(["w", *(str(i) for i in range(297)), "w1", "w2"])
    writer.add_token_merges(["w 1", "w 2"])
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
    assert msgspec.structs.replace(again.card, loaded_s=loaded.card.loaded_s) == loaded.card


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
    assert f"{file}: not a usable GGUF file" in str(error.value)


def test_gguf_without_a_weight(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    write_gguf(file, leave_out="blk.1.ffn_up")
    with pytest.raises(BadModel, match=r"1 weights are missing, such as model\.layers\.1\.mlp\.up_proj"):
        load(file, tmp_path / "cache")
