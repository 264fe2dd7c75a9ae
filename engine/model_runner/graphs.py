"""CUDA graphs of steps, one for each size of step that is worth its own.

A replay costs the host one call. Between two sizes a step is padded with rows that write to the scrap page.
"""

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch

from engine.model_runner.step_plan import MIN_TOKENS

Size = TypeVar("Size", bound=Hashable)

MemoryPool = Any
"""What `torch.cuda.graph_pool_handle` gives; its type is not public."""


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Sizes to capture, ascending; the last holds `max_batch` rows."""
    sizes = [size for size in (MIN_TOKENS, 4, 8) if size < max_batch]
    sizes += range(16, max_batch, 8)
    return (*sizes, max(MIN_TOKENS, max_batch))


def padded_size(sizes: Sequence[int], num_rows: int) -> int:
    """The smallest of `sizes` (ascending) that holds the rows."""
    return sizes[bisect_left(sizes, num_rows)]


class GraphSet(Generic[Size]):
    """Captures of one function of a step's size, which works on buffers that stay where they are.

    Sets that share `memory` must never run at the same time: what a graph allocates inside, others reuse.
    """

    def __init__(
        self, compute: Callable[[Size], None], stream: torch.cuda.Stream, memory: MemoryPool
    ) -> None:
        self._compute = compute
        self._stream = stream
        self._memory = memory
        self._graphs: dict[Size, torch.cuda.CUDAGraph] = {}

    def capture(self, size: Size) -> None:
        """Run once, so that everything is compiled and loaded, then capture."""
        with torch.cuda.stream(self._stream):
            self._compute(size)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream):
            self._compute(size)
        self._graphs[size] = graph

    def replay(self, size: Size) -> None:
        """Launch on the current stream."""
        self._graphs[size].replay()
