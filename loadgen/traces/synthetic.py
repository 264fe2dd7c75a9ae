"""Requests made up from a few numbers, for when no trace is at hand: no times, lengths drawn uniformly."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from loadgen.spec import SpecError, whole, whole_range
from loadgen.traces.row import TraceRow


@dataclass(frozen=True, slots=True)
class Synthetic:
    """`num_rows` requests; lengths are drawn from inclusive ranges."""

    num_rows: int
    input_range: tuple[int, int]
    output_range: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> "Synthetic":
        """From 'rows=1000,input=100-500,output=16-64'; each part may be left out."""
        parts = {"rows": "100", "input": "128-1024", "output": "16-256"}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if not equals or name not in parts:
                raise SpecError(
                    f"a synthetic trace is given by {', '.join(parts)}, as name=value; not {part!r}"
                )
            parts[name] = value
        return cls(
            num_rows=whole(parts["rows"], least=1),
            input_range=whole_range(parts["input"], "-", least=1),
            output_range=whole_range(parts["output"], "-", least=1),
        )

    def rows(self, seed: int) -> Iterator[TraceRow]:
        draw = random.Random(f"lengths {seed}")
        for index in range(self.num_rows):
            yield TraceRow(
                line=index + 1,
                arrival_s=None,
                input_tokens=draw.randint(*self.input_range),
                output_tokens=draw.randint(*self.output_range),
            )
