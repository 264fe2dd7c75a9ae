import queue
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.messages import Grammar, GrammarKind, ModelCard, Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.grammar import BadGrammar
from engine.model_runner.pending_grammars import PendingGrammars

CARD = ModelCard(
    name="m",
    architecture="a",
    source="s",
    tokenizer=None,
    vocab_size=257,
    max_model_len=100,
    bos_token_id=None,
    eos_token_ids=(256,),
    loaded_s=0,
)


def regex(source: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, source=source)


def test_who_needs_them_waits_for_them(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    tokenizer.save_pretrained(tmp_path)
    problems: list[str] = []
    grammars = PendingGrammars(msgspec.structs.replace(CARD, tokenizer=str(tmp_path)), problems.append)
    grammars.check(regex("a"))
    with pytest.raises(BadGrammar):
        grammars.check(regex("("))
    row = Row(0, Sampling(max_tokens=4, grammar=regex("a")), num_prompt=1, page_tables=[[1]], history=[5])
    bits = grammars.next_bits([StepRow(row, 0, 1, [5], sample=True)])[0].tolist()
    assert [i for i in range(257) if bits[i // 32] >> (i % 32) & 1] == [alphabet.index("a")]
    assert problems == []


def test_a_tokenizer_without_grammars_fails_the_prompts_that_want_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(
        "engine.model_runner.pending_grammars.AutoTokenizer.from_pretrained", lambda path: object()
    )
    with pytest.raises(BadGrammar, match="has no grammars: it is a object"):
        PendingGrammars(CARD, told.put).check(regex("a"))
    assert told.get(timeout=60) == "this model's tokenizer has no grammars: it is a object"
