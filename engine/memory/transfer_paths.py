"""The ways that moves of a GPU take: who issues them, on which streams, in what amounts."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch

from engine.memory.cuda_copy import Words
from engine.memory.transfer_lanes import Lane, Lookahead, Mark, PageList

# A batch is known to be complete as a whole, and whatever else uses a copy engine may wait for one. It is
# about half a millisecond of its link.
BATCH_PEER_BYTES, BATCH_HOST_BYTES, BATCH_PAGES = 2**28, 2**25, 4096

# How far the device may be behind, at least and at most: a step of tens of milliseconds may pass between two
# looks of the runner's loop.
AHEAD_PEER_BYTES, AHEAD_HOST_BYTES = (2**32, 2**34), (2**27, 2**31)

PEER_BYTES_PER_S, HOST_BYTES_PER_S = 2**39, 2**36  # a little more than links have


@dataclass(frozen=True, slots=True)
class CudaPool:
    """A pool as mapped here: uint8 `[num_pages, page_bytes]`, on GPU `device`; None: in pinned host memory.
    GPUs `reached_by` may have copies issued from and to it; more may come."""

    pages: torch.Tensor
    device: int | None
    is_local: bool = False
    reached_by: Set[int] = frozenset()

    @property
    def is_host(self) -> bool:
        return self.device is None

    @property
    def page_bytes(self) -> int:
        return self.pages.shape[1]


class MoveStream(Protocol):
    """A stream of one GPU, for moves alone."""

    def mark(self) -> Mark:
        """A mark after all that was launched here."""

    def copy(self, dst: Words, src: Words, sizes: Words) -> None:
        """Copy on the GPU's copy engines, in no order: sizes in bytes."""

    def move_pages(
        self, src: torch.Tensor, dst: torch.Tensor, pages: tuple[PageList, PageList], programs: int
    ) -> None:
        """Copy source pages of `src` to destination pages of `dst` by a kernel of so many programs."""

    def synchronize(self) -> None:
        """Wait for all that was launched here."""


class Path(Enum):
    """Ways that do not wait for one another, those that slices wait for first. Nor do those of different
    senders on one path."""

    PEER_IN = "peer in"
    HOST_IN = "host in"
    RELAY = "peer to peer"
    PEER_OUT = "peer out"  # also inside the local pool
    HOST_OUT = "host out"


@dataclass(slots=True)
class PathLane:
    """The moves on a path for which one GPU has copies issued, on `copies`; kernels run here, on `kernels`.
    `lookahead` and `batch_bytes` say in what amounts they are launched."""

    copies: MoveStream
    kernels: MoveStream
    lookahead: Lookahead
    batch_bytes: int
    lane: Lane = field(default_factory=Lane)

    @property
    def is_remote(self) -> bool:
        """Whether the copy engines are another GPU's."""
        return self.copies is not self.kernels

    @property
    def is_starting(self) -> bool:
        """Whether the first that arrives is still to be told, and looks at what has arrived come often."""
        return (not self.lane.ahead_bytes or self.lane.is_fresh) and self.lookahead.is_short

    def batch_pages(self, page_bytes: int) -> int:
        return max(1, min(self.batch_bytes // page_bytes, BATCH_PAGES))


def path_of(src: CudaPool, dst: CudaPool) -> Path:
    if src.is_host:
        return Path.HOST_IN
    if dst.is_host:
        return Path.HOST_OUT
    if src.is_local:
        return Path.PEER_OUT
    return Path.PEER_IN if dst.is_local else Path.RELAY


def sender_of(src: CudaPool, dst: CudaPool, own: int) -> int:
    """The GPU that has copies issued: between two GPUs that of the source, if it can, or else ours."""
    if src.device is None or dst.device is None:
        return own
    can_send = src.device in src.reached_by and src.device in dst.reached_by
    return src.device if can_send else own


def make_lane(path: Path, sender: int, own: int, make_stream: Callable[[int], MoveStream]) -> PathLane:
    """A lane for what GPU `sender` sends on a path, for a process that computes on GPU `own`."""
    kernels = make_stream(own)
    if path in (Path.HOST_IN, Path.HOST_OUT):
        lookahead = Lookahead(HOST_BYTES_PER_S, *AHEAD_HOST_BYTES)
        return PathLane(kernels, kernels, lookahead, BATCH_HOST_BYTES)
    copies = kernels if sender == own else make_stream(sender)
    return PathLane(copies, kernels, Lookahead(PEER_BYTES_PER_S, *AHEAD_PEER_BYTES), BATCH_PEER_BYTES)
