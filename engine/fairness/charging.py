"""GPU time of a step, shared among its prompts by what each made the GPU do."""

from collections.abc import Sequence

from engine.messages import CostModel


def share(
    step_ns: int,
    fed: Sequence[int],
    computed: Sequence[int],
    tokens: Sequence[int | None],
    cost: CostModel,
) -> list[int]:
    """Nanoseconds for each row, which sum to `step_ns` exactly.

    A row fed `fed[i]` tokens, had `computed[i]` positions of context after the step, and sampled if
    `tokens[i]` is one. Its part is proportional to decode_ns (if it sampled) + prefill_ns * (tokens fed beside
    the sampled one's) + context_ns * positions read.
    """
    decode_ns, prefill_ns, context_ns = cost.decode_ns, cost.prefill_ns, cost.context_ns
    parts = [
        (decode_ns + prefill_ns * (n - 1) if token is not None else prefill_ns * n) + context_ns * length
        for n, length, token in zip(fed, computed, tokens, strict=True)
    ]
    total = sum(parts)
    if total <= 0:
        parts, total = [1.0] * len(parts), float(len(parts))
    shares, done, given = [], 0.0, 0
    for part in parts:
        done += part
        upto = round(step_ns * (done / total))
        shares.append(upto - given)
        given = upto
    if shares:
        shares[-1] += step_ns - given
    return shares
