# mypy: allow-untyped-calls
"""Host memory that GPUs copy to and from at full speed.

The driver does not notice when pinned memory is unmapped: it goes on taking the addresses for its own. When
an allocation of any kind is given the same ones, it fails with "resource already mapped", and so do all
after it. Therefore memory is unpinned before it is unmapped, whoever drops the last reference to it.
"""

import logging
import weakref

import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import CudaError, unwrap

log = logging.getLogger(__name__)


def pin(pages: torch.Tensor) -> None:
    """Pin the memory of `pages`, which begins and ends at pages of the system, in this process until the
    tensor is gone (about 0.6 s per GiB). Raises CudaError."""
    address = pages.data_ptr()
    unwrap(
        "cudaHostRegister",
        runtime.cudaHostRegister(address, pages.nbytes, runtime.cudaHostRegisterPortable),
    )
    # The storage goes with the call, so that the memory is mapped until then.
    unpinning = weakref.finalize(pages, _unpin, address, pages.untyped_storage())
    unpinning.atexit = False  # a process that ends gives back everything


def _unpin(address: int, storage: torch.UntypedStorage) -> None:
    try:
        unwrap("cudaHostUnregister", runtime.cudaHostUnregister(address))
    except CudaError as error:
        log.warning("%d bytes of host memory stay pinned: %s", storage.nbytes(), error)
