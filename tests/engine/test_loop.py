"""The engine's loop, without runners."""

import asyncio
from pathlib import Path

import pytest

from engine.config import parse_config
from engine.lenders import Lenders
from engine.loop import Engine
from engine.model_host import ModelHost


def make_engine(folder: Path) -> Engine:
    config = parse_config(
        {
            "devices": [{"name": "cpu", "memory": "1MiB"}],
            "memory": {"host": "1MiB"},
            "engine": {"socket": str(folder / "engine.sock")},
        }
    )
    return Engine(config)


@pytest.fixture(autouse=True)
def no_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(_: ModelHost) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(ModelHost, "run", wait)


def test_an_engine_whose_turn_fails_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Lenders, now_ns: int) -> None:
        raise AssertionError(f"at {now_ns} ns the books do not agree")

    monkeypatch.setattr(Lenders, "tick", fail)
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(make_engine(tmp_path).run())
    assert raised.group_contains(AssertionError, match="the books do not agree")


def test_a_turn_that_has_cause_for_another_lets_messages_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tmp_path)
    turns, many = 0, asyncio.Event()

    def give_cause(lenders: Lenders, now_ns: int) -> None:
        nonlocal turns
        turns += 1
        lenders.lending.num_changes += 1
        if turns == 100:
            many.set()
        assert turns < 10_000, "nothing else happens any more"

    monkeypatch.setattr(Lenders, "tick", give_cause)

    async def run_for_a_while() -> tuple[BaseException | None]:
        running = asyncio.create_task(engine.run())
        await many.wait()
        running.cancel()
        return await asyncio.gather(running, return_exceptions=True)

    (outcome,) = asyncio.run(run_for_a_while())
    assert isinstance(outcome, asyncio.CancelledError)
