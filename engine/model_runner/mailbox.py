"""The runner's end of the connection with the engine."""

import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from engine.messages import FromRunner, NoGrammars, Progress, ToRunner
from engine.wire import MessagePipe


class Mailbox:
    """Messages from and to the engine. Raises EOFError everywhere when the engine is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pipe: MessagePipe[ToRunner] = MessagePipe(sock, ToRunner)
        self._received: deque[ToRunner] = deque()
        self._sending = threading.Lock()

    def send(self, message: FromRunner) -> None:
        """From any thread."""
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError as error:
            raise EOFError("the engine is gone") from error

    def tell_progress(self, stage: str, fraction: float | None) -> None:
        """Say how getting ready goes on."""
        self.send(Progress(stage=stage, fraction=fraction))

    def tell_no_grammars(self, reason: str) -> None:
        """Say that no answer can be held to a grammar, if the engine is still there; from any thread."""
        with suppress(EOFError):
            self.send(NoGrammars(reason=reason))

    def next(self) -> ToRunner:
        """The next message; waits for it."""
        while not self._received:
            self._receive(None)
        return self._received.popleft()

    def all(self) -> list[ToRunner]:
        """What is there, without waiting."""
        self._receive(0.0)
        messages = list(self._received)
        self._received.clear()
        return messages

    def wait(self, descriptors: Sequence[int], timeout_s: float | None) -> None:
        """Wait until a message is there, one of `descriptors` is readable, or the time is over."""
        if self._received:
            return
        select.select([self._socket.fileno(), *descriptors], [], [], timeout_s)

    def _receive(self, timeout_s: float | None) -> None:
        try:
            self._received.extend(self._pipe.receive(timeout_s))
        except OSError as error:
            raise EOFError("the engine is gone") from error
