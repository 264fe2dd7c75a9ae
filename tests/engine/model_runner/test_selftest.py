import pytest
import torch
from transformers import PreTrainedModel

from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.families import layout
from engine.model_runner.selftest import SelfTestFailed, self_test, self_test_scratch
from tests.engine.model_runner.tiny import FAMILIES, PAGE_TOKENS, VOCAB, paged, tiny_config, tiny_model


def run(model: PreTrainedModel, family: str) -> None:
    scratch = self_test_scratch(layout(model.config, PAGE_TOKENS, model.dtype))
    pool = scratch.pool(model.dtype, torch.device("cpu"))
    executor = CpuExecutor(model, scratch.layout, pool, max_batch=2, max_model_len=256)
    self_test(executor, scratch, family=family, vocab_size=VOCAB, dtype=model.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes(family: str, dtype: torch.dtype) -> None:
    run(paged(tiny_model(tiny_config(family, initializer_range=0.1)).to(dtype)), family)


def test_attention_that_bypasses_the_pages_is_found() -> None:
    with pytest.raises(SelfTestFailed, match="llama: token 0 has log-probability"):
        run(tiny_model(tiny_config("llama")), "llama")


def test_answers_that_are_no_numbers_are_found() -> None:
    model = paged(tiny_model(tiny_config("llama")))
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(SelfTestFailed, match=r"llama: .* not finite"):
        run(model, "llama")
