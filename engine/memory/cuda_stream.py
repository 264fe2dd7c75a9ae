# mypy: allow-untyped-calls
"""Streams for moves."""

from collections.abc import Callable

import torch
from cuda.bindings import driver

from engine.memory.cuda_calls import unwrap
from engine.memory.cuda_copy import BatchCopy, Words
from engine.memory.transfer_lanes import PageList

MovePages = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], None]
"""Copy pages: source and destination pool int32 `[pages, words]`, page lists int32 `[n]`, and the number of
programs to use; on the current stream."""


class CudaMoveStream:
    """See `transfer_paths.MoveStream`. A stream of GPU `device`, on which the process has a context, that
    nobody else is on to the end of the process; torch's own are given out in turn."""

    def __init__(self, device: int, copy_batch: BatchCopy, move_pages: MovePages) -> None:
        self._device = torch.device("cuda", device)
        self._copy_batch = copy_batch
        self._move_pages = move_pages
        with torch.cuda.device(self._device):
            created = driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
            handle = unwrap("cuStreamCreate", created)
        self.stream = torch.cuda.ExternalStream(int(handle), device=self._device)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.stream)
        return event

    def copy(self, dst: Words, src: Words, sizes: Words) -> None:
        with torch.cuda.device(self._device):
            self._copy_batch(dst, src, sizes, self.stream.cuda_stream)

    def move_pages(
        self, src: torch.Tensor, dst: torch.Tensor, pages: tuple[PageList, PageList], programs: int
    ) -> None:
        """The page lists on the device begin at multiples of 16 bytes: the kernel was compiled for that."""
        count = len(pages[0])
        lists = torch.empty(2, -(-count // 4) * 4, dtype=torch.int32, pin_memory=True)
        lists.numpy()[:, :count] = pages
        with torch.cuda.stream(self.stream):
            sent = lists.to(self._device, non_blocking=True)
            src_words, dst_words = src.view(torch.int32), dst.view(torch.int32)
            self._move_pages(src_words, dst_words, sent[0, :count], sent[1, :count], programs)

    def synchronize(self) -> None:
        self.stream.synchronize()
