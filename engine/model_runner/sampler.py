"""Choosing tokens for a whole batch, on any device.

Everything per row is a tensor and on a GPU no shape depends on data, so these functions may be captured in
a CUDA graph. Rows are treated independently: what a row samples does not depend on its neighbours, not even
by the order in which a device adds up, which follows the shape of the batch: weights are added up as
integers. The order is: penalties, bias and masks on the raw logits, temperature, top-k, top-p, min-p, then
a draw by the inverse of the cumulative distribution in vocabulary order. Log-probabilities are of the raw
logits.
"""

from dataclasses import dataclass

import torch

_UNIFORM_BITS = 32  # fits float64 with room to spare, so that a product with a total never rounds up to it
_BLOCK_TOKENS = 512
_UNITS = 2.0**40  # of which a weight has at most 1: sums over a vocabulary fit int64
MAX_SHORT_TOP_K = 1024  # up to here the k largest are found without sorting the vocabulary


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties on tokens seen, for `rows` `[m]` of the batch.

    `output_counts` `[m, vocab]` counts each token in the output so far; `seen` `[m, vocab]` says whether it
    is in the prompt or the output. The strengths are `[m]`.
    """

    rows: torch.Tensor
    output_counts: torch.Tensor
    seen: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    repetition: torch.Tensor


@dataclass(frozen=True, slots=True)
class Truncation:
    """Cut the tail of the distribution of `rows` `[m]`; `[m]` each, as in `messages.Sampling`.

    With `is_short`, every row has 0 < top_k <= MAX_SHORT_TOP_K.
    """

    rows: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    is_short: bool


@dataclass(frozen=True, slots=True)
class Draw:
    """How rows sample: `temperature` float32 `[n]` (0: greedy), `seeds` and `positions` int64 `[n]`."""

    temperature: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    truncations: tuple[Truncation, ...] = ()


def penalize(logits: torch.Tensor, penalties: Penalties) -> None:
    """Apply penalties to `logits` `[n, vocab]` in place.

    Repetition divides positive logits of tokens seen and multiplies negative ones; frequency is subtracted
    once per occurrence in the output, presence once if there is any.
    """
    part = logits.index_select(0, penalties.rows)
    strength = penalties.repetition[:, None]
    repeated = torch.where(part > 0, part / strength, part * strength)
    part = torch.where(penalties.seen, repeated, part)
    part -= penalties.frequency[:, None] * penalties.output_counts
    part -= penalties.presence[:, None] * (penalties.output_counts > 0)
    logits.index_copy_(0, penalties.rows, part)


def mask_by_bits(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """Keep in `rows` `[m]` only the tokens whose bit is set: int32 `[m, ceil(vocab / 32)]`, lowest first."""
    shifts = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).bool().flatten(1)[:, : logits.shape[1]]
    part = logits.index_select(0, rows).masked_fill(~allowed, -torch.inf)
    logits.index_copy_(0, rows, part)


def uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One float64 in [0, 1) for each pair of int64: a counter put through splitmix64's 64-bit finalizer."""
    bits = _mix(_mix(seeds) + positions * _GOLDEN)
    return _shift_right(bits, 64 - _UNIFORM_BITS).double() * 2.0**-_UNIFORM_BITS


def sample(logits: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Token ids int64 `[n]` for float32 `logits` `[n, vocab]`."""
    is_greedy = draw.temperature == 0
    scaled = logits - logits.amax(dim=-1, keepdim=True)  # first: no temperature is too low for what is left
    scaled.div_(torch.where(is_greedy, 1.0, draw.temperature)[:, None])
    for truncation in draw.truncations:
        truncate(scaled, truncation)
    drawn = draw_by_weight(scaled.exp_(), uniforms(draw.seeds, draw.positions))
    return torch.where(is_greedy, logits.argmax(dim=-1), drawn)


def draw_by_weight(weights: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """The first token of each row at which the weights so far exceed this fraction of their sum.

    `weights` is `[n, vocab]`, from 0 to 1; `fractions` `[n]` are in [0, 1). First the block of the
    vocabulary is found, then the token in it, which spares running sums over a whole vocabulary. A row of
    NaN gives some token of the vocabulary: it must not bring down its neighbours.
    """
    vocab = weights.shape[1]
    num_whole = vocab // _BLOCK_TOKENS
    blocks = weights[:, : num_whole * _BLOCK_TOKENS].view(weights.shape[0], num_whole, _BLOCK_TOKENS)
    # So few numbers a sum, of so many sums, a device adds up in one way.
    whole = _in_units(blocks.sum(dim=-1))
    tail = _in_units(weights[:, num_whole * _BLOCK_TOKENS :]).sum(dim=-1, keepdim=True)
    after = torch.cat([whole, tail], dim=-1).cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(after[:, :1]), after[:, :-1]], dim=-1)
    targets = (fractions[:, None] * after[:, -1:]).long()
    block = torch.searchsorted(after, targets, right=True).clamp(max=num_whole)
    tokens = block * _BLOCK_TOKENS + torch.arange(_BLOCK_TOKENS, device=weights.device)
    inside = _in_units(weights.gather(1, tokens.clamp(max=vocab - 1))) * (tokens < vocab)
    reached = inside.cumsum(dim=-1)
    # The two sums of a block differ by rounding: stay below the end, where the weights may be 0.
    rest = torch.minimum(targets - before.gather(1, block), reached[:, -1:] - 1)
    tokens = block * _BLOCK_TOKENS + torch.searchsorted(reached, rest, right=True)
    return tokens.clamp(max=vocab - 1).squeeze(1)


def _in_units(weights: torch.Tensor) -> torch.Tensor:
    """Weights as int64, rounded to the nearest."""
    return (weights.double() * _UNITS).round_().long()


def truncate(scaled: torch.Tensor, truncation: Truncation) -> None:
    """Set the tail of `scaled` logits `[n, vocab]` to -inf in place.

    Top-p is taken of what top-k leaves, min-p relative to the likeliest token. Ties with the last token kept
    are kept.
    """
    part = scaled.index_select(0, truncation.rows)
    top_k, top_p = truncation.top_k[:, None], truncation.top_p[:, None]
    peak = part.amax(dim=-1, keepdim=True)
    mass = torch.zeros_like(peak, dtype=torch.int64)
    if not truncation.is_short:
        mass = _in_units((part - peak).exp_()).sum(dim=-1, keepdim=True)
    ordered = _largest(part, truncation, top_p * (mass / _UNITS))
    num_candidates = ordered.shape[1]
    limit = torch.where(top_k > 0, top_k, num_candidates).clamp(max=num_candidates)
    kept = ordered.masked_fill(ordered < ordered.gather(1, limit - 1), -torch.inf)
    weights = _in_units((kept - peak).exp_())
    cumulative = weights.cumsum(dim=-1)
    total = torch.where(top_k > 0, cumulative[:, -1:], mass)
    num_kept = (cumulative - weights < top_p.double() * total).sum(dim=-1, keepdim=True)
    last = kept.gather(1, torch.minimum(num_kept, limit).clamp(min=1) - 1)
    last = torch.where((top_k > 0) | (top_p < 1), last, -torch.inf)
    last = torch.maximum(last, peak + truncation.min_p[:, None].log())
    scaled.index_copy_(0, truncation.rows, part.masked_fill_(part < last, -torch.inf))


def _largest(part: torch.Tensor, truncation: Truncation, masses: torch.Tensor) -> torch.Tensor:
    """The largest logits of each row, in order: at least as many as top-k and top-p keep.

    `masses` `[m, 1]` are what top-p keeps of the sum of exp(logit - largest). On the CPU, where shapes may
    depend on data, sorting a whole vocabulary is worth avoiding; the cut is the same either way.
    """
    most = min(MAX_SHORT_TOP_K, part.shape[1])
    if part.device.type != "cpu":
        return part.topk(most, dim=-1).values if truncation.is_short else part.sort(descending=True).values
    if truncation.is_short:
        return part.topk(min(most, int(truncation.top_k.max())), dim=-1).values
    ordered = part.topk(most, dim=-1).values
    reached = (ordered - ordered[:, :1]).exp_().sum(dim=-1, keepdim=True)
    is_enough = (truncation.top_k[:, None] == 0) & ((reached > masses) | (truncation.top_p[:, None] == 1))
    return ordered if bool(is_enough.all()) else part.sort(descending=True).values


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one token in each of n rows: `logprob` `[n]`, `rank` `[n]` (1: the likeliest), and the likeliest
    tokens `top_ids`, `top_logprobs` `[n, k]`."""

    logprob: torch.Tensor
    rank: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> Logprobs:
    """Of `tokens` `[n]` under the distribution of raw `logits` `[n, vocab]`, before temperature and masks."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, tokens[:, None])
    top = logprobs.topk(num_top, dim=-1)
    return Logprobs(chosen.squeeze(1), (logprobs > chosen).sum(dim=-1) + 1, top.indices, top.values)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MULTIPLIERS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Logical shift of int64, whose own shift is arithmetic."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MULTIPLIERS[0]
    bits = (bits ^ _shift_right(bits, 27)) * _MULTIPLIERS[1]
    return bits ^ _shift_right(bits, 31)
