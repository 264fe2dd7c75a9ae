"""The likeliest token of every row, with all of a GPU at work on few rows."""

import math

import torch

_PARTS = 256


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """`logits.argmax(dim=-1)` of [rows, vocab], the first of equals.

    torch gives a row to one block of threads, which takes 37 us for 128,256 logits; so the vocabulary is cut
    into parts, and the winners of the parts compared.
    """
    rows, vocab = logits.shape
    parts = math.gcd(vocab, _PARTS)
    tops, places = logits.view(rows, parts, vocab // parts).max(dim=-1)
    part = tops.argmax(dim=-1, keepdim=True)
    return (part * (vocab // parts) + places.gather(1, part)).squeeze(1)
