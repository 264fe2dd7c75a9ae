"""One run from its plan to its records: warm-up, the run itself, and the display beside it."""

import asyncio
import contextlib
import gc
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp
import msgspec
from rich.console import Console

from loadgen.arrivals import Arrivals
from loadgen.client import Client, open_session
from loadgen.display import watch
from loadgen.monitor import Monitor
from loadgen.plan import PlannedRequest
from loadgen.results import ClientHealth, RequestRecord
from loadgen.runner import CpuTimes, RunClock, Runner

_COLLECT_EVERY = 50_000  # allocations; a stream makes few cycles, if any


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the server is and how long it may be silent."""

    base_url: str  # ends in /v1
    endpoint: str
    stall_s: float
    timeout_s: float | None
    max_connections: int | None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.base_url}/{self.endpoint}"

    def open(self) -> aiohttp.ClientSession:
        return open_session(
            max_connections=self.max_connections, stall_s=self.stall_s, timeout_s=self.timeout_s
        )


@dataclass(frozen=True, slots=True)
class RunResult:
    records: list[RequestRecord]
    health: ClientHealth
    interrupted: bool


def raise_file_limit() -> int:
    """Allow as many open sockets as the system lets this process have; returns that number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems refuse their own hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class _ModelCard(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ModelCard]


async def first_model(connection: Connection) -> str | None:
    """The first model that the server lists; None if it does not answer."""
    try:
        async with (
            connection.open() as session,
            session.get(f"{connection.base_url}/models", headers=connection.headers) as response,
        ):
            cards = msgspec.json.decode(await response.read(), type=_ModelList).data
    except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
        return None
    return cards[0].id if cards else None


async def warm_up(connection: Connection, requests: Sequence[PlannedRequest]) -> list[RequestRecord]:
    """Send requests one after another, outside of any run."""
    monitor = Monitor(len(requests), sorted({request.tenant for request in requests}))
    async with connection.open() as session:
        client = Client(session, connection.url, RunClock(), monitor)
        return [await client.send(request) for request in requests]


async def run_plan(
    connection: Connection,
    plan: Sequence[PlannedRequest],
    arrivals: Arrivals,
    duration_s: float | None,
    tenants: Sequence[str],
    console: Console,
) -> RunResult:
    """Carry out the plan. Ctrl-C ends it early, with records of what was done."""
    clock = RunClock()
    monitor = Monitor(len(plan), list(tenants))
    async with connection.open() as session, asyncio.TaskGroup() as group:
        runner = Runner(Client(session, connection.url, clock, monitor), clock, monitor)
        watcher = group.create_task(watch(console, monitor, clock))
        with _quiet_collector(), _on_interrupt(runner.stop):
            before = CpuTimes.now()
            records = await runner.run(plan, arrivals, duration_s)
            cpu = CpuTimes.now().since(before)
        watcher.cancel()
    return RunResult(records, runner.health(cpu, connection.max_connections), runner.stopped)


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Hide the plan from the garbage collector and let that run seldom: its walks hold up the loop."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextlib.contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on the first Ctrl-C; a second one ends the program at once."""
    loop = asyncio.get_running_loop()

    def handle() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    loop.add_signal_handler(signal.SIGINT, handle)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
