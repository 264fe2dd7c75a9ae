"""Scripts of other web pages: none may ask us, unless the configuration lets them."""

from engine.config import ServerConfig
from tests.api.harness import Answer, Api, run, running_api

PAGE = "https://chat.example.com"


async def preflight(api: Api, origin: str) -> Answer:
    """What a browser sends before a script's chat request with a key."""
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    return await api.ask("OPTIONS", "/v1/chat/completions", headers=headers)


def test_no_page_is_let_in_by_default() -> None:
    async def test() -> None:
        async with running_api() as api:
            assert (await preflight(api, PAGE)).status == 405
            answer = await api.ask("GET", "/v1/models", headers={"origin": PAGE})
            assert "access-control-allow-origin" not in answer.headers

    run(test())


def test_a_page_that_is_named_may_ask_and_no_other() -> None:
    async def test() -> None:
        server = ServerConfig(port=0, allowed_origins=(PAGE,))
        async with running_api(server=server) as api:
            allowed = await preflight(api, PAGE)
            assert allowed.status == 200
            assert allowed.headers["access-control-allow-origin"] == PAGE
            assert "authorization" in allowed.headers["access-control-allow-headers"]
            refused = await preflight(api, "https://evil.example")
            assert refused.status == 400
            assert "access-control-allow-origin" not in refused.headers
            body = {"model": "fake", "prompt": "hi", "stream": True}
            answer = await api.post("/v1/completions", body, {"origin": PAGE})
            assert answer.events[-1] == "[DONE]"
            assert answer.headers["access-control-allow-origin"] == PAGE
            api.check_clean()

    run(test())


def test_all_pages_may_ask_and_read_errors_and_headers() -> None:
    async def test() -> None:
        server = ServerConfig(port=0, allowed_origins=("*",))
        async with running_api(server=server) as api:
            assert (await preflight(api, "null")).status == 200
            answer = await api.post("/v1/completions", {"model": "other"}, {"origin": PAGE})
            assert answer.status == 400
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["access-control-expose-headers"] == "*"

    run(test())
