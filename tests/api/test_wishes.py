"""What a request may wish of the scheduler reaches the engine, also when it is submitted again."""

from api.open_requests import OpenRequest
from engine.messages import Submit
from tests.api.harness import run, running_api


def wishes(submit: Submit) -> tuple[int, int | None, float | None, str]:
    return submit.nice, submit.latency_ns, submit.tokens_per_s, submit.cache_salt


def test_wishes_reach_the_engine_and_are_kept() -> None:
    async def test() -> None:
        async with running_api() as api:
            await api.complete(priority=-5, latency_ms=40, tokens_per_s=62.5, cache_salt="x")
            await api.chat()
            wished, plain = api.engine.submits
            assert wishes(wished) == (-5, 40_000_000, 62.5, wished.cache_salt)
            assert wishes(plain) == (0, None, None, plain.cache_salt)
            assert wished.cache_salt != plain.cache_salt
            assert wishes(OpenRequest(wished).submission()) == wishes(wished)

    run(test())


def test_a_speed_beyond_the_configured_one_is_refused_with_its_limit() -> None:
    async def test() -> None:
        async with running_api() as api:
            answer = await api.chat(tokens_per_s=100.5)
            assert answer.status == 400
            assert answer.json["error"]["param"] == "tokens_per_s"
            assert answer.json["error"]["message"] == "100.5 tokens/s is over the limit of 100 here"
            assert (await api.chat(tokens_per_s=100)).status == 200

    run(test())
