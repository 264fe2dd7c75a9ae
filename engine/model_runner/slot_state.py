"""What a device knows of the rows that run, by slot: it is told only what changed.

Last tokens, page tables and sampling parameters stay on the device from step to step, so that a decode step
needs no more from the host than which slots run, and where.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.messages import Sampling
from engine.model_runner.batch import Row, StepRow
from engine.model_runner.sampler import MAX_SHORT_TOP_K, Draw, Truncation


def upload(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Copy an array to the device on the current stream, without waiting for the device.

    The pinned staging block comes from torch's host allocator, which keeps it until the copy is done.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@dataclass(slots=True)
class _Resident:
    """The row in a slot, and how many entries of each of its page tables the device has."""

    row: Row
    num_pages: list[int]


def is_truncated(sampling: Sampling) -> bool:
    return sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0)


class SlotState:
    """Device-side state of `max_batch` slots and one more, `padding_slot`, for padding rows.

    `tables` are the page tables `[groups, max_batch + 1, max_pages]`; not all zero only where a row runs or
    ran. `last_tokens` int64 `[max_batch + 1]` holds what each slot sampled last.
    """

    def __init__(self, tables: torch.Tensor) -> None:
        self._device = tables.device
        self._tables = tables.view(-1)
        _, num_slots, self._max_pages = tables.shape
        self._num_slots = num_slots
        self.padding_slot = num_slots - 1
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int64, device=self._device)
        # temperature, top_p, min_p; seed, top_k
        self._floats = torch.zeros(3, num_slots, dtype=torch.float32, device=self._device)
        self._ints = torch.zeros(2, num_slots, dtype=torch.int64, device=self._device)
        self._residents: list[_Resident | None] = [None] * num_slots

    def update(self, rows: Sequence[StepRow]) -> None:
        """Tell the device about new rows and new pages."""
        indices: list[int] = []
        pages: list[int] = []
        arrivals: list[Row] = []
        for step in rows:
            row = step.row
            resident = self._residents[row.slot]
            if resident is None or resident.row is not row:
                resident = _Resident(row, [0] * len(row.page_tables))
                self._residents[row.slot] = resident
                arrivals.append(row)
            for group, table in enumerate(row.page_tables):
                known = resident.num_pages[group]
                if len(table) > known:
                    first = (group * self._num_slots + row.slot) * self._max_pages
                    assert len(table) <= self._max_pages, "page table longer than the model's context"
                    indices += range(first + known, first + len(table))
                    pages += table[known:]
                    resident.num_pages[group] = len(table)
        if indices:
            pair = upload(np.array([indices, pages], dtype=np.int64), self._device)
            self._tables.index_copy_(0, pair[0], pair[1].int())
        if arrivals:
            self._set_sampling(arrivals)

    def set_tokens(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Set last tokens that the host knows."""
        if slots:
            pair = upload(np.array([slots, tokens], dtype=np.int64), self._device)
            self.last_tokens.index_copy_(0, pair[0], pair[1])

    def draw(self, rows: Sequence[StepRow], slots: torch.Tensor, positions: torch.Tensor) -> Draw:
        """How `rows` sample; `slots` and `positions` (of the tokens to come) [n] are on the device, and may
        be padded past the rows."""
        # Which of the two ways a row takes depends on the row alone: rounding must not depend on neighbours.
        short: list[int] = []
        long: list[int] = []
        for i, step in enumerate(rows):
            if is_truncated(step.row.sampling):
                (short if 0 < step.row.sampling.top_k <= MAX_SHORT_TOP_K else long).append(i)
        return Draw(
            temperature=self._floats[0].index_select(0, slots),
            seeds=self._ints[0].index_select(0, slots),
            positions=positions,
            truncations=tuple(
                self._truncation(members, slots, is_short=members is short)
                for members in (short, long)
                if members
            ),
        )

    def _truncation(self, members: list[int], slots: torch.Tensor, *, is_short: bool) -> Truncation:
        rows = upload(np.array(members, dtype=np.int64), self._device)
        of_rows = slots.index_select(0, rows)
        return Truncation(
            rows=rows,
            top_k=self._ints[1].index_select(0, of_rows),
            top_p=self._floats[1].index_select(0, of_rows),
            min_p=self._floats[2].index_select(0, of_rows),
            is_short=is_short,
        )

    def _set_sampling(self, rows: Sequence[Row]) -> None:
        samplings = [row.sampling for row in rows]
        floats = np.array([[s.temperature, s.top_p, s.min_p] for s in samplings], dtype=np.float64)
        ints = np.array([[row.slot, s.seed, s.top_k] for row, s in zip(rows, samplings, strict=True)])
        packed = upload(np.concatenate([ints.T, floats.T.view(np.int64)]), self._device)
        slots = packed[0].contiguous()
        self._ints.index_copy_(1, slots, packed[1:3])
        self._floats.index_copy_(1, slots, packed[3:].contiguous().view(torch.float64).float())
