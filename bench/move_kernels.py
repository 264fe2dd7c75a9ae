"""Candidates for the kernel that moves pages, for `bench.check_pools` to compare with the one that serves.

They differ in hints to the caches, in when page numbers are read, and in how many bytes a program has in
flight. Each is called as `engine.memory.transfer_cuda.MovePages` says.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.memory.transfer_cuda import MovePages

WARPS = 16
ROWS, ROW_WORDS = 32, 256  # of a box: a row of it may not have more words


@triton.jit
def _ahead_kernel(
    dst_ptr,
    src_ptr,
    dst_pages_ptr,
    src_pages_ptr,
    num_blocks,
    page_words: tl.int64,
    blocks_per_page,
    BLOCK: tl.constexpr,
    STORE: tl.constexpr,
):
    """The page numbers of a block are read while the block before it travels."""
    word = tl.arange(0, BLOCK)
    block = tl.program_id(0)
    src = tl.load(src_pages_ptr + block // blocks_per_page, mask=block < num_blocks, other=0)
    dst = tl.load(dst_pages_ptr + block // blocks_per_page, mask=block < num_blocks, other=0)
    while block < num_blocks:
        inside = (block % blocks_per_page) * BLOCK + word
        here = inside < page_words
        words = tl.load(src_ptr + src.to(tl.int64) * page_words + inside, mask=here, cache_modifier=".cg")
        after = block + tl.num_programs(0)
        next_src = tl.load(src_pages_ptr + after // blocks_per_page, mask=after < num_blocks, other=0)
        next_dst = tl.load(dst_pages_ptr + after // blocks_per_page, mask=after < num_blocks, other=0)
        tl.store(dst_ptr + dst.to(tl.int64) * page_words + inside, words, mask=here, cache_modifier=STORE)
        block, src, dst = after, next_src, next_dst


@triton.jit
def _staged_kernel(
    dst_ptr,
    src_ptr,
    dst_pages_ptr,
    src_pages_ptr,
    num_blocks,
    page_words: tl.int64,
    blocks_per_page,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Page numbers and words are read ahead, into shared memory."""
    word = tl.arange(0, BLOCK)
    for block in tl.range(tl.program_id(0), num_blocks, tl.num_programs(0), num_stages=STAGES):
        index = block // blocks_per_page
        inside = (block % blocks_per_page) * BLOCK + word
        here = inside < page_words
        src = tl.load(src_pages_ptr + index).to(tl.int64) * page_words
        dst = tl.load(dst_pages_ptr + index).to(tl.int64) * page_words
        words = tl.load(src_ptr + src + inside, mask=here)
        tl.store(dst_ptr + dst + inside, words, mask=here)


@triton.jit
def _box_kernel(
    dst_box,
    src_box,
    dst_pages_ptr,
    src_pages_ptr,
    num_blocks,
    boxes_per_page,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The tensor memory accelerator reads and writes boxes of rows; read ahead, as above."""
    for block in tl.range(tl.program_id(0), num_blocks, tl.num_programs(0), num_stages=STAGES):
        index = block // boxes_per_page
        row = (block % boxes_per_page) * ROWS
        src = tl.load(src_pages_ptr + index).to(tl.int32) * boxes_per_page * ROWS + row
        dst = tl.load(dst_pages_ptr + index).to(tl.int32) * boxes_per_page * ROWS + row
        dst_box.store([dst, 0], src_box.load([src, 0]))


def by_blocks(kernel: triton.JITFunction, *, block_words: int = 8192, **variant: object) -> MovePages:
    def move(
        src: torch.Tensor, dst: torch.Tensor, src_pages: torch.Tensor, dst_pages: torch.Tensor, programs: int
    ) -> None:
        page_words = src.shape[1]
        each = triton.cdiv(page_words, block_words)
        count = len(src_pages) * each
        kernel[(programs,)](
            dst,
            src,
            dst_pages,
            src_pages,
            count,
            page_words,
            each,
            BLOCK=block_words,
            num_warps=WARPS,
            **variant,
        )

    return move


def by_boxes(stages: int) -> MovePages:
    """Of pages of a multiple of 32 KiB."""

    def move(
        src: torch.Tensor, dst: torch.Tensor, src_pages: torch.Tensor, dst_pages: torch.Tensor, programs: int
    ) -> None:
        src_box, dst_box = (
            TensorDescriptor.from_tensor(pool.view(-1, ROW_WORDS), [ROWS, ROW_WORDS]) for pool in (src, dst)
        )
        each = src.shape[1] // (ROWS * ROW_WORDS)
        count = len(src_pages) * each
        _box_kernel[(programs,)](
            dst_box, src_box, dst_pages, src_pages, count, each, ROWS=ROWS, STAGES=stages, num_warps=4
        )

    return move


CANDIDATES: dict[str, MovePages] = {
    "page numbers ahead": by_blocks(_ahead_kernel, STORE=""),
    "page numbers ahead, streaming stores": by_blocks(_ahead_kernel, STORE=".cs"),
    "page numbers ahead, 64 KiB a turn": by_blocks(_ahead_kernel, block_words=16_384, STORE=""),
    "3 stages": by_blocks(_staged_kernel, STAGES=3),
    "boxes, 3 stages": by_boxes(3),
}
