"""Who pays for a step: its measured time, shared by what each row made the GPU do."""

from collections.abc import Sequence
from itertools import accumulate

from engine.messages import CostModel


def share(
    step_ns: int, fed: Sequence[int], computed: Sequence[int], tokens: Sequence[int | None], cost: CostModel
) -> list[int]:
    """Split `step_ns` over the rows of a step; the parts are not negative and sum to it exactly.

    The columns are those of `messages.Step`. A row costs what the cost model says of its tokens (a single
    token that led to a sample is a decode, all others are prefill) and of the context that it read, of which
    the part that came from the prefix cache is read like any other; what a step costs whatever is in it is
    split evenly. The measured time replaces the model's total.
    """
    num_rows = len(fed)
    if not num_rows:
        return []
    fixed_ns = cost.step_ns / num_rows
    decode_ns, prefill_ns, context_ns = cost.decode_ns, cost.prefill_ns, cost.context_ns
    if sum(fed) == num_rows and None not in tokens:  # all decode
        costs_ns = [fixed_ns + context_ns * length + decode_ns for length in computed]
    else:
        costs_ns = [
            fixed_ns + context_ns * length + (decode_ns if n == 1 and token is not None else prefill_ns * n)
            for n, length, token in zip(fed, computed, tokens, strict=True)
        ]
    total_ns = sum(costs_ns)
    if total_ns <= 0.0:  # a model that finds everything free
        costs_ns, total_ns = [1.0] * num_rows, float(num_rows)
    scale = step_ns / total_ns
    ends_ns = [int(end_ns * scale) for end_ns in accumulate(costs_ns)]
    last = num_rows - 1
    ends_ns[last] = step_ns
    while last and ends_ns[last - 1] > step_ns:  # rounded up
        last -= 1
        ends_ns[last] = step_ns
    return [end_ns - start_ns for start_ns, end_ns in zip([0, *ends_ns], ends_ns, strict=False)]
