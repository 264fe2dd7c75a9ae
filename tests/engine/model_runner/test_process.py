"""Runners over real sockets, with a tiny random model on the CPU in fp32: every token is exact."""

import signal
from array import array
from collections.abc import Sequence

import pytest

from engine.messages import (
    Attach,
    CostModel,
    EndReason,
    Extension,
    Fault,
    LinkSpec,
    Load,
    Loaded,
    Refused,
    Shutdown,
)
from engine.model_runner.batch import StepRow
from engine.model_runner.cpu_executor import CpuExecutor, FinishedStep
from engine.model_runner.devices import Attached, CpuDevice
from engine.model_runner.sources.progress import OnProgress
from tests.engine.model_runner.harness import (
    HOST,
    LOCAL,
    Client,
    Kind,
    Memory,
    load,
    make_slice,
    move,
    reference,
    runner_in_thread,
    runner_process,
)

PROMPT = [(7 * i + 3) % 250 for i in range(21)]


def tables(client: Client, first: int, count: int) -> list[list[int]]:
    """A page table of `count` pages for each layer group, from page `first`."""
    assert client.layout is not None
    groups = range(len(client.layout.groups))
    return [list(range(first + g * count, first + (g + 1) * count)) for g in groups]


def flat(page_tables: list[list[int]]) -> list[int]:
    return [page for table in page_tables for page in table]


def test_a_slice_gives_the_tokens_of_generate() -> None:
    with runner_in_thread() as client:
        memory = client.start()
        client.plan(make_slice(1, PROMPT, tables(client, 1, 5), max_new=12))
        end = client.until_end(1)
        memory.close()
    assert (end.reason, end.computed) == (EndReason.USED, len(PROMPT) + 11)
    assert client.tokens[1] == reference(PROMPT, 12)
    assert client.fed[1] == end.computed


def test_a_killed_runner_is_replaced_on_the_same_pool_without_a_prefill() -> None:
    expected = reference(PROMPT, 12)
    with runner_process() as (client, process):
        memory = client.start()
        process.send_signal(signal.SIGINT)  # of the whole process group: the engine ends its runners itself
        process.send_signal(signal.SIGTERM)
        client.plan(make_slice(1, PROMPT, tables(client, 1, 5), max_new=6))
        computed = client.until_end(1).computed
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert client.tokens[1] == expected[:6]
    with runner_in_thread() as successor:
        successor.start(memory)
        last = expected[5]
        going_on = make_slice(
            2, [last], tables(successor, 1, 5), start=computed, num_prompt=len(PROMPT), max_new=6
        )
        successor.plan(going_on)
        successor.until_end(2)
        memory.close()
    assert successor.tokens[2] == expected[6:]
    assert successor.fed[2] == 6


def test_chunks_extensions_and_neighbours_change_no_token() -> None:
    other = [(11 * i + 5) % 250 for i in range(40)]
    with runner_in_thread() as client:
        memory = client.start()
        one = make_slice(1, PROMPT, tables(client, 1, 3), max_new=3)
        two = make_slice(2, other, tables(client, 20, 6), max_new=8, in_parts=True)
        pages = [array("i", [40 + g]) for g in range(len(tables(client, 0, 1)))]
        client.plan(one, two, extensions=[Extension(slice_id=3, extends=1, pages=pages, max_new=5)])
        assert client.until_end(3).reason is EndReason.USED
        client.until_end(2)
        memory.close()
    assert client.tokens[1] + client.tokens[3] == reference(PROMPT, 8)
    assert client.tokens[2] == reference(other, 8)


def test_stop_tokens_and_max_tokens_end_a_slice_in_the_runner() -> None:
    expected = reference(PROMPT, 8)
    stop = expected[3]
    with runner_in_thread() as client:
        memory = client.start()
        client.plan(
            make_slice(1, PROMPT, tables(client, 1, 5), max_new=12, stop=(stop,)),
            make_slice(2, PROMPT, tables(client, 20, 5), max_new=12, max_tokens=5),
        )
        assert client.until_end(1).reason is EndReason.STOP
        assert client.until_end(2).reason is EndReason.LENGTH
        memory.close()
    assert client.tokens[1] == expected[: expected.index(stop) + 1]
    assert client.tokens[2] == expected[:5]


def test_a_slice_that_is_ended_goes_on_later_where_it_stopped() -> None:
    with runner_in_thread() as client:
        memory = client.start()
        pages = tables(client, 1, 25)
        client.plan(make_slice(1, PROMPT, pages, max_new=170))
        while not client.tokens.get(1):
            client.report()
        client.plan(ends=[1])
        end = client.until_end(1)
        assert end.reason is EndReason.ENDED
        last = client.tokens[1][-1]
        client.plan(make_slice(2, [last], pages, start=end.computed, num_prompt=len(PROMPT), max_new=4))
        client.until_end(2)
        memory.close()
    tokens = client.tokens[1] + client.tokens[2]
    assert tokens == reference(PROMPT, len(tokens))


def test_a_cancelled_slice_is_told_once_and_its_pages_serve_another() -> None:
    with runner_in_thread() as client:
        memory = client.start()
        pages = tables(client, 1, 25)
        client.plan(make_slice(1, PROMPT, pages, max_new=170))
        client.report()
        client.plan(make_slice(2, PROMPT[::-1], pages, max_new=4, after=1), cancels=[1])
        assert client.until_end(1).reason is EndReason.CANCELLED
        client.plan(extensions=[Extension(slice_id=3, extends=1, pages=[], max_new=5)], ends=[1], cancels=[1])
        client.until_end(2)
        memory.close()
    assert client.tokens[2] == reference(PROMPT[::-1], 4)
    assert sorted(client.ends) == [1, 2]


def test_a_context_that_went_to_the_host_and_back_goes_on_exactly() -> None:
    slow = LinkSpec(src=HOST, dst=LOCAL, delay_s=0.05)
    with runner_in_thread() as client:
        memory = client.start(None, slow)
        here, host, there = tables(client, 1, 5), tables(client, 10, 5), tables(client, 50, 5)
        client.plan(make_slice(1, PROMPT, here, max_new=5))
        computed = client.until_end(1).computed
        client.plan(moves=[move(7, LOCAL, HOST, flat(here), flat(host))])
        client.until_moved(7)
        garbage = make_slice(2, PROMPT[::-1], here, max_new=12)
        back = move(8, HOST, LOCAL, flat(host), flat(there))
        last = client.tokens[1][-1]
        again = make_slice(
            3, [last], there, start=computed, num_prompt=len(PROMPT), max_new=5, wait_moves=[8]
        )
        client.plan(garbage, again, moves=[back])
        client.until_end(3)
        memory.close()
    assert client.tokens[1] + client.tokens[3] == reference(PROMPT, 10)
    assert client.fed[3] == 5
    assert client.moves[8].duration_ns >= 50_000_000


def test_time_that_compute_waits_for_a_move_is_counted() -> None:
    slow = LinkSpec(src=HOST, dst=LOCAL, delay_s=0.05)
    with runner_in_thread() as client:
        memory = client.start(None, slow)
        client.plan(moves=[move(1, HOST, LOCAL, [1], [90])])
        assert client.until_moved(1).wait_ns == 0, "nothing waited for it"
        waiting = make_slice(2, PROMPT, tables(client, 1, 5), max_new=1, wait_moves=[3])
        client.plan(waiting, moves=[move(3, HOST, LOCAL, [1], [90])])
        end = client.until_moved(3)
        client.until_end(2)
        memory.close()
    assert 0 < end.wait_ns <= end.duration_ns + 50_000_000


def test_a_slice_waiting_for_a_move_can_be_cancelled() -> None:
    with runner_in_thread() as client:
        memory = client.start(None, LinkSpec(src=HOST, dst=LOCAL, delay_s=3600.0))
        waiting = make_slice(2, [5], tables(client, 1, 5), start=9, max_new=1, wait_moves=[3])
        client.plan(waiting, moves=[move(3, HOST, LOCAL, [1], [1])])
        client.plan(cancels=[2])
        end = client.until_end(2)
        memory.close()
    assert (end.reason, end.computed) == (EndReason.CANCELLED, 9)


def test_a_bad_slice_fails_alone() -> None:
    with runner_in_thread() as client:
        memory = client.start()
        client.plan(
            make_slice(1, [5, 320], tables(client, 1, 5), max_new=2),
            make_slice(2, PROMPT, tables(client, 20, 5), max_new=2),
        )
        assert client.until_end(1).reason is EndReason.FAILED
        assert client.until_end(2).reason is EndReason.USED
        memory.close()
    assert client.ends[1].error == "token ids must be from 0 to 319, got 5 to 320"


@pytest.mark.parametrize(
    ("wished", "reason"),
    [
        (load("/nowhere/model"), "/nowhere/model: no such file or folder"),
        (load(device="cuda:9"), "cuda:9: torch finds no NVIDIA GPU here"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(wished: Load, reason: str) -> None:
    with runner_in_thread(status=2) as client:
        client.send(wished)
        assert client.expect(Refused).reason == reason


def test_a_pool_without_enough_memory_behind_it_is_refused() -> None:
    with runner_in_thread(status=2) as client:
        client.send(load())
        page_bytes = client.expect(Loaded).layout.page_bytes
        memory = Memory(page_bytes // 2)
        client.send(Memory(page_bytes).attach())
        client.send_descriptors(memory)
        assert "came without memory of that size" in client.expect(Refused).reason
        memory.close()


def test_shutdown_ends_the_runner_before_and_after_it_is_ready() -> None:
    with runner_in_thread() as client:
        client.send(load())
        client.expect(Loaded)
        client.send(Shutdown())
    with runner_in_thread() as client:
        memory = client.start()
        client.plan(make_slice(1, PROMPT, tables(client, 1, 25), max_new=170))
        client.report()
        client.send(Shutdown())
        with pytest.raises(EOFError):
            client.until_end(1)
        memory.close()
    tokens = client.tokens[1]
    assert tokens == reference(PROMPT, len(tokens))


class BrokenDevice(CpuDevice):
    """Fails when it is to attach its pools."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def attach(self, attach: Attach, descriptors: Sequence[int], on_progress: OnProgress) -> Attached:
        raise self._error

    def is_fault(self, error: BaseException) -> bool:
        return "illegal access" in str(error)


def answer_to_attach(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Kind]) -> Kind:
    """What a runner says whose device raises `error`."""
    device = BrokenDevice(error)
    monkeypatch.setattr("engine.model_runner.process.open_device", lambda name, threads: device)
    with runner_in_thread(status=1 if kind is Fault else 2) as client:
        client.send(load())
        memory = Memory(client.expect(Loaded).layout.page_bytes)
        client.send(memory.attach())
        client.send_descriptors(memory)
        answer = client.expect(kind)
        memory.close()
    return answer


@pytest.mark.parametrize(("reason", "pool_trusted"), [("illegal access", False), ("a bug", True)])
def test_a_fault_says_whether_the_pool_is_good(
    monkeypatch: pytest.MonkeyPatch, reason: str, pool_trusted: bool
) -> None:
    fault = answer_to_attach(monkeypatch, RuntimeError(reason), Fault)
    assert (fault.reason, fault.pool_trusted) == (f"RuntimeError: {reason}", pool_trusted)


def test_too_little_memory_is_refused_by_the_devices_name(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = answer_to_attach(monkeypatch, MemoryError("8 GiB wanted"), Refused)
    assert refused.reason == "cpu is out of memory: 8 GiB wanted"


class FailingExecutor(CpuExecutor):
    """Works until the runner is ready, and fails in the first step after that."""

    is_ready = False

    def measure_cost(self) -> CostModel:
        cost = super().measure_cost()
        self.is_ready = True
        return cost

    def launch(self, rows: Sequence[StepRow]) -> FinishedStep:
        if self.is_ready:
            raise MemoryError("DefaultCPUAllocator: 8 GiB wanted")
        return super().launch(rows)


def test_too_little_memory_while_serving_is_a_fault_that_harms_no_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine would stop for a `Refused`; after a `Fault` another runner goes on in the same pool."""
    monkeypatch.setattr("engine.model_runner.devices.CpuExecutor", FailingExecutor)
    monkeypatch.setattr(CpuDevice, "is_fault", lambda _self, _error: True)
    with runner_in_thread(status=1) as client:
        memory = client.start()
        client.plan(make_slice(1, PROMPT, tables(client, 1, 5), max_new=3))
        fault = client.expect(Fault)
        memory.close()
    assert fault.reason == "MemoryError: DefaultCPUAllocator: 8 GiB wanted"
    assert fault.pool_trusted
