"""How the rows of a step lie in the flattened batch of a device with paged kernels.

Rows that compute one token come first: they take the decode kernel. The others follow, cut into tiles for the
prefill kernel. Everything here is on the host, in arrays that are uploaded as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.model_runner.batch import StepRow

Ints = npt.NDArray[np.int64]

# A compiled graph takes any number of tokens and of logits from two on; one would be compiled anew.
MIN_TOKENS = 2
MIN_LOGITS = 2


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


def plan_step(rows: Sequence[StepRow], judged: Sequence[int], padding_slot: int) -> StepPlan:
    """Lay out a step. `judged` are rows of which all logits are wanted.

    Short steps are padded with decoding rows at position 0 of `padding_slot`.
    """
    decoding = [i for i, step in enumerate(rows) if step.count == 1]
    filling = [i for i, step in enumerate(rows) if step.count > 1]
    num_padding = max(0, MIN_TOKENS - sum(step.count for step in rows))
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
    keep += [0] * (MIN_LOGITS - len(keep))
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
