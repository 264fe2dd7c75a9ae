"""Prompts of stated lengths, the same for the same seed, made before the clock starts.

A prompt is a list of token ids, which every server counts alike, or text of one common word per token, for
endpoints that take no ids. Rows that name blocks by hash id get equal tokens for equal ids.
"""

import random
from dataclasses import dataclass

from loadgen.traces import BLOCK_TOKENS, CHARS_PER_TOKEN, TraceRow

# Short words that common vocabularies hold whole, each with the space before it.
_WORD_LIST = """
    about after again all also and any are as at back because been before being between both but by came can
    come could day did do down each end even every far few find first for from get give good great had has
    have he her here him his house how if in into is it its just keep know last left life like line little
    long look made make man many may me men might more most much must my name never new next night no not
    now of off old on once one only open or other our out over own part people place point put right road
    said same saw say see set she side small so some soon such take tell than that the their them then there
    these they thing think this those three time to told too took two under until up upon us use very was
    water way we well went were what when where which while who why will with word work world would year you
"""
_WORDS = _WORD_LIST.split()

Prompt = list[int] | str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids drawn from `low` up to and without `high`. The default suits any vocabulary of 256 or more."""

    low: int = 32
    high: int = 256

    def draw(self, source: random.Random, count: int) -> list[int]:
        low, width, uniform = self.low, self.high - self.low, source.random
        return [low + int(uniform() * width) for _ in range(count)]


@dataclass(slots=True)
class PromptMaker:
    """Makes the prompts of one run; `vocabulary` None asks for text."""

    seed: int
    vocabulary: TokenIds | None

    def make(self, index: int, row: TraceRow) -> Prompt:
        """The prompt of row `index`, `row.input_tokens` long: exactly so as ids, about so as text."""
        if row.text is not None:
            return row.text[: int(row.input_tokens * CHARS_PER_TOKEN)]
        draws = self.vocabulary or TokenIds(0, len(_WORDS))
        ids: list[int] = []
        for hash_id in row.hash_ids:
            wanted = min(BLOCK_TOKENS, row.input_tokens - len(ids))
            ids += draws.draw(random.Random(f"block {self.seed} {hash_id}"), wanted)
        ids += draws.draw(random.Random(f"prompt {self.seed} {index}"), row.input_tokens - len(ids))
        return ids if self.vocabulary else " ".join(_WORDS[word] for word in ids)
