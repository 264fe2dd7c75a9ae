"""Smoothness: as many tokens a second as a reader reads, for everybody, as long as capacity allows.

The bound on the gap says when a prompt is due, whoever is ahead of it in fair order; the floor says for how
long: a turn out of order is as short as keeps the reader busy until the next one. The rest of the device's
time goes by fair order.

A reader with a speed of its own, which a request may wish, may have read everything before that bound: then
its prompt is due at that moment.
"""

from dataclasses import dataclass, replace

_CATCH_UP = 2  # who is behind its reader gets so many times the usual turn at most


@dataclass(frozen=True, slots=True)
class ReadingFloor:
    """`tokens_per_s` for every prompt; one that waits is due after `gap_ns` at the latest."""

    tokens_per_s: float
    gap_ns: int

    def at(self, tokens_per_s: float | None) -> "ReadingFloor":
        """The floor of a prompt with a reader of this speed; None: as everybody's."""
        return self if tokens_per_s is None else replace(self, tokens_per_s=tokens_per_s)

    def turn_tokens(self, *, num_read: float, num_tokens: int, step_ns: float) -> int | None:
        """Length of a turn out of order, of a prompt that has `num_tokens` of output when its reader could
        have read `num_read`. Who is ahead of its reader has the usual turn, for the gap is bounded too.

        A turn of n tokens and the gap after it take n * step_ns + gap_ns, in which the reader reads as many.
        None: the device is too slow for the reader, and no turn is long enough.
        """
        per_ns = self.tokens_per_s / 1e9
        speed_left = 1.0 - per_ns * step_ns
        if speed_left <= 0.0:
            return None
        usual = per_ns * self.gap_ns
        wanted = num_read + usual - num_tokens
        return max(1, round(min(max(wanted, usual), _CATCH_UP * usual) / speed_left))

    def num_read(self, since_ns: int, now_ns: int) -> float:
        """What a reader has read who began at `since_ns`, if it was there."""
        return self.tokens_per_s * (now_ns - since_ns) / 1e9


def waits_since_ns(
    *, tokens_per_s: float, first_token_ns: int, last_token_ns: int, num_tokens: int, gap_ns: int
) -> int:
    """From when the gap counts of a prompt with a reader of its own speed, who began with the first of
    `num_tokens`: so that the prompt is due when they are read, but not before it waits at all, and `gap_ns`
    after the last at the latest. One whose reader can never be kept busy thus goes first among its tenant's,
    yet behind all that have waited for `gap_ns` already."""
    read_ns = first_token_ns + round(num_tokens / tokens_per_s * 1e9)
    return min(last_token_ns, max(last_token_ns, read_ns) - gap_ns)
