"""What a model's host does when runners come and go, with scripts in place of runners."""

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence

import msgspec
import pytest

from engine.config import parse_config
from engine.lenders import Lenders
from engine.messages import (
    CostModel,
    Fault,
    FromRunner,
    Load,
    Loaded,
    ModelCard,
    NoGrammars,
    PromptSpec,
    Ready,
    Refused,
    Sampling,
    Submit,
)
from engine.model_host import CannotServe, ModelHost
from engine.restarts import MAX_FAILED_STARTS
from engine.scheduler import Scheduler
from tests.engine.fake_runner import FULL

CARD = ModelCard(
    name="m",
    architecture="None",
    source="dummy",
    tokenizer=None,
    vocab_size=256,
    max_model_len=256,
    bos_token_id=None,
    eos_token_ids=(),
    loaded_s=0,
)


class ScriptedRunner:
    """In place of a `RunnerClient`: ready at once, and gone when a test says so."""

    made: list["ScriptedRunner"]
    can_share: bool
    becomes_ready: bool

    def __init__(self, name: str, on_message: Callable[[FromRunner], None]) -> None:
        self.on_message = on_message
        self.messages_sent = self.messages_received = 0
        self.gone = asyncio.Event()
        self.made.append(self)

    async def run(self, first: msgspec.Struct) -> int:
        assert isinstance(first, Load)
        if self.becomes_ready:
            self.on_message(Loaded(card=CARD, layout=FULL, free_bytes=None))
            self.on_message(Ready(local_pages=8, load_s=0.0, cost=CostModel()))
            await self.gone.wait()
        return 1

    def send(self, message: msgspec.Struct) -> None:
        self.messages_sent += 1

    def kill(self) -> None:
        self.gone.set()

    def send_descriptors(self, descriptors: list[int]) -> None:
        """Nobody takes them."""

    def receive_descriptors(self) -> list[int]:
        return [os.memfd_create("pool")] if self.can_share else []


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedRunner]:
    class Scripted(ScriptedRunner):
        made, can_share, becomes_ready = [], True, True

    monkeypatch.setattr("engine.model_host.RunnerClient", Scripted)
    return Scripted


ONE_GPU = ({"name": "cuda:0", "memory": "1MiB"},)


def make_host(
    on_change: Callable[[], None] = lambda: None, devices: Sequence[dict[str, object]] = ONE_GPU
) -> ModelHost:
    config = parse_config(
        {
            "devices": list(devices),
            "memory": {"host": "64KiB"},
            "engine": {"restart_s": 0.001},
        }
    )
    return ModelHost(
        config,
        config.models[0],
        itertools.count(1),
        lambda: 0,
        on_change=on_change,
        on_work=lambda: None,
        lenders=Lenders(config),
        links={},
    )


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("can_share", [True, False])
@pytest.mark.parametrize("is_faulted", [True, False])
def test_a_pool_is_trusted_if_its_memory_is_still_there_and_no_fault_was_reported(
    runners: type[ScriptedRunner], monkeypatch: pytest.MonkeyPatch, can_share: bool, is_faulted: bool
) -> None:
    runners.can_share = can_share
    trusted: list[bool] = []

    def runner_lost(
        _self: Scheduler, _name: str, _now_ns: int, *, pool_trusted: bool, was_killed: bool
    ) -> None:
        assert not was_killed
        trusted.append(pool_trusted)

    monkeypatch.setattr(Scheduler, "runner_lost", runner_lost)

    async def lose_one() -> None:
        running = asyncio.create_task(make_host().run())
        await until(lambda: bool(runners.made))
        if is_faulted:
            runners.made[0].on_message(Fault(reason="a step failed", pool_trusted=False))
        runners.made[0].gone.set()
        await until(lambda: len(runners.made) == 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(lose_one())
    assert trusted == [can_share and not is_faulted]


def test_messages_are_counted_once_whatever_becomes_of_their_runner(runners: type[ScriptedRunner]) -> None:
    async def lose_one() -> None:
        host = make_host()
        running = asyncio.create_task(host.run())
        await until(lambda: bool(runners.made))
        first = runners.made[0]
        first.messages_sent = 40
        first.gone.set()
        while len(runners.made) < 2:
            assert host.messages_sent == 40
            await asyncio.sleep(0)
        assert host.messages_sent == 40 + runners.made[1].messages_sent
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(lose_one())


def test_a_runner_that_never_gets_ready_is_given_up(runners: type[ScriptedRunner]) -> None:
    runners.becomes_ready = False
    with pytest.raises(CannotServe, match="failed to start 3 times"):
        asyncio.run(make_host().run())
    assert len(runners.made) == 3


TWO_GPUS = (*ONE_GPU, {"name": "cuda:1", "memory": "1MiB"})


def test_a_runner_that_cannot_start_any_more_is_tried_again_while_another_serves(
    runners: type[ScriptedRunner],
) -> None:
    """Once none serves either, it is given up."""

    async def fail_again_and_again() -> None:
        announced: list[bool] = []
        host = make_host(lambda: announced.append(host.is_recovering), TWO_GPUS)
        running = asyncio.create_task(host.run())
        await until(lambda: host.is_ready)
        first, second = runners.made
        runners.becomes_ready = False
        first.gone.set()
        await until(lambda: len(runners.made) >= 2 + 2 * MAX_FAILED_STARTS)
        assert host.is_ready
        assert not any(announced)
        second.gone.set()
        with pytest.raises(CannotServe, match="failed to start"):
            await running
        assert announced[-1]

    asyncio.run(asyncio.wait_for(fail_again_and_again(), 30))


def test_a_runner_that_refuses_after_it_served_is_tried_again(
    runners: type[ScriptedRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runners.run

    async def refuse_the_second(runner: ScriptedRunner, first: msgspec.Struct) -> int:
        if len(runners.made) == 2:
            runner.on_message(Refused(reason="cuda:0: the driver is busy"))
            return 2
        return await run(runner, first)

    monkeypatch.setattr(runners, "run", refuse_the_second)

    async def lose_one() -> None:
        host = make_host()
        running = asyncio.create_task(host.run())
        await until(lambda: host.is_ready)
        runners.made[0].gone.set()
        await until(lambda: len(runners.made) == 3 and not host.is_recovering)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(lose_one())


def test_a_runner_that_says_nothing_while_prompts_run_there_is_replaced(
    runners: type[ScriptedRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.model_host.LOOK_S", 0.001)
    monkeypatch.setattr("engine.silence.SILENT_S", 20.0)  # looks

    async def fall_silent() -> None:
        host = make_host()
        running = asyncio.create_task(host.run())
        await until(lambda: host.is_ready)
        assert host.scheduler is not None
        spec = PromptSpec(prompt_id="p", input_ids=[1, 2, 3], sampling=Sampling(max_tokens=4))
        host.scheduler.submit("api", Submit(request_id="r", model="m", prompts=[spec]), spec, 0)
        host.send_plans()
        (device,) = host.scheduler.devices.values()
        assert device.running
        await until(lambda: len(runners.made) == 2 and not host.is_recovering)
        assert runners.made[0].gone.is_set()
        (prompt,) = host.scheduler.prompts.values()
        assert prompt.finish is None
        await asyncio.sleep(0.1)  # it waits: the new runner has nothing to say
        assert len(runners.made) == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(fall_silent())


def test_after_a_fault_nothing_more_is_read_from_its_pool_before_the_runner_has_ended(
    runners: type[ScriptedRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    distrusted: list[str] = []
    monkeypatch.setattr(Lenders, "distrust", lambda _self, name, _now_ns: distrusted.append(name))

    async def fail_one() -> None:
        host = make_host(devices=TWO_GPUS)
        running = asyncio.create_task(host.run())
        await until(lambda: len(host.scheduler.devices) == 2 if host.scheduler is not None else False)
        assert host.scheduler is not None
        runners.made[0].on_message(Fault(reason="a step failed", pool_trusted=False))
        assert not host.scheduler.devices["cuda:0"].is_up
        assert host.scheduler.devices["cuda:1"].is_up
        assert distrusted == [f"{host.name}@cuda:0"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(fail_one())


@pytest.mark.parametrize("is_early", [True, False])
def test_that_a_model_has_no_grammars_is_announced_with_its_card(
    runners: type[ScriptedRunner], is_early: bool
) -> None:
    async def learn() -> None:
        announced: list[str | None] = []
        host = make_host(lambda: announced.append(host.card and host.card.grammars_problem))
        runners.becomes_ready = not is_early
        running = asyncio.create_task(host.run())
        await until(lambda: bool(runners.made))
        runners.made[0].on_message(NoGrammars(reason="none at all"))
        runners.becomes_ready = True
        await until(lambda: host.is_ready)
        assert announced[-1] == "none at all"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(learn())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_longest_context_is_what_the_roomiest_device_holds(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    """Until it is known the model is not ready: nobody is refused for what another device could hold."""

    class Late(ScriptedRunner):
        made, can_share, becomes_ready = [], True, False

        async def run(self, first: msgspec.Struct) -> int:
            await self.gone.wait()
            return 1

    monkeypatch.setattr("engine.model_host.RunnerClient", Late)
    num_pages = {"cpu:0": 21, "cpu:1": 41}  # one of each is nobody's
    devices = [{"name": name, "memory": count * FULL.page_bytes} for name, count in num_pages.items()]

    async def load() -> None:
        host = make_host(devices=devices)
        running = asyncio.create_task(host.run())
        await until(lambda: len(Late.made) == 2)
        for number, index in enumerate(order):
            assert not host.is_ready
            Late.made[index].on_message(Loaded(card=CARD, layout=FULL, free_bytes=None))
            Late.made[index].on_message(Ready(local_pages=8, load_s=0.0, cost=CostModel()))
            assert host.is_ready == (number == 1)
        assert host.card is not None
        assert host.card.max_model_len == 40 * FULL.page_tokens
        assert host.scheduler is not None
        held = {name: device.max_context_tokens for name, device in host.scheduler.devices.items()}
        assert held == {"cpu:0": 20 * FULL.page_tokens, "cpu:1": 40 * FULL.page_tokens}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(load())
