"""What prefill costs by itself, and what of it a step hides behind reading the weights. Pure."""


def fit_prefill(many: tuple[int, float], few: tuple[int, float]) -> tuple[float, float]:
    """(`prefill_ns`, `overlap_ns`) of `messages.CostModel` from two chunks: their tokens, and the nanoseconds
    that each adds to a step.

    n tokens of c ns each add p - o p / (o + p) = p^2 / (o + p) for p = n c, so o = p^2 / added - p. That is
    one o for both chunks if c = (n1 - n2) / (n1^2 / added1 - n2^2 / added2). Where noise leaves no such o
    and c that are positive, nothing is hidden, and the larger chunk says what a token costs.
    """
    (n1, added1_ns), (n2, added2_ns) = many, few
    if n1 > n2 > 0 and added1_ns > 0 and added2_ns > 0:
        slope = n1 * n1 / added1_ns - n2 * n2 / added2_ns
        token_ns = (n1 - n2) / slope if slope > 0 else 0.0
        overlap_ns = n1 * token_ns * (n1 * token_ns / added1_ns - 1)
        if token_ns > 0 and overlap_ns > 0:
            return max(1.0, token_ns), overlap_ns
    return max(1.0, added1_ns / max(1, n1)), 0.0
