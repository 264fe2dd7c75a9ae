from pathlib import Path

import pytest
import torch

from engine.byte_tokenizer import BOS_ID, EOS_ID
from engine.model_runner.sources.errors import BadModel, ModelNotFound
from tests.engine.model_runner.small_models import edit, load, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "small-llama")


def test_dummy_has_the_byte_tokenizer_and_the_preset_shape() -> None:
    loaded = load("dummy:tiny")
    assert loaded.card.tokenizer is None
    assert loaded.card.grammars_problem is not None
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
