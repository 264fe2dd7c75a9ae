"""Sends a plan: each request at its time, whatever the server does, and a watch on the client itself."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadgen.arrivals import Arrivals, ClosedLoop
from loadgen.client import Client
from loadgen.monitor import Monitor
from loadgen.plan import PlannedRequest
from loadgen.results import ClientHealth, RequestRecord
from loadgen.stats import percentile

_PROBE_S = 0.01
_CROWD = 64  # requests due at once that are sent before the streams already open are looked at
_LATE_S = 0.02  # beyond these two the client disturbs what it measures
_LAG_S = 0.02
_BUSY_FRACTION = 0.95
_WAIT_FRACTION = 0.1  # explains a saturated client; alone it is no sign of one
_SCHEDSTAT = Path("/proc/self/schedstat")  # Linux: ns run, ns waited for a core, slices; of the main thread


class RunClock:
    """Seconds since `start`."""

    def __init__(self) -> None:
        self._zero_s = time.monotonic()

    def start(self) -> None:
        self._zero_s = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._zero_s


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds that the process ran, that its main thread waited for a core, and that passed."""

    busy_s: float
    wait_s: float | None  # None where the system does not tell
    wall_s: float

    @classmethod
    def now(cls) -> "CpuTimes":
        try:
            wait_s = int(_SCHEDSTAT.read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            wait_s = None
        return cls(time.process_time(), wait_s, time.monotonic())

    def since(self, before: "CpuTimes") -> "CpuTimes":
        waits = None if self.wait_s is None or before.wait_s is None else self.wait_s - before.wait_s
        return CpuTimes(self.busy_s - before.busy_s, waits, self.wall_s - before.wall_s)

    @property
    def busy_fraction(self) -> float:
        return self.busy_s / self.wall_s if self.wall_s else 0.0

    @property
    def wait_fraction(self) -> float | None:
        return None if self.wait_s is None or not self.wall_s else self.wait_s / self.wall_s


class Runner:
    """One run of one plan. `stop` may be called at any time from the same loop."""

    def __init__(self, client: Client, clock: RunClock, monitor: Monitor) -> None:
        self._client = client
        self._clock = clock
        self._monitor = monitor
        self._records: list[RequestRecord] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._lateness_s: list[float] = []
        self._loop_lag_s: list[float] = []
        self.stopped = False

    def stop(self) -> None:
        """Send nothing more, and end what is open as interrupted."""
        self.stopped = True
        for task in self._tasks:
            task.cancel()

    async def run(
        self, plan: Sequence[PlannedRequest], arrivals: Arrivals, duration_s: float | None
    ) -> list[RequestRecord]:
        """Records of all that was sent, in the order of the plan. Starts the clock."""
        async with asyncio.TaskGroup() as group:
            probe = group.create_task(self._probe())
            self._clock.start()
            async with asyncio.TaskGroup() as senders:
                if isinstance(arrivals, ClosedLoop):
                    queue = iter(plan)
                    for _ in range(min(arrivals.users, len(plan))):
                        self._own(senders.create_task(self._user(queue, arrivals.think_s, duration_s)))
                else:
                    self._own(senders.create_task(self._send_on_time(plan, senders)))
            probe.cancel()
        return sorted(self._records, key=lambda record: record.index)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_on_time(self, plan: Sequence[PlannedRequest], senders: asyncio.TaskGroup) -> None:
        for request in plan:
            assert request.at_s is not None
            if len(self._tasks) % _CROWD == 0:
                await asyncio.sleep(0)
            # A timer of a millisecond's grain may ring early.
            while (delay_s := request.at_s - self._clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(delay_s)
            self._own(senders.create_task(self._send(request)))

    async def _user(self, queue: Iterator[PlannedRequest], think_s: float, duration_s: float | None) -> None:
        """One user of a closed loop: takes the next request when the last has ended."""
        for request in queue:
            if self.stopped or (duration_s is not None and self._clock() > duration_s):
                return
            await self._send(request)
            if think_s:
                await asyncio.sleep(think_s)

    async def _send(self, request: PlannedRequest) -> None:
        if request.at_s is not None:
            late_s = self._clock() - request.at_s
            self._lateness_s.append(late_s)
            self._monitor.lateness_s.append(late_s)
        self._records.append(await self._client.send(request))

    async def _probe(self) -> None:
        """Measure how long the loop keeps a timer waiting."""
        while True:
            before_s = self._clock()
            await asyncio.sleep(_PROBE_S)
            lag_s = max(0.0, self._clock() - before_s - _PROBE_S)
            self._loop_lag_s.append(lag_s)
            self._monitor.loop_lag_s.append(lag_s)

    def health(self, cpu: CpuTimes, max_connections: int | None) -> ClientHealth:
        """How the client did; `cpu` is of the time of the run."""
        late_s = sorted(self._lateness_s) or [0.0]
        lag_s = sorted(self._loop_lag_s) or [0.0]
        late_p99_s, lag_p99_s = percentile(late_s, 99), percentile(lag_s, 99)
        saturated = []
        if late_p99_s > _LATE_S:
            saturated.append(f"1 request in 100 was sent {late_p99_s * 1000:.0f} ms late or more")
        if lag_p99_s > _LAG_S:
            saturated.append(f"the event loop lagged {lag_p99_s * 1000:.0f} ms or more 1% of the time")
        if cpu.busy_fraction > _BUSY_FRACTION:
            saturated.append(f"its one core was busy {cpu.busy_fraction:.0%} of the time")
        if saturated and (cpu.wait_fraction or 0.0) > _WAIT_FRACTION:
            saturated.append(f"others kept it from a core {cpu.wait_fraction:.0%} of the time")
        if max_connections is not None and self._monitor.max_in_flight > max_connections:
            saturated.append(f"requests waited for one of its {max_connections} connections")
        return ClientHealth(
            lateness_p99_s=late_p99_s,
            lateness_max_s=late_s[-1],
            loop_lag_p99_s=lag_p99_s,
            loop_lag_max_s=lag_s[-1],
            cpu_fraction=cpu.busy_fraction,
            cpu_wait_fraction=cpu.wait_fraction,
            saturated=saturated,
        )
