"""How many tokens of prompts a step computes beside rows that decode, while others wait for a place.

A step that only decodes leaves most of a GPU's arithmetic unused: it waits for the weights, which it reads in
any case. Tokens of prompts in the same step use what is idle, a few hundred of them nearly all of it. So
prompts take less of the GPU in many small parts than in few large ones (docs/benchmarks.md, "Prompts in
parts"), at the price of a later first token: that is worth it where throughput is short.

Pure; the runner and the simulator share it.
"""

_SHARE = 4  # a part is a quarter of what is pending: few steps to the first token, however much arrives


def part_tokens(num_pending: int, least: int) -> int:
    """Tokens of prompts for a step beside rows that decode, if `num_pending` are to be computed: `least` at
    least, and a multiple of half of that, for graphs are captured in such sizes."""
    grain = max(1, least // 2)
    wanted = -(-num_pending // _SHARE)
    return max(least, -(-wanted // grain) * grain)
