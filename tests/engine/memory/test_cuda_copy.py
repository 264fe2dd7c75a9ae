"""The batch call against a function that copies this process's own memory."""

import ctypes

import numpy as np

from engine.memory.cuda_copy import PROTOTYPE, BatchCopy

STREAM, ATTRIBUTES = 4711, 4096


class FakeDriver:
    """What the driver would be called with, as C sees it."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.function = PROTOTYPE(self._copy)

    def _copy(self, dst: int, src: int, sizes: int, count: int, *others: int) -> int:
        attributes, holds_from, num_attributes, failed, stream = others
        assert (attributes, num_attributes, stream) == (ATTRIBUTES, 1, STREAM)
        assert ctypes.c_size_t.from_address(holds_from).value == 0
        assert failed
        arrays = [(ctypes.c_uint64 * count).from_address(address) for address in (dst, src, sizes)]
        for to_address, from_address, size in zip(*arrays, strict=True):
            ctypes.memmove(to_address, from_address, size)
        self.calls.append(count)
        return 0


def test_every_copy_of_a_batch_is_made_by_one_call() -> None:
    driver = FakeDriver()
    copy = BatchCopy(driver.function, ATTRIBUTES)
    src = np.arange(64, dtype=np.uint8)
    dst = np.zeros(64, dtype=np.uint8)
    to_offsets, from_offsets, sizes = (np.array(each, dtype=np.uint64) for each in ([0, 40], [8, 16], [4, 8]))
    copy(to_offsets + np.uint64(dst.ctypes.data), from_offsets + np.uint64(src.ctypes.data), sizes, STREAM)
    want = np.zeros(64, dtype=np.uint8)
    want[0:4], want[40:48] = src[8:12], src[16:24]
    assert (dst == want).all()
    assert driver.calls == [2]


def test_an_empty_batch_is_no_call() -> None:
    driver = FakeDriver()
    nothing = np.zeros(0, dtype=np.uint64)
    BatchCopy(driver.function, ATTRIBUTES)(nothing, nothing, nothing, STREAM)
    assert driver.calls == []
