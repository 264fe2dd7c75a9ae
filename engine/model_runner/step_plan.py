"""How the rows of a step lie in the flattened batch of a device with paged kernels.

Rows that compute one token come first: they take the decode kernel. The others follow, cut into tiles for the
prefill kernel. Everything here is on the host, in arrays that are uploaded as they are.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.model_runner.batch import StepRow

Ints = npt.NDArray[np.int64]

# A compiled graph takes any number of tokens and of logits from two on; one would be compiled anew.
MIN_TOKENS = 2
MIN_LOGITS = 2

MAX_GRAPH_CHUNKS = 8  # chunks of a mixed step that is replayed from a graph
_GRAPH_DECODING = (8, 16, 32, 48, 64, 96, 128, 192, 256)
_GRAPH_FILLING = tuple(range(64, 513, 64))  # above, the device takes longer than it takes to launch kernels


class MixedShape(NamedTuple):
    """The size of a mixed step that a graph was captured for: rows that decode, tokens of all chunks."""

    decoding: int
    filling: int

    @property
    def tokens(self) -> int:
        return self.decoding + self.filling

    @property
    def logits(self) -> int:
        """One for each row, most of which may be padding."""
        return self.decoding + MAX_GRAPH_CHUNKS

    def num_tiles(self, tile_tokens: int) -> int:
        """At most, for prefill attention in tiles of so many tokens."""
        return self.filling // tile_tokens + MAX_GRAPH_CHUNKS


def mixed_shapes(max_batch: int, max_step_tokens: int) -> tuple[MixedShape, ...]:
    """Shapes worth a graph: of steps so short that launching their kernels one by one takes longer."""
    decoding = [size for size in _GRAPH_DECODING if size < max_batch]
    decoding.append(max(MIN_TOKENS, max_batch))
    shapes = itertools.starmap(MixedShape, itertools.product(decoding, _GRAPH_FILLING))
    return tuple(shape for shape in shapes if shape.tokens <= max_step_tokens)


def fitting(shapes: Sequence[MixedShape], rows: Sequence[StepRow]) -> MixedShape | None:
    """The shape, of those ascending in both sizes, that holds the rows with the least padding."""
    decoding = sum(step.count == 1 for step in rows)
    filling = sum(step.count for step in rows) - decoding
    if len(rows) - decoding > MAX_GRAPH_CHUNKS:
        return None
    return next((s for s in shapes if s.decoding >= decoding and s.filling >= filling), None)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A mixed step. `order[i]` is the index in the step's rows of row i of the flattened batch.

    slots [num_decoding]; positions [n]; ids [n], 0 where a row goes on with the token it sampled last;
    chunks: (first token in the batch, count, start, slot) of the rows after the decoding ones; keep [k]:
    tokens whose logits are wanted, those of `sampled` (indices in the step's rows) first.
    """

    order: tuple[int, ...]
    num_decoding: int
    slots: Ints
    positions: Ints
    ids: Ints
    chunks: tuple[tuple[int, int, int, int], ...]
    sampled: tuple[int, ...]
    keep: Ints
    prompt_logits: dict[int, tuple[int, int]]  # row -> its logits in `keep`, first and end


def is_decode(rows: Sequence[StepRow]) -> bool:
    """Whether all rows compute one token and sample the next: such steps are replayed from a graph."""
    return all(step.count == 1 and step.sample for step in rows)


def plan_step(
    rows: Sequence[StepRow], judged: Sequence[int], padding_slot: int, shape: MixedShape | None = None
) -> StepPlan:
    """Lay out a step, padded to `shape` if one is given. `judged` are rows of which all logits are wanted.

    Padding is decoding rows at position 0 of `padding_slot`, and tokens at the end that no tile covers.
    """
    decoding = [i for i, step in enumerate(rows) if step.count == 1]
    filling = [i for i, step in enumerate(rows) if step.count > 1]
    if shape is None:
        num_padding = max(0, MIN_TOKENS - sum(step.count for step in rows))
    else:
        num_padding = shape.decoding - len(decoding)
    slots = [rows[i].row.slot for i in decoding] + [padding_slot] * num_padding
    positions = [rows[i].start for i in decoding] + [0] * num_padding
    ids = [_known_id(rows[i]) or 0 for i in decoding] + [0] * num_padding

    last_of_row = {i: place for place, i in enumerate(decoding)}
    first_of_row = dict(last_of_row)
    pieces_positions = [np.array(positions, dtype=np.int64)]
    pieces_ids = [np.array(ids, dtype=np.int64)]
    chunks = []
    first = len(slots)
    for i in filling:
        step = rows[i]
        assert step.ids is not None, "a row that computes several tokens brings their ids"
        chunks.append((first, step.count, step.start, step.row.slot))
        pieces_positions.append(np.arange(step.start, step.start + step.count, dtype=np.int64))
        pieces_ids.append(np.array(step.ids, dtype=np.int64))
        first_of_row[i] = first
        first += step.count
        last_of_row[i] = first - 1

    sampled = tuple(i for i, step in enumerate(rows) if step.sample)
    keep = [last_of_row[i] for i in sampled]
    prompt_logits = {}
    for i in judged:
        prompt_logits[i] = (len(keep), len(keep) + rows[i].count)
        keep += range(first_of_row[i], first_of_row[i] + rows[i].count)
    keep += [0] * ((MIN_LOGITS if shape is None else shape.logits) - len(keep))
    if shape is not None:
        unused = np.zeros(shape.tokens - first, dtype=np.int64)
        pieces_positions.append(unused)
        pieces_ids.append(unused)
    return StepPlan(
        order=(*decoding, *filling),
        num_decoding=len(slots),
        slots=np.array(slots, dtype=np.int64),
        positions=np.concatenate(pieces_positions),
        ids=np.concatenate(pieces_ids),
        chunks=tuple(chunks),
        sampled=sampled,
        keep=np.array(keep, dtype=np.int64),
        prompt_logits=prompt_logits,
    )


def known_tokens(rows: Sequence[StepRow]) -> tuple[list[int], list[int]]:
    """Slots and ids of the rows that compute one token which the host knows."""
    known = [(step.row.slot, _known_id(step)) for step in rows if step.count == 1 and step.ids is not None]
    return [slot for slot, _ in known], [token for _, token in known if token is not None]


def _known_id(step: StepRow) -> int | None:
    return None if step.ids is None else step.ids[0]
