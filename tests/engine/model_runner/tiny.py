"""Tiny random models of every family, and a runner that schedules them at random."""

import random
from dataclasses import dataclass, field

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from engine.memory.page import PageLayout
from engine.messages import Sampling
from engine.model_runner import attention
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.cpu_executor import CpuExecutor
from engine.model_runner.families import layout as layout_of

VOCAB = 131
PAGE_TOKENS = 4
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama-rope-scaling": ("llama", {"rope_parameters": _LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "phi3-window": ("phi3", {"sliding_window": 11, "pad_token_id": 0}),
    "opt": (
        "opt",
        {
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
            "init_std": 0.3,
            "num_key_value_heads": None,
            "head_dim": None,
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "sliding_window": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
            "query_pre_attn_scalar": 12,
        },
    ),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 3, "num_hidden_layers": 4}),
    "mixtral": ("mixtral", _EXPERTS),
    "mixtral-window": ("mixtral", _EXPERTS | {"sliding_window": 8}),
    "qwen3-moe": ("qwen3_moe", _EXPERTS),
    "gpt-oss": ("gpt_oss", _EXPERTS | {"sliding_window": 8, "num_hidden_layers": 4}),
}


def tiny_config(name: str, **changes: object) -> PreTrainedConfig:
    """The config of `FAMILIES[name]`, or of the transformers model type `name`."""
    model_type, special = FAMILIES.get(name, (name, {}))
    return AutoConfig.for_model(model_type, **(_COMMON | special | changes))


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random fp32 model with transformers' own attention."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def generated(model: PreTrainedModel, prompt: list[int], num_new: int) -> list[int]:
    """The tokens that transformers' greedy `generate` adds to `prompt`."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_new, do_sample=False, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def paged(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, set to attend over pages."""
    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


def make_pool(layout: PageLayout, num_pages: int) -> torch.Tensor:
    """A pool in which every unwritten number is NaN."""
    shape = (num_pages, layout.layers_per_page, 2, layout.page_tokens, layout.kv_heads, layout.head_dim)
    return torch.full(shape, torch.nan)


@dataclass
class Context:
    """A prompt and what it sampled, with its page tables."""

    prompt: list[int]
    sampling: Sampling
    slot: int
    tables: list[list[int]]
    output: list[int] = field(default_factory=list)
    computed: int = 0
    row: Row | None = None

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.output

    @property
    def done(self) -> bool:
        return len(self.output) == self.sampling.max_tokens


class Scheduler:
    """Runs contexts in random mixed batches with random chunks on shuffled pages.

    Pages that fall out of a window are given back and overwritten with NaN. With `chunk` None, prompts are
    prefilled at once.
    """

    def __init__(
        self, model: PreTrainedModel, *, num_pages: int = 400, chunk: int | None, seed: int = 0
    ) -> None:
        self.layout = layout_of(model.config, PAGE_TOKENS, torch.float32)
        self.pool = make_pool(self.layout, num_pages)
        self.executor = CpuExecutor(model, self.layout, self.pool, max_batch=16, max_model_len=256)
        self._random = random.Random(seed)
        self._free = list(range(1, num_pages))
        self._random.shuffle(self._free)
        self._chunk = chunk

    def run(self, prompts: list[list[int]], samplings: list[Sampling]) -> list[Context]:
        """Run all to their max_tokens; the contexts, in order."""
        contexts = [
            Context(prompt, sampling, slot, [[] for _ in self.layout.groups])
            for slot, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True))
        ]
        before: list[Context] = []
        while waiting := [context for context in contexts if not context.done]:
            batch = self._random.sample(waiting, self._random.randint(1, len(waiting)))
            steps = [self._step(context, goes_on=context in before) for context in batch]
            result = self.executor.launch(steps).result()
            for context, step, token in zip(batch, steps, result.tokens, strict=True):
                context.computed += step.count
                assert (token is not None) == step.sample
                if token is not None:
                    context.output.append(token)
                    step.row.history.append(token)
            before = [context for context, step in zip(batch, steps, strict=True) if step.sample]
        for context in contexts:
            self._release(context, [len(table) for table in context.tables])
        return contexts

    def _step(self, context: Context, *, goes_on: bool) -> StepRow:
        start = context.computed
        left = len(context.ids) - start
        count = left if self._chunk is None else min(left, self._random.randint(1, self._chunk))
        if not goes_on or context.row is None:
            dead = [self.layout.first_live_page(g, start) for g in range(len(self.layout.groups))]
            self._release(context, dead)
            context.row = Row(
                context.slot, context.sampling, len(context.prompt), context.tables, list(context.ids)
            )
        for table in context.tables:
            while len(table) < self.layout.num_pages(start + count):
                table.append(self._free.pop())
        ids = None if goes_on else context.ids[start : start + count]
        return StepRow(context.row, start, count, ids, sample=count == left)

    def _release(self, context: Context, ends: list[int]) -> None:
        for table, end in zip(context.tables, ends, strict=True):
            for i in range(min(end, len(table))):
                if table[i]:
                    self.pool[table[i]] = torch.nan
                    self._free.append(table[i])
                    table[i] = 0
        self._random.shuffle(self._free)
