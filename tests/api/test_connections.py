"""Clients that leave, engines that die, readers that do not read, and the end of the server."""

import asyncio
import logging
from functools import partial
from typing import cast

import msgspec
import pytest

from api import streams
from api.engine_client import MAX_ENGINES
from api.worker import shut_down
from engine.config import ServerConfig
from engine.messages import PromptSpec
from tests.api.fake_engine import CARD, say
from tests.api.harness import parse_answer, run, running_api, until

ENDLESS = say("x" * 900)
NUM_FLOOD = 9_000_000
BIG = msgspec.structs.replace(CARD, max_model_len=10 * NUM_FLOOD)


def flood(spec: PromptSpec) -> list[int]:
    """More than all buffers between two ends of a connection hold."""
    return [120] * NUM_FLOOD


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_prompt(stream: bool) -> None:
    async def test() -> None:
        async with running_api(script=ENDLESS, step_s=0.01) as api:
            body = {"model": "fake", "prompt": "x", "max_tokens": 900, "stream": stream}
            _, writer = await api.send("POST", "/v1/completions", body)
            await until(lambda: api.engine.running)
            prompt_id = next(iter(api.engine.running))
            writer.close()
            await until(lambda: api.engine.aborted, 3.0)
            assert api.engine.aborted == [prompt_id]
            await until(lambda: not api.services.client.open_requests)
            api.check_clean()

    run(test())


def test_a_stop_string_ends_the_prompt_in_the_engine() -> None:
    async def test() -> None:
        async with running_api(script=say("one two three" * 50), step_s=0.001) as api:
            answer = await api.complete(stop=["o thr"], max_tokens=500)
            (choice,) = answer.json["choices"]
            assert choice["text"] == "one tw"
            assert choice["finish_reason"] == "stop"
            assert answer.json["usage"]["completion_tokens"] == len("one two thr")
            assert len(api.engine.aborted) == 1
            api.check_clean()

    run(test())


@pytest.mark.parametrize("stream", [True, False])
def test_an_engine_that_dies_is_a_pause(stream: bool) -> None:
    async def test() -> None:
        text = "".join(chr(97 + index % 26) for index in range(200))
        async with running_api(script=say(text), step_s=0.002) as api:
            asking = asyncio.create_task(api.complete(max_tokens=300, seed=7, stream=stream))
            await until(lambda: any(running.position > 20 for running in api.engine.running.values()))
            await api.engine.stop()
            first = api.engine.submits[-1]
            await asyncio.sleep(0.05)
            await api.engine.start()
            answer = await asking
            second = api.engine.submits[-1]
            assert second.resubmitted
            assert not first.resubmitted
            assert second.request_id == first.request_id
            (spec,) = second.prompts
            assert spec.output_ids == list(text.encode()[: len(spec.output_ids)])
            assert len(spec.output_ids) > 20
            assert spec.service_ns == 1000 * len(spec.output_ids)
            if stream:
                chunks = answer.events[:-1]
                assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
            else:
                assert answer.json["choices"][0]["text"] == text
                assert answer.json["usage"]["completion_tokens"] == 201
            api.check_clean()

    run(test())


def test_a_request_that_no_engine_survives_is_failed_at_last() -> None:
    async def test() -> None:
        async with running_api(paused=True) as api:
            asking = asyncio.create_task(api.complete())
            for _ in range(MAX_ENGINES):
                await until(lambda: api.engine.running)
                await api.engine.stop()
                await until(lambda: not api.services.client.is_connected)
                await api.engine.start()
            answer = await asyncio.wait_for(asking, 10)
            assert answer.status == 500
            assert answer.json["error"]["message"].startswith("the engine ended 4 times")
            await until(lambda: api.services.client.is_connected)
            assert not api.engine.running
            api.check_clean()

    run(test())


def test_a_token_shows_that_a_request_is_not_why_engines_end() -> None:
    async def test() -> None:
        async with running_api(paused=True) as api:
            asking = asyncio.create_task(api.complete(max_tokens=20))
            await until(lambda: api.engine.running)
            (request,) = api.services.client._requests.values()

            def has_come(num_tokens: int) -> bool:
                return len(request.prompts[0].output_ids) == num_tokens

            for count in range(MAX_ENGINES + 1):
                await until(lambda: api.engine.running)
                api.engine.step()
                await until(partial(has_come, count + 1))
                await api.engine.stop()
                await until(lambda: not api.services.client.is_connected)
                await api.engine.start()
            api.engine.paused = False
            assert (await asking).json["choices"][0]["text"] == "hello world"

    run(test())


def test_an_engine_that_comes_back_without_the_model_ends_its_requests() -> None:
    async def test() -> None:
        async with running_api(script=ENDLESS, step_s=0.01) as api:
            asking = asyncio.create_task(api.complete(max_tokens=900))
            await until(lambda: api.engine.running)
            await api.engine.stop()
            api.engine.cards = [msgspec.structs.replace(CARD, name="other")]
            await api.engine.start()
            answer = await asyncio.wait_for(asking, 10)
            assert answer.status == 500
            assert "'fake' is not served any more" in answer.json["error"]["message"]
            api.check_clean()

    run(test())


def test_tokens_that_come_twice_are_shown_once() -> None:
    async def test() -> None:
        async with running_api(script=say("abcdefgh"), paused=True) as api:
            asking = asyncio.create_task(api.complete(max_tokens=20))
            await until(lambda: api.engine.running)
            api.engine.step()
            api.engine.step()
            (running,) = api.engine.running.values()
            running.position = 0
            api.engine.per_step = 3
            for _ in range(3):
                api.engine.step()
            assert (await asking).json["choices"][0]["text"] == "abcdefgh"

    run(test())


def test_without_an_engine_a_request_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.engine_client.PRESENCE_WAIT_S", 0.05)

    async def test() -> None:
        async with running_api(start_engine=False) as api:
            answer = await api.complete()
            assert answer.status == 503
            assert answer.headers["retry-after"] == "2"
            assert (await api.get("/health")).status == 200
            assert (await api.get("/ready")).status == 503
            await api.engine.start()
            await until(lambda: api.services.client.is_connected)
            assert (await api.get("/ready")).status == 200
            assert (await api.complete()).status == 200

    run(test())


def test_ready_tells_of_models_whose_runners_are_all_gone_and_they_take_requests() -> None:
    async def test() -> None:
        other = msgspec.structs.replace(CARD, name="other")
        why = "the runner of cpu ended with status 1; starting it again in 4 s"
        async with running_api(cards=[CARD, other]) as api:
            api.engine.recovering = {"fake": why}
            api.engine.announce()
            await until(lambda: api.services.client.recovering)
            ready = await api.get("/ready")
            assert ready.status == 200
            assert (ready.json["models"], ready.json["recovering"]) == (["other"], {"fake": why})
            api.engine.recovering = {"fake": why, "other": why}
            api.engine.announce()
            await until(lambda: len(api.services.client.recovering) == 2)
            ready = await api.get("/ready")
            assert (ready.status, ready.json["status"]) == (503, "recovering")
            assert (await api.get("/health")).status == 200
            assert (await api.complete()).status == 200

    run(test())


def test_a_model_that_is_loading_is_503_and_ready_says_so() -> None:
    async def test() -> None:
        async with running_api(cards=[], loading={"fake": "reading weights"}) as api:
            answer = await api.complete()
            assert answer.status == 503
            assert answer.json["error"]["code"] == "model_loading"
            assert "reading weights" in answer.json["error"]["message"]
            ready = await api.get("/ready")
            assert ready.status == 503
            assert ready.json["loading"] == {"fake": "reading weights"}
            api.engine.cards = [CARD]
            api.engine.announce()
            await until(lambda: api.services.client.models)
            assert (await api.get("/ready")).status == 200

    run(test())


def test_a_reader_that_does_not_read_is_cut_off_and_holds_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "STALL_S", 0.3)
    monkeypatch.setattr(streams, "WATCH_S", 0.05)

    async def test() -> None:
        async with running_api(cards=[BIG], script=flood, per_step=50_000) as api:
            body = {"model": "fake", "prompt": "x", "max_tokens": NUM_FLOOD, "stream": True}
            _, writer = await api.send("POST", "/v1/completions", body, reads=False)
            with caplog.at_level(logging.WARNING):
                await until(lambda: api.engine.aborted, 20)
            assert "its reader took nothing" in caplog.text
            await until(lambda: not api.server.num_connections)
            api.check_clean()
            writer.close()
            assert (await api.complete(max_tokens=3)).status == 200
            metrics = await api.get("/metrics")
            assert b"fairslice:cut_streams_total 1.0" in metrics.body

    run(test())


def test_pings_while_a_prompt_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "PING_S", 0.05)
    monkeypatch.setattr(streams, "WATCH_S", 0.02)

    async def test() -> None:
        async with running_api(paused=True) as api:
            body = {"model": "fake", "prompt": "x", "stream": True}
            reader, writer = await api.send("POST", "/v1/completions", body)
            assert b": waiting" in await reader.readuntil(b": waiting\n\n")
            api.engine.paused = False
            assert (await reader.read()).count(b"[DONE]") == 1
            writer.close()

    run(test())


def test_drain_lets_streams_finish_and_refuses_new_work() -> None:
    async def test() -> None:
        async with running_api(script=say("y" * 100), step_s=0.002) as api:
            running = asyncio.create_task(api.complete(max_tokens=100, stream=True))
            await until(lambda: api.engine.running)
            ending = asyncio.create_task(shut_down(api.server, api.services))
            await asyncio.sleep(0)
            refused = await api.complete()
            assert refused.status == 503
            assert refused.json["error"]["code"] == "shutting_down"
            assert (await api.get("/ready")).status == 503
            assert (await running).events[-1] == "[DONE]"
            await ending

    run(test())


def test_a_drain_waits_for_a_request_that_the_engine_has_not_answered_yet() -> None:
    async def test() -> None:
        async with running_api() as api:
            generations = api.services.generations
            await api.engine.stop()
            asking = asyncio.create_task(api.complete(max_tokens=20))
            await until(lambda: api.services.client.open_requests)
            generations.is_draining = True
            assert not await generations.wait_idle(0.05)
            await api.engine.start()
            assert await generations.wait_idle(10)
            assert (await asking).status == 200
            api.check_clean()

    run(test())


def test_a_drain_lets_a_slow_reader_have_a_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.worker.CLOSE_GRACE_S", 0.0)

    async def test() -> None:
        async with running_api(cards=[BIG], script=flood, per_step=NUM_FLOOD) as api:
            body = {"model": "fake", "prompt": "x", "max_tokens": NUM_FLOOD}
            reader, writer = await api.send("POST", "/v1/completions", body, reads=False)
            await until(lambda: api.engine.submits and not len(api.services.generations), 20)
            ending = asyncio.create_task(shut_down(api.server, api.services))
            await asyncio.wait([ending], timeout=0.1)
            cast(asyncio.ReadTransport, writer.transport).resume_reading()
            answer = parse_answer(await reader.read())
            assert len(answer.body) > NUM_FLOOD
            await ending
            writer.close()

    run(test())


def test_the_deadline_of_a_drain_is_not_held_by_a_stuck_reader() -> None:

    async def test() -> None:
        server = ServerConfig(port=0, drain_s=0.2)
        async with running_api(server=server, cards=[BIG], script=flood, per_step=10_000) as api:
            body = {"model": "fake", "prompt": "x", "max_tokens": NUM_FLOOD, "stream": True}
            _, stuck = await api.send("POST", "/v1/completions", body, reads=False)
            reader, writer = await api.send("POST", "/v1/completions", body)
            reading = asyncio.create_task(reader.read())
            await until(lambda: any(s.sending_since_s for s in api.services.streams), 20)
            await asyncio.wait_for(shut_down(api.server, api.services), 10)
            answer = parse_answer(await reading)
            assert answer.events[-1]["error"]["code"] == "shutting_down"
            assert api.server.num_connections == 0
            api.check_clean()
            stuck.close()
            writer.close()

    run(test())


def test_a_client_that_leaves_while_the_engine_is_away_is_aborted_later() -> None:
    async def test() -> None:
        async with running_api(script=ENDLESS, step_s=0.01) as api:
            body = {"model": "fake", "prompt": "x", "max_tokens": 900, "stream": True}
            _, writer = await api.send("POST", "/v1/completions", body)
            await until(lambda: api.engine.running)
            prompt_id = next(iter(api.engine.running))
            await api.engine.stop()
            await until(lambda: not api.services.client.is_connected)
            writer.close()
            await until(lambda: not api.services.client.open_requests)
            await api.engine.start()
            await until(lambda: api.engine.aborted)
            assert api.engine.aborted == [prompt_id]

    run(test())


def test_an_abort_in_flight_when_the_connection_breaks_is_sent_again() -> None:
    async def test() -> None:
        async with running_api(script=ENDLESS, step_s=0.01) as api:
            body = {"model": "fake", "prompt": "x", "max_tokens": 900, "stream": True}
            _, writer = await api.send("POST", "/v1/completions", body)
            await until(lambda: api.engine.running)
            prompt_id = next(iter(api.engine.running))
            writer.close()
            await until(lambda: api.engine.aborted)
            await api.engine.stop()
            api.engine.aborted.clear()  # as if it had never been read
            await api.engine.start()
            await until(lambda: api.engine.aborted)
            assert api.engine.aborted == [prompt_id]

    run(test())


def test_a_stream_that_cannot_begin_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("api.routes.completions.CompletionFormat", broken)

    async def test() -> None:
        async with running_api(script=ENDLESS, step_s=0.01) as api:
            assert (await api.complete(stream=True)).status == 500
            await until(lambda: api.engine.aborted)
            api.check_clean()

    run(test())


def test_a_stream_over_http_1_0_is_not_chunked() -> None:
    async def test() -> None:
        async with running_api() as api:
            body = msgspec.json.encode({"model": "fake", "prompt": "x", "stream": True})
            reader, writer = await api.connect()
            head = f"POST /v1/completions HTTP/1.0\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = parse_answer(await reader.read())
            assert "transfer-encoding" not in answer.headers
            assert answer.events[-1] == "[DONE]"
            writer.close()

    run(test())
