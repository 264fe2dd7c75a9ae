"""A blocking client of the engine, for the tools of an operator: one question, one answer."""

import os
import socket
import time
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from engine.messages import Hello, ToApi
from engine.wire import MessagePipe

TIMEOUT_S = 10.0

Answer = TypeVar("Answer", bound=msgspec.Struct)


class NoAnswer(Exception):
    """No engine listens, or it did not answer in time. One line for the operator."""


class Questions:
    """A connection with the engine that listens at `path`. `name` says what we are."""

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise NoAnswer(f"no engine listens at {path}") from None
        self._pipe: MessagePipe[ToApi] = MessagePipe(self._socket, ToApi)
        self._pipe.send(Hello(api_id=f"{name} {os.getpid()}"))  # an id is one process's at a time

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, question: msgspec.Struct, *kinds: type[Answer]) -> Answer:
        """Send the question and wait for an answer of one of these kinds. Raises NoAnswer."""
        deadline_s = time.monotonic() + TIMEOUT_S
        try:
            self._pipe.send(question)
            while time.monotonic() < deadline_s:
                for message in self._pipe.receive(0.5):
                    if isinstance(message, kinds):
                        return message
        except (OSError, EOFError):
            raise NoAnswer(f"the engine at {self._path} went away") from None
        raise NoAnswer(f"the engine at {self._path} does not answer")
