"""What the engine answers."""

import asyncio
import itertools

from engine.admission import Admission
from engine.answers import Answers
from engine.config import parse_config
from engine.lenders import Lenders
from engine.messages import Resize
from engine.model_host import ModelHost
from engine.pool_sizes import PoolSizes
from tests.engine.test_model_host import ScriptedRunner, make_host, runners, until

__all__ = ["runners"]  # a fixture


def answers_of(host: ModelHost) -> Answers:
    config = parse_config({})
    lenders = Lenders(config)
    return Answers("e", {host.name: host}, Admission(config.queue, int), lenders, PoolSizes(lenders))


def make() -> Answers:
    """Of an engine before a runner is up."""
    config = parse_config({"devices": [{"name": "cpu", "memory": "1MiB"}], "models": [{"name": "m"}]})
    return answers_of(
        ModelHost(config, config.models[0], itertools.count(1), int, int, int, Lenders(config), {})
    )


def test_a_model_that_loads_is_named_as_such() -> None:
    welcome = make().welcome()
    assert welcome.engine_id == "e"
    assert welcome.ready == []
    assert list(welcome.loading) == ["m"]


def test_a_model_whose_runners_are_all_gone_is_ready_and_recovering(
    runners: type[ScriptedRunner],
) -> None:
    async def lose_the_only_runner() -> None:
        host = make_host()
        answers = answers_of(host)
        running = asyncio.create_task(host.run())
        await until(lambda: host.is_ready)
        assert answers.welcome().recovering == {}
        runners.becomes_ready = False
        runners.made[0].gone.set()
        await until(lambda: host.is_recovering)
        welcome = answers.welcome()
        assert [card.name for card in welcome.ready] == ["m"]
        assert welcome.recovering == {host.name: host.progress}
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(lose_the_only_runner())


def test_stats_carry_the_serial_of_their_question() -> None:
    stats = make().stats(7)
    assert stats.serial == 7
    assert "pool_sizes" in stats.status


def test_a_wish_for_another_size_of_nothing_is_refused_by_name() -> None:
    answer = make().resize(Resize(serial=3, device="cuda:7", num_bytes=1))
    assert answer.serial == 3
    assert answer.num_bytes == 0
    assert answer.error is not None
    assert "cuda:7" in answer.error
