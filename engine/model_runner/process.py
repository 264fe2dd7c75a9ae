"""The runner process: load a model, map the pools, then run plans until the engine says otherwise.

Started by the engine with two inherited Unix sockets: one for messages (`engine.wire`), one for descriptors.
Exit status: 0 after Shutdown or when the engine is gone, 1 after a Fault, 2 after Refused.
"""

import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import torch

from engine.memory.page import PageLayout
from engine.memory.regions import RegionError
from engine.messages import Attach, Fault, Load, Loaded, Ready, Refused, Shutdown
from engine.model_runner import attention
from engine.model_runner.checks import SliceCheck
from engine.model_runner.devices import Device, DeviceError, open_device, page_view
from engine.model_runner.families import UnsupportedModel
from engine.model_runner.families import layout as layout_of
from engine.model_runner.grammar import Grammars
from engine.model_runner.loading import LoadedModel, load_model
from engine.model_runner.mailbox import Mailbox
from engine.model_runner.mapped_pools import attach_pools
from engine.model_runner.pending_grammars import PendingGrammars
from engine.model_runner.runner import Runner
from engine.model_runner.selftest import SelfTestFailed, self_test, self_test_scratch
from engine.model_runner.slices import SliceTable
from engine.model_runner.sources.errors import ModelError, one_line

EXIT_FAULT, EXIT_REFUSED = 1, 2

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

log = logging.getLogger(__name__)

Expected = TypeVar("Expected", Load, Attach)


class ShutdownWished(Exception):
    """The engine sent `Shutdown` before the runner was ready."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on its device, set to attend over pages of `layout`; no `grammars` for the byte tokenizer."""

    loaded: LoadedModel
    layout: PageLayout
    dtype: torch.dtype
    grammars: Grammars | None


def main(*, fd: int, pools_fd: int) -> int:
    """Serve the engine over two inherited sockets; returns the exit status."""
    follow_engine()
    with inherited(fd) as frames, inherited(pools_fd) as descriptors:
        return serve(Mailbox(frames), descriptors)


def inherited(fd: int) -> socket.socket:
    """The socket behind a descriptor of the engine's, under a low number: `select` takes none from 1024 on,
    and the engine may have more than that."""
    low = os.dup(fd)
    os.close(fd)
    return socket.socket(fileno=low)


def follow_engine() -> None:
    """No runner outlives its engine; and the engine, not the terminal, says when a runner ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(mailbox: Mailbox, descriptors: socket.socket) -> int:
    """The life of a runner; returns the exit status.

    What goes wrong before `Ready` in a way that the configuration has to answer for is refused. After that
    it is a fault, whatever it is: the engine starts another runner, and no client sees an error.
    """
    load: Load | None = None
    device: Device | None = None
    is_ready = False
    try:
        load = expect(mailbox, Load)
        device = open_device(load.device, threads=load.threads)
        with get_ready(device, load, mailbox, descriptors) as runner:
            is_ready = True
            gc.freeze()  # a collection over all that torch and transformers loaded takes many steps
            with faults_told(mailbox, device):
                runner.run()
    except (EOFError, ShutdownWished):
        return 0
    except Exception as error:
        reason = None if is_ready else refusal(error, load, device)
        if reason is not None:
            return refuse(mailbox, reason)
        log.exception("the runner failed")
        if not is_ready:
            tell_fault(mailbox, error, pool_trusted=device is None or is_pool_good(error, device))
        return EXIT_FAULT
    return 0


@contextmanager
def faults_told(mailbox: Mailbox, device: Device) -> Iterator[None]:
    """Tell the engine of an error before anything else is done about it: others may be about to read from
    this runner's pool, and to end takes a while."""
    try:
        yield
    except EOFError:
        raise
    except Exception as error:
        tell_fault(mailbox, error, pool_trusted=is_pool_good(error, device))
        raise


def refusal(error: Exception, load: Load | None, device: Device | None) -> str | None:
    """What the configuration has to change, in one line, if it is to blame for the error."""
    if isinstance(error, DeviceError | RegionError | ModelError | UnsupportedModel | SelfTestFailed):
        return one_line(error)
    if load is not None and device is not None and device.is_out_of_memory(error):
        return f"{load.device} is out of memory: {one_line(error)}"
    return None


def is_pool_good(error: Exception, device: Device) -> bool:
    """Whether the pages that the engine knows of are still what they were: want of memory harms none."""
    return device.is_out_of_memory(error) or not device.is_fault(error)


@contextmanager
def get_ready(device: Device, load: Load, mailbox: Mailbox, descriptors: socket.socket) -> Iterator[Runner]:
    """Load, attach, and tell the engine what a step costs: a runner that may serve."""
    start_s = monotonic()
    model = load_onto(device, load, mailbox)
    mailbox.send(Loaded(card=model.loaded.card, layout=model.layout, free_bytes=device.free_bytes()))
    pools = attach_pools(device, expect(mailbox, Attach), descriptors, mailbox.tell_progress)
    attached = pools.attached
    with closing(attached.transfers):
        pool = page_view(attached.local, model.layout, model.dtype)
        executor = device.make_executor(
            model.loaded, model.layout, pool, load, model.grammars, mailbox.tell_progress
        )
        mailbox.tell_progress("measuring steps", None)
        ready = Ready(
            local_pages=len(pool),
            load_s=monotonic() - start_s,
            cost=executor.measure_cost(),
            unreachable=attached.unreachable,
        )
        mailbox.send(ready)
        yield Runner(mailbox, executor, make_slice_table(model, load), attached.transfers, pools.change)


def load_onto(device: Device, load: Load, mailbox: Mailbox) -> ServedModel:
    """Load the model and test it, telling the engine how it goes.

    Raises ModelError, UnsupportedModel, SelfTestFailed.
    """
    attention.register()
    loaded = load_model(
        load.source,
        device=str(device.place),
        dtype=load.dtype,
        max_model_len=load.max_model_len,
        cache_dir=load.cache_dir,
        served_name=load.model,
        seed=load.seed,
        on_progress=mailbox.tell_progress,
    )
    loaded.use_attention(attention.NAME)
    mailbox.tell_progress("testing the model", None)
    dtype = loaded.model.dtype
    layout = layout_of(loaded.config, load.page_tokens, dtype)
    card = loaded.card
    grammars = PendingGrammars(card, mailbox.tell_no_grammars) if card.tokenizer is not None else None
    scratch = self_test_scratch(layout)
    executor = device.make_test_executor(loaded, layout, scratch)
    self_test(executor, scratch, family=card.architecture, vocab_size=card.vocab_size, dtype=dtype)
    return ServedModel(loaded, layout, dtype, grammars)


def make_slice_table(model: ServedModel, load: Load) -> SliceTable:
    card = model.loaded.card
    check = SliceCheck(vocab_size=card.vocab_size, max_model_len=card.max_model_len, grammars=model.grammars)
    return SliceTable(
        max_batch=load.max_batch,
        max_step_tokens=load.max_step_tokens,
        part_tokens=load.part_tokens,
        page_tokens=load.page_tokens,
        problem_with=check,
    )


def expect(mailbox: Mailbox, kind: type[Expected]) -> Expected:
    """Wait for the one message that may come now. Raises ShutdownWished, EOFError."""
    message = mailbox.next()
    if isinstance(message, Shutdown):
        raise ShutdownWished
    assert isinstance(message, kind), f"{kind.__name__} was expected, {message!r} came"
    return message


def refuse(mailbox: Mailbox, reason: str) -> int:
    """Tell the engine what the configuration has to change; returns the exit status."""
    with suppress(EOFError):
        mailbox.send(Refused(reason=reason))
    return EXIT_REFUSED


def tell_fault(mailbox: Mailbox, error: Exception, *, pool_trusted: bool) -> None:
    """Tell the engine that this runner is over."""
    reason = f"{type(error).__name__}: {one_line(error)}"
    with suppress(EOFError):
        mailbox.send(Fault(reason=reason, pool_trusted=pool_trusted))
