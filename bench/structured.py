"""What output that is held to a JSON schema costs a step, at batch 64.

    python -m bench.structured [--batch 64] [--tokenizer FOLDER] [--steps 128]

First the masks alone, on any machine: every row is in a different place of the same schema, and goes on with
a token drawn from those that its mask allows. Then, where there is a GPU, whole decode steps of a dummy
Llama-3.1-8B, free and held to the schema, in turns: there the host computes the masks while the GPU computes
the logits that they are for. Without `--tokenizer` (a folder with a tokenizer.json) the vocabulary is made
up, of the size of Llama 3's. Exit status 1 if a whole step is slowed down by more than the limit.
"""

import argparse
import json
import random
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bench.report import print_rows
from engine.messages import Grammar, GrammarKind, Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.grammar import Grammars

if TYPE_CHECKING:
    from bench.gpu import Rig  # Triton, which it imports, comes with torch's CUDA build only
    from engine.model_runner.cuda_executor import LaunchedStep

LIMIT_SHARE = 0.05
VOCAB_SIZE = 128_256  # Llama 3's
CONTEXT = 1024
ROW_TOKENS = 90
ROUNDS = 5
SETTLING = 8  # steps that are not timed
END = "<end>"
QUOTED_SHARE = 0.005  # of a made-up vocabulary
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "kind": {"enum": ["person", "place", "organisation", "event"]},
        "born": {"type": "string", "format": "date"},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
        "links": {
            "type": "array",
            "maxItems": 6,
            "items": {
                "type": "object",
                "properties": {"to": {"type": "string"}, "weight": {"type": "integer"}},
                "required": ["to", "weight"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["name", "kind", "born", "score", "tags", "links"],
    "additionalProperties": False,
}


def grammar_of(schema: object) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, source=json.dumps(schema))


def with_short_texts(schema: object) -> object:
    """The same with a bound on every text. Masks then depend on the length of each token, and cost more."""
    if isinstance(schema, list):
        return [with_short_texts(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    bound = {"maxLength": 40} if schema == {"type": "string"} else {}
    return {key: with_short_texts(value) for key, value in schema.items()} | bound


def made_up_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Byte-level, with words, numbers and marks of many lengths. As in trained vocabularies, few tokens have
    a quotation mark in them: of Gemma 3's 262,144 it is 833, and a mask costs by their number."""
    rng = random.Random(1)
    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokens |= dict.fromkeys(str(number) for number in range(1000))
    while len(tokens) < size - 1:
        word = "".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 10)))
        word = rng.choice(("", "Ġ", "Ġ", "Ġ(")) + word + rng.choice(("", "", "", ",", "."))
        if rng.random() < QUOTED_SHARE:
            word = rng.choice(('"', 'Ġ"', "")) + word + rng.choice(('"', '":', '",'))
        tokens[word] = None
    vocabulary = {token: token_id for token_id, token in enumerate([*tokens, END])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


@dataclass(frozen=True)
class Case:
    """A batch of decoding rows: free, or held to a grammar; `apart`: in different places of it."""

    name: str
    batch: int
    grammar: Grammar | None
    apart: bool


class TimedGrammars(Grammars):
    """Grammars that note how long each batch of masks took the host."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self.times_ms: list[float] = []

    def next_bits(self, rows: Sequence[StepRow], *, pinned: bool = False) -> torch.Tensor:
        begin_s = time.perf_counter()
        bits = self._grammars.next_bits(rows, pinned=pinned)
        self.times_ms.append((time.perf_counter() - begin_s) * 1e3)
        return bits


@dataclass(frozen=True, slots=True)
class MaskTimes:
    """Milliseconds on the host."""

    first_ms: list[float]  # the first mask of a row
    batch_ms: list[float]  # the masks of a batch, all rows under way


def time_masks(grammars: Grammars, grammar: Grammar, batch: int, num_steps: int) -> MaskTimes:
    """Rows in different places of the grammar; those that are ROW_TOKENS long begin anew."""
    rng = random.Random(2)
    times = MaskTimes([], [])
    rows = [_start(grammars, grammar, slot, times, rng) for slot in range(batch)]
    for slot, row in enumerate(rows):
        for _ in range(slot % ROW_TOKENS):
            _draw_next([row], grammars.next_bits([_step_of(row)]), rng)
    for _ in range(num_steps):
        rows = [
            row if len(row.history) < ROW_TOKENS else _start(grammars, grammar, row.slot, times, rng)
            for row in rows
        ]
        begin_s = time.perf_counter()
        masks = grammars.next_bits([_step_of(row) for row in rows])
        times.batch_ms.append((time.perf_counter() - begin_s) * 1e3)
        _draw_next(rows, masks, rng)
    return times


def _start(grammars: Grammars, grammar: Grammar, slot: int, times: MaskTimes, rng: random.Random) -> Row:
    """A row with its first token."""
    row = Row(slot, Sampling(max_tokens=ROW_TOKENS, grammar=grammar), 0, [])
    begin_s = time.perf_counter()
    masks = grammars.next_bits([_step_of(row)])
    times.first_ms.append((time.perf_counter() - begin_s) * 1e3)
    _draw_next([row], masks, rng)
    return row


def _step_of(row: Row) -> StepRow:
    return StepRow(row, len(row.history), 1, None, sample=True)


def _draw_next(rows: Sequence[Row], masks: torch.Tensor, rng: random.Random) -> None:
    """Let every row go on with one of the tokens that its mask allows."""
    for row, mask in zip(rows, masks.numpy(), strict=True):
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
        row.history.append(int(allowed[rng.randrange(len(allowed))]))


def begun_rows(rig: "Rig", grammars: Grammars, num_steps: int, case: Case) -> list[Row]:
    """Rows of `CONTEXT + 1` tokens, the last of which are already of the answer, if they are `apart`: as many
    as the row's number, so that the rows of a batch are in different places, as requests are that came at
    different times."""
    rng = random.Random(3)
    sampling = Sampling(max_tokens=num_steps, temperature=0.0, grammar=case.grammar)
    rows = []
    for plain in rig.rows(case.batch, CONTEXT + num_steps + 1):
        num_said = plain.slot % ROW_TOKENS if case.apart else 0
        num_prompt = CONTEXT + 1 - num_said
        row = Row(plain.slot, sampling, num_prompt, plain.page_tables, [7] * num_prompt)
        for _ in range(num_said):
            _draw_next([row], grammars.next_bits([_step_of(row)]), rng)
        rows.append(row)
    return rows


def decode_ms(rig: "Rig", grammars: Grammars, num_steps: int, case: Case) -> float:
    """Wall time of a decode step, two in flight, as a runner drives them."""
    rows = begun_rows(rig, grammars, num_steps, case)
    pending: deque[LaunchedStep] = deque()
    times: list[float] = []

    def take() -> None:
        for row, token in zip(rows, pending.popleft().result().tokens, strict=True):
            if token is not None:
                row.history.append(token)
        times.append(time.perf_counter())

    for i in range(num_steps):
        ids = [7] if i == 0 else None
        pending.append(rig.executor.launch([StepRow(row, CONTEXT + i, 1, ids, sample=True) for row in rows]))
        if len(pending) == rig.executor.depth:
            take()
    while pending:
        take()
    return (times[-1] - times[SETTLING]) / (len(times) - 1 - SETTLING) * 1e3


def compare_on_gpu(grammars: Grammars, options: argparse.Namespace) -> bool:
    """Print whole steps, free and held; whether the difference is within the limit for rows that are in
    different places."""
    from bench.gpu import PAGE_TOKENS, compiled_rig, machine
    from engine.model_runner.cuda_executor import StepOptions

    timed = TimedGrammars(grammars)
    pages = 1 + options.batch * -(-(CONTEXT + options.steps + 1) // PAGE_TOKENS)
    rig = compiled_rig(StepOptions(options.batch, 2048, 8192), pages, grammars=timed)
    cases = [
        Case("free", options.batch, None, apart=False),
        Case("rows in different places", options.batch, grammar_of(SCHEMA), apart=True),
        Case("all begun in one step", options.batch, grammar_of(SCHEMA), apart=False),
    ]
    steps_ms: dict[Case, list[float]] = {case: [] for case in cases}
    masks_ms: dict[Case, list[float]] = {case: [] for case in cases}
    for _ in range(ROUNDS):
        for case in cases:
            timed.times_ms = masks_ms[case]
            steps_ms[case].append(decode_ms(rig, grammars, options.steps, case))
    print(
        f"\n{machine()}; Llama-3.1-8B's shape, batch {options.batch}, context {CONTEXT}, median of {ROUNDS}"
    )
    free, *held = cases
    costs = {case: median(steps_ms[case]) / median(steps_ms[free]) - 1 for case in held}
    rows = [
        (case.name, f"{median(steps_ms[free]):.2f}", f"{median(steps_ms[case]):.2f}", f"{costs[case]:.1%}",
         *_spread(masks_ms[case]))
        for case in held
    ]  # fmt: skip
    print_rows(
        ("held to a schema", "free step, ms", "held", "cost", "masks, ms: median", "p90", "worst"), rows
    )
    print(f"limit: {LIMIT_SHARE:.0%}")
    return costs[held[0]] <= LIMIT_SHARE


def _spread(times_ms: Sequence[float]) -> tuple[str, str, str]:
    """Median, 90th percentile and the worst."""
    ordered = sorted(times_ms)
    return f"{median(ordered):.2f}", f"{ordered[int(len(ordered) * 0.9)]:.2f}", f"{ordered[-1]:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64, help="rows in a step (64)")
    parser.add_argument("--steps", type=int, default=128, help="steps timed, in each round (128)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="a vocabulary to use (made up)")
    options = parser.parse_args()
    if options.tokenizer is None:
        tokenizer = made_up_tokenizer(VOCAB_SIZE)
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    grammars = Grammars(tokenizer, max(VOCAB_SIZE, len(tokenizer)), [tokenizer.eos_token_id])
    rows = []
    for name, schema in (("texts of any length", SCHEMA), ("texts bounded", with_short_texts(SCHEMA))):
        times = time_masks(grammars, grammar_of(schema), options.batch, options.steps)
        rows.append(
            (f"{options.batch} masks, {name}", *_spread(times.batch_ms), f"{median(times.first_ms):.2f}")
        )
    print_rows(("host time, ms", "median", "p90", "worst", "first mask of a row"), rows)
    if not torch.cuda.is_available() or len(tokenizer) > VOCAB_SIZE:
        print("\nno GPU here, or a vocabulary larger than the model's: whole steps are not compared")
        return 0
    return 0 if compare_on_gpu(grammars, options) else 1


if __name__ == "__main__":
    sys.exit(main())
