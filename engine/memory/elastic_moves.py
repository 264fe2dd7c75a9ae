"""Moves of elastic tensors that are in flight."""

import select
import time

from engine.memory.elastic_tensor import ElasticTensor
from engine.memory.pool import PagePool, Pages
from engine.memory.transfer import Transfers
from engine.messages import Move

POLL_S = 0.0002  # between two looks at transfers that cannot wake anybody


class ElasticMoves:
    """Has `transfers` make moves, and settles a tensor when its last is complete."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._tensors: dict[int, ElasticTensor] = {}  # by move
        self._last_move_id = 0

    def __len__(self) -> int:
        return len(self._tensors)

    def start(
        self,
        tensor: ElasticTensor,
        path: tuple[PagePool, PagePool],
        pages: tuple[Pages, Pages],
        *,
        urgent: bool = False,
    ) -> None:
        """Copy pages of one pool to as many of the other."""
        self._last_move_id += 1
        tensor.moves.add(self._last_move_id)
        self._tensors[self._last_move_id] = tensor
        (src, dst), (src_pages, dst_pages) = path, pages
        self._transfers.submit(
            Move(
                move_id=self._last_move_id,
                src_pool=src.pool_id,
                dst_pool=dst.pool_id,
                src_pages=src_pages,
                dst_pages=dst_pages,
                urgent=urgent,
            )
        )

    def poll(self) -> None:
        """Take note of what is complete. Raises TransferError."""
        for done in self._transfers.completed():
            tensor = self._tensors.pop(done.move_id)
            tensor.moves.discard(done.move_id)
            if not tensor.moves:
                tensor.settle()

    def wait(self, tensor: ElasticTensor) -> None:
        """Until none of the tensor's moves is in flight. Raises TransferError."""
        self.poll()
        while tensor.moves:
            wake = self._transfers.wake_descriptor()
            if wake is None:
                time.sleep(POLL_S)
            else:
                select.select([wake], [], [])
            self.poll()
