"""When requests are sent. Times are seconds from the start of the run's clock.

Open-loop processes fix every time before the run, whatever the server does. A closed loop fixes only how
many requests are open at once.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from loadgen.spec import SpecError, positive, whole
from loadgen.traces import TraceRow


@dataclass(frozen=True, slots=True)
class TraceTimes:
    """The trace's own times, counted from the first row sent and divided by `speedup`."""

    speedup: float = 1.0

    def times_s(self, rows: Sequence[TraceRow], seed: int) -> list[float]:
        arrivals = [row.arrival_s for row in rows]
        known = [arrival for arrival in arrivals if arrival is not None]
        if len(known) < len(arrivals):
            raise SpecError("this trace has no times: choose --arrivals poisson:RATE or another process")
        return [(arrival - known[0]) / self.speedup for arrival in known]

    def describe(self) -> str:
        return "the trace's times" + (f", {self.speedup:g} times as fast" if self.speedup != 1 else "")


@dataclass(frozen=True, slots=True)
class Poisson:
    """Row i is sent at the sum of the first i + 1 draws of `random.Random(seed).expovariate(rate)`."""

    rate: float

    def times_s(self, rows: Sequence[TraceRow], seed: int) -> list[float]:
        draw = random.Random(seed)
        return list(accumulate(draw.expovariate(self.rate) for _ in rows))

    def describe(self) -> str:
        return f"Poisson, {self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gaps from a gamma distribution of mean 1 / rate and shape `burstiness`: 1 is Poisson, less is
    burstier, more is more regular."""

    rate: float
    burstiness: float

    def times_s(self, rows: Sequence[TraceRow], seed: int) -> list[float]:
        draw = random.Random(seed)
        scale_s = 1 / (self.rate * self.burstiness)
        return list(accumulate(draw.gammavariate(self.burstiness, scale_s) for _ in rows))

    def describe(self) -> str:
        return f"gamma, {self.rate:g}/s, burstiness {self.burstiness:g}"


@dataclass(frozen=True, slots=True)
class Constant:
    """One request every 1 / rate seconds, the first at once."""

    rate: float

    def times_s(self, rows: Sequence[TraceRow], seed: int) -> list[float]:
        return [index / self.rate for index in range(len(rows))]

    def describe(self) -> str:
        return f"constant, {self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class Ramp:
    """Poisson arrivals whose rate goes in a line from `first_rate` to `last_rate` within `ramp_s` seconds
    and stays there: unit-rate arrivals, moved through the inverse of the integrated rate."""

    first_rate: float
    last_rate: float
    ramp_s: float

    def times_s(self, rows: Sequence[TraceRow], seed: int) -> list[float]:
        draw = random.Random(seed)
        return [self._time_s(total) for total in accumulate(draw.expovariate(1.0) for _ in rows)]

    def _time_s(self, expected: float) -> float:
        """When the expected number of arrivals reaches `expected`."""
        in_ramp = (self.first_rate + self.last_rate) / 2 * self.ramp_s
        if expected >= in_ramp:
            return self.ramp_s + (expected - in_ramp) / self.last_rate
        slope = (self.last_rate - self.first_rate) / self.ramp_s
        # The root of first_rate * t + slope * t**2 / 2 = expected, written so that slope 0 needs no case.
        return 2 * expected / (self.first_rate + math.sqrt(self.first_rate**2 + 2 * slope * expected))

    def describe(self) -> str:
        return f"Poisson, {self.first_rate:g}/s to {self.last_rate:g}/s within {self.ramp_s:g} s"


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`users` requests open at once; each user sends the next one `think_s` after its last has ended."""

    users: int
    think_s: float = 0.0

    def describe(self) -> str:
        return f"closed loop, {self.users} open" + (f", {self.think_s:g} s between" if self.think_s else "")


Arrivals = TraceTimes | Poisson | Gamma | Constant | Ramp | ClosedLoop

FORMS = (
    "trace, poisson:RATE, gamma:RATE:BURSTINESS, constant:RATE, ramp:FROM_RATE:TO_RATE:SECONDS or "
    "closed:USERS[:THINK_SECONDS]"
)


def parse_arrivals(text: str) -> Arrivals:
    """From one of `FORMS`."""
    match text.split(":"):
        case ["trace"]:
            return TraceTimes()
        case ["poisson", rate]:
            return Poisson(positive(rate))
        case ["gamma", rate, burstiness]:
            return Gamma(positive(rate), positive(burstiness))
        case ["constant", rate]:
            return Constant(positive(rate))
        case ["ramp", first, last, seconds]:
            return Ramp(positive(first), positive(last), positive(seconds))
        case ["closed", users]:
            return ClosedLoop(whole(users, least=1))
        case ["closed", users, think]:
            return ClosedLoop(whole(users, least=1), positive(think))
        case _:
            raise SpecError(f"arrivals are {FORMS}; not {text!r}")
