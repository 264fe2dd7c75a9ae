"""What the engine answers before a runner is up."""

import itertools

from engine.admission import Admission
from engine.answers import Answers
from engine.config import parse_config
from engine.lenders import Lenders
from engine.messages import Resize
from engine.model_host import ModelHost
from engine.pool_sizes import PoolSizes


def make() -> Answers:
    config = parse_config({"devices": [{"name": "cpu", "memory": "1MiB"}], "models": [{"name": "m"}]})
    lenders = Lenders(config)
    host = ModelHost(config, config.models[0], itertools.count(1), int, int, int, lenders, {})
    return Answers("e", {host.name: host}, Admission(config.queue, int), lenders, PoolSizes(lenders))


def test_a_model_that_loads_is_named_as_such() -> None:
    welcome = make().welcome()
    assert welcome.engine_id == "e"
    assert welcome.ready == []
    assert list(welcome.loading) == ["m"]


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
