"""Checking clients' grammars in processes of their own, within bounds of time and memory."""

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from contextlib import suppress

import msgspec

from api.errors import ApiError, unavailable
from engine.messages import Grammar

logger = logging.getLogger(__name__)

MAX_PROCESSES = 2
CHECK_CPU_S = 2.0  # of the checker's own time: neither its start nor a busy machine counts against a grammar
WAIT_S = 60.0  # for a checker that has not had so much CPU time by then
MAX_REMEMBERED = 256

TOO_COSTLY = "it takes too much time or memory"
# How too much time, stack or memory ends a checker. Whatever else ends one, its grammar is not to blame.
_COSTLY_ENDS = {-signal.SIGPROF, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT}


class GrammarChecks:
    """Starts a checker when it is needed and keeps it for the next grammar; one to which a grammar costs too
    much ends itself.
    Remembers the grammars that were found good: programs use the same few again and again."""

    def __init__(self) -> None:
        self._idle: list[Process] = []
        self._places = asyncio.Semaphore(MAX_PROCESSES)
        self._good: OrderedDict[Grammar, None] = OrderedDict()

    async def problem_with(self, grammar: Grammar) -> str:
        """What is wrong with the grammar; nothing if it can be used. Raises ApiError (503) if that cannot be
        found out, or not in time."""
        if grammar in self._good:
            self._good.move_to_end(grammar)
            return ""
        async with self._places:
            problem = await self._ask(grammar)
        if not problem:
            self._good[grammar] = None
            if len(self._good) > MAX_REMEMBERED:
                self._good.popitem(last=False)
        return problem

    async def close(self) -> None:
        """End the checkers that wait."""
        while self._idle:
            await _end(self._idle.pop())

    async def _ask(self, grammar: Grammar) -> str:
        process = await self._take()
        answer = await _answer_of(process, msgspec.json.encode(grammar) + b"\n")
        if answer:
            self._idle.append(process)
            return msgspec.json.decode(answer, type=str)
        status = await _end(process)
        if status in _COSTLY_ENDS:
            return TOO_COSTLY
        raise _failed(f"ended with status {status}")

    async def _take(self) -> Process:
        """A checker that waits and lives, or a new one. Raises ApiError."""
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        try:
            process = await _start()
        except OSError as error:
            raise _failed(f"cannot be started: {error}") from None
        if not await _answer_of(process):
            raise _failed(f"ended with status {await _end(process)} before it was ready")
        return process


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "api.grammar_checker", f"--cpu-s={CHECK_CPU_S}"), stdin=PIPE, stdout=PIPE
    )


async def _answer_of(process: Process, question: bytes = b"") -> bytes:
    """The next line of a checker; nothing if it has ended. Raises ApiError if none comes in time, which ends
    the checker, as does a caller who goes away."""
    assert process.stdin is not None
    assert process.stdout is not None
    if not process.stdin.is_closing():  # it has ended: uvloop takes nothing for a pipe that is closed
        process.stdin.write(question)
    try:
        async with asyncio.timeout(WAIT_S):
            return await process.stdout.readline()
    except TimeoutError:
        await _end(process)
        raise unavailable("The grammar could not be checked in time", "overloaded") from None
    except BaseException:
        await _end(process)
        raise


def _failed(how: str) -> ApiError:
    """A checker has failed, for which no grammar is to blame."""
    logger.error("a grammar checker %s", how)
    return unavailable("The grammar could not be checked: its checker failed", "overloaded")


async def _end(process: Process) -> int:
    """Have a checker end, if it has not. Returns its exit status."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.communicate()
    return await process.wait()
