"""Traces: files of requests that were really made, read into one row type."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loadgen.spec import SpecError
from loadgen.traces.azure import read_azure
from loadgen.traces.burstgpt import read_burstgpt
from loadgen.traces.mooncake import read_mooncake
from loadgen.traces.row import BLOCK_TOKENS, TraceError, TraceRow
from loadgen.traces.sharegpt import CHARS_PER_TOKEN, read_sharegpt
from loadgen.traces.synthetic import Synthetic

__all__ = ["BLOCK_TOKENS", "CHARS_PER_TOKEN", "TraceError", "TraceRow", "TraceSpec"]

_READERS: dict[str, Callable[[Path], Iterator[TraceRow]]] = {
    "azure": read_azure,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "sharegpt": read_sharegpt,
}


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """Where requests come from: 'azure:FILE', 'burstgpt:FILE', 'mooncake:FILE', 'sharegpt:FILE' or
    'synthetic:rows=N,input=A-B,output=A-B'."""

    text: str
    source: Path | Synthetic

    @classmethod
    def parse(cls, text: str) -> "TraceSpec":
        kind, _, rest = text.partition(":")
        if kind == "synthetic":
            return cls(text, Synthetic.parse(rest))
        if kind not in _READERS or not rest:
            kinds = ", ".join(f"{name}:FILE" for name in _READERS)
            raise SpecError(f"a trace is {kinds} or synthetic:rows=N,input=A-B,output=A-B; not {text!r}")
        return cls(text, Path(rest))

    def read(self, start: int, stop: int | None, seed: int) -> list[TraceRow]:
        """Rows `start` up to `stop`. Lines after the last one wanted are not read.

        Raises `TraceError` for a bad line, `OSError` for a file that cannot be read.
        """
        if isinstance(self.source, Synthetic):
            rows = self.source.rows(seed)
        else:
            rows = _READERS[self.text.partition(":")[0]](self.source)
        return list(islice(rows, start, stop))
