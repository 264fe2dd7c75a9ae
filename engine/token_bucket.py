"""A limit per minute. Pure: the clock is the caller's."""

NS_PER_MINUTE = 60_000_000_000


class TokenBucket:
    """Holds up to one minute's worth, and fills evenly.

    What is taken may exceed what is there: the level is then a debt, and nothing passes until it is paid. So
    a cost that is known only afterwards (an answer's length) is charged in full, and the rate holds in the
    long run.
    """

    def __init__(self, per_minute: int, now_ns: int) -> None:
        self.per_minute = per_minute
        self._level_ns = NS_PER_MINUTE * per_minute  # in units of 1 / NS_PER_MINUTE, so that nothing is lost
        self._at_ns = now_ns

    def change(self, per_minute: int) -> None:
        """Another limit from now on; what was used stays used."""
        self._level_ns += NS_PER_MINUTE * (per_minute - self.per_minute)
        self.per_minute = per_minute

    def level(self, now_ns: int) -> float:
        """What is there; negative if there is a debt."""
        self._fill(now_ns)
        return self._level_ns / NS_PER_MINUTE

    def wait_ns(self, amount: int, now_ns: int) -> int:
        """How long until `amount` is there, 0 if it is. More than the bucket holds passes when it is full."""
        self._fill(now_ns)
        missing = min(amount, self.per_minute) * NS_PER_MINUTE - self._level_ns
        return max(0, -(-missing // self.per_minute))

    def take(self, amount: int, now_ns: int) -> None:
        self._fill(now_ns)
        self._level_ns -= amount * NS_PER_MINUTE

    def _fill(self, now_ns: int) -> None:
        full = NS_PER_MINUTE * self.per_minute
        self._level_ns = min(full, self._level_ns + (now_ns - self._at_ns) * self.per_minute)
        self._at_ns = now_ns
