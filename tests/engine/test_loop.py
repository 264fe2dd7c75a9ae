"""The engine's loop, without runners."""

import asyncio
from pathlib import Path

import pytest

from engine.config import parse_config
from engine.lenders import Lenders
from engine.loop import MAX_MESSAGE_TOKENS, Engine, in_parts
from engine.messages import Hello, PromptSpec, Rejected, Sampling, Submit, ToApi, TokenDelta, Welcome
from engine.model_host import ModelHost
from engine.wire import MessageStream


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


def test_a_request_for_a_model_that_loads_is_refused_as_the_api_refuses_it(tmp_path: Path) -> None:
    async def ask() -> Rejected:
        running = asyncio.create_task(make_engine(tmp_path).run())
        answers: asyncio.Queue[ToApi] = asyncio.Queue()
        stream: MessageStream[ToApi] = MessageStream(ToApi, answers.put_nowait, lambda error: None)
        while not (tmp_path / "engine.sock").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().create_unix_connection(lambda: stream, str(tmp_path / "engine.sock"))
        stream.send(Hello(api_id="a"))
        spec = PromptSpec(prompt_id="p", input_ids=[1], sampling=Sampling(max_tokens=1))
        stream.send(Submit(request_id="r", model="gemma-3-270m", prompts=[spec]))
        while not isinstance(answer := await answers.get(), Rejected):
            assert isinstance(answer, Welcome)
        stream.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return answer

    refusal = asyncio.run(asyncio.wait_for(ask(), 30))
    assert refusal.code == "model_loading"
    assert "starting" in refusal.message
    assert refusal.retry_after_s is not None


def test_what_an_api_missed_is_cut_into_messages_that_can_be_sent() -> None:
    deltas = [
        TokenDelta(prompt_id=str(number), start=0, ids=[7] * length)
        for number, length in enumerate((3, MAX_MESSAGE_TOKENS, 5, MAX_MESSAGE_TOKENS + 1, 0, 9))
    ]
    parts = in_parts(deltas)
    assert [delta for part in parts for delta in part] == deltas
    assert [[delta.prompt_id for delta in part] for part in parts] == [["0"], ["1"], ["2"], ["3"], ["4", "5"]]
    assert in_parts(deltas[:1]) == [deltas[:1]]
