import asyncio

from loadgen.arrivals import ClosedLoop, Constant, Poisson
from loadgen.monitor import Monitor
from loadgen.plan import PlannedRequest
from loadgen.results import Outcome, RequestRecord
from loadgen.runner import CpuTimes, RunClock, Runner
from tests.loadgen.records import record


class FakeClient:
    """Answers when told to; `sent` lists what was asked, `most_open` how many at once."""

    def __init__(self, *, holds: bool) -> None:
        self.sent: list[int] = []
        self.num_open = self.most_open = 0
        self._holds = holds
        self.free = asyncio.Event()

    async def send(self, request: PlannedRequest) -> RequestRecord:
        self.sent.append(request.index)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        outcome = Outcome.OK
        try:
            if self._holds:
                await self.free.wait()
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            outcome = Outcome.INTERRUPTED
        self.num_open -= 1
        return record(request.index, outcome=outcome)


def plan(count: int, step_s: float | None) -> list[PlannedRequest]:
    return [
        PlannedRequest(i, i + 2, None if step_s is None else i * step_s, "t", 1, 1, {}, b"")
        for i in range(count)
    ]


def runner_of(client: FakeClient) -> Runner:
    return Runner(client, RunClock(), Monitor(0, ["t"]))  # type: ignore[arg-type]


def test_an_open_loop_sends_whatever_the_server_does() -> None:
    async def main() -> tuple[FakeClient, list[RequestRecord]]:
        client = FakeClient(holds=True)
        run = asyncio.create_task(runner_of(client).run(plan(40, 0.0005), Constant(2000), None))
        while len(client.sent) < 40:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        client.free.set()
        return client, await run

    client, records = asyncio.run(main())
    assert client.most_open == 40
    assert [record.index for record in records] == list(range(40))


def test_a_closed_loop_keeps_its_users_and_no_more() -> None:
    async def main() -> tuple[FakeClient, list[RequestRecord]]:
        client = FakeClient(holds=False)
        return client, await runner_of(client).run(plan(30, None), ClosedLoop(4), None)

    client, records = asyncio.run(main())
    assert client.most_open == 4
    assert [record.index for record in records] == list(range(30))


def test_a_closed_loop_ends_with_its_duration() -> None:
    async def main() -> list[RequestRecord]:
        client = FakeClient(holds=False)
        return await runner_of(client).run(plan(10_000, None), ClosedLoop(1, think_s=0.01), 0.05)

    assert len(asyncio.run(main())) < 100


def test_stopping_interrupts_what_is_open_and_sends_no_more() -> None:
    async def main() -> tuple[FakeClient, list[RequestRecord]]:
        client = FakeClient(holds=True)
        runner = runner_of(client)
        requests = plan(3, 0.0)
        late = PlannedRequest(3, 5, 3600.0, "t", 1, 1, {}, b"")
        run = asyncio.create_task(runner.run([*requests, late], Poisson(1.0), None))
        while len(client.sent) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        runner.stop()
        assert runner.stopped
        return client, await run

    client, records = asyncio.run(main())
    assert client.sent == [0, 1, 2]
    assert [record.outcome for record in records] == [Outcome.INTERRUPTED] * 3


def test_health_names_every_sign_of_saturation() -> None:
    async def main() -> tuple[list[str], list[str]]:
        client = FakeClient(holds=False)
        monitor = Monitor(0, ["t"])
        clock = RunClock()
        runner = Runner(client, clock, monitor)  # type: ignore[arg-type]
        long_ago = [PlannedRequest(0, 2, -5.0, "t", 1, 1, {}, b"")]
        await runner.run(long_ago, Constant(1), None)
        for _ in range(3):
            monitor.on_sent("t")
        rested = runner_of(client).health(CpuTimes(1.0, 0.0, 10.0), None).saturated
        return runner.health(CpuTimes(9.9, 5.0, 10.0), max_connections=2).saturated, rested

    saturated, rested = asyncio.run(main())
    assert rested == []
    assert len(saturated) >= 3
    assert "was sent 5000 ms late" in saturated[0]
    assert any("busy 99%" in sign for sign in saturated)
    assert any("its 2 connections" in sign for sign in saturated)
    assert any("others kept it from a core 50%" in sign for sign in saturated)


def test_cpu_times_are_differences() -> None:
    spent = CpuTimes(3.0, 2.0, 14.0).since(CpuTimes(1.0, 1.5, 10.0))
    assert (spent.busy_fraction, spent.wait_fraction) == (0.5, 0.125)
    assert CpuTimes(3.0, None, 14.0).since(CpuTimes(1.0, 1.5, 10.0)).wait_fraction is None
    assert CpuTimes.now().since(CpuTimes.now()).busy_s <= 0
