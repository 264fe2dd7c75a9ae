"""Every bad request gets OpenAI's error body, with the name of the field."""

import asyncio
from typing import Any

import pytest

from api.schemas import MAX_BIASES, MAX_STOP_CHARS, MAX_STOPS, MAX_TOKEN_LISTS, MAX_TOOLS
from engine.config import ByteSize, ServerConfig
from engine.messages import Rejected
from tests.api.harness import Answer, parse_answer, run, running_api, until


def check_error(answer: Answer, status: int, param: str | None) -> str:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "Traceback" not in error["message"]
    assert error["message"]
    return str(error["message"])


FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [300]}, "stop_token_ids"),
    ({"logit_bias": {"300": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"one": 1}}, "logit_bias"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logprobs": 21}, "logprobs"),
    ({"tokens_per_s": 0}, "tokens_per_s"),
    ({"tokens_per_s": 10_001}, "tokens_per_s"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["fine", ""]}, "prompt[1]"),
    ({"prompt": [1, "mixed"]}, "prompt"),
    ({"prompt": [1, 300]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [[1], [2, 10**12]]}, "prompt[1]"),
    ({"prompt": None}, "prompt"),
    ({"prompt": [[1]] * 129}, "prompt"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"nonsense": 1}}, "stream_options.nonsense"),
    ({"suffix": "x"}, "suffix"),
    ({"nonsense": 1}, "nonsense"),
    ({"best_of": 2}, "best_of"),
    ({"guided_regex": "(a|b"}, "guided_regex"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar"),
    ({"guided_json": {"type": "nothing"}}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": "(a|b"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "guided_regex"),
]


def test_fields_of_completions() -> None:
    async def test() -> None:
        async with running_api() as api:
            for fields, param in FIELDS:
                answer = await api.complete(**({"prompt": "hi"} | fields))
                check_error(answer, 400, param)
            assert not api.engine.submits
            api.check_clean()

    run(test())


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"n": 129}, "128"),
    ({"prompt": [[1]] * 129}, "128"),
    ({"max_tokens": 2**31}, str(2**31 - 1)),
    ({"logprobs": 21}, "20"),
    ({"prompt_logprobs": 21}, "20"),
    ({"stop": ["a"] * (MAX_STOPS + 1)}, str(MAX_STOPS)),
    ({"stop": "a" * (MAX_STOP_CHARS + 1)}, str(MAX_STOP_CHARS)),
    ({"stop_token_ids": [1] * (MAX_TOKEN_LISTS + 1)}, str(MAX_TOKEN_LISTS)),
    ({"logit_bias": {str(index): 1 for index in range(MAX_BIASES + 1)}}, str(MAX_BIASES)),
    ({"guided_regex": "a" * 65537}, "65536"),
    ({"cache_salt": "a" * 257}, "256"),
]


def test_limits_are_in_the_messages() -> None:
    async def test() -> None:
        async with running_api() as api:
            for fields, limit in LIMITS:
                answer = await api.complete(**({"prompt": "hi"} | fields))
                (field,) = fields
                assert limit in check_error(answer, 400, field)
            tools = [{"type": "function", "function": {"name": "f"}}] * (MAX_TOOLS + 1)
            assert str(MAX_TOOLS) in check_error(await api.chat(tools=tools), 400, "tools")

    run(test())


CHAT_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
    ({"audio": {}}, "audio"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"eos_token": ""}}, "chat_template_kwargs.eos_token"),
]


def test_fields_of_chat() -> None:
    async def test() -> None:
        async with running_api() as api:
            for fields, param in CHAT_FIELDS:
                body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]} | fields
                check_error(await api.post("/v1/chat/completions", body), 400, param)

    run(test())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "fake", "prompt": "x"} trailing',
        b'{"model": "fake", "prompt": "x", "temperature": NaN}',
        b'{"model": "fake", "prompt": "x\xff"}',
        b'{"model": "fake", "prompt": "\\ud800"}',
        b'{"model": "fake", "prompt": "x", "metadata": {"a": ' + b"[" * 100_000,
    ],
)
def test_bodies_that_are_no_json(body: bytes) -> None:
    async def test() -> None:
        async with running_api() as api:
            check_error(await api.post("/v1/completions", body), 400, None)

    run(test())


def test_numbers_beyond_floats() -> None:
    async def test() -> None:
        async with running_api() as api:
            body = b'{"model": "fake", "prompt": "x", "temperature": 1e400}'
            check_error(await api.post("/v1/completions", body), 400, "temperature")

    run(test())


def test_unknown_model_and_missing_model() -> None:
    async def test() -> None:
        async with running_api() as api:
            answer = await api.post("/v1/completions", {"model": "other", "prompt": "x"})
            assert "'other'" in check_error(answer, 404, "model")
            assert answer.json["error"]["code"] == "model_not_found"
            check_error(await api.post("/v1/completions", {"prompt": "x"}), 400, "model")
            check_error(await api.get("/v1/models/other"), 404, "model")

    run(test())


def test_prompt_over_the_context_says_both_numbers() -> None:
    async def test() -> None:
        async with running_api() as api:
            message = check_error(await api.complete("x" * 999), 400, "prompt")
            assert "1000" in message
            message = check_error(await api.complete([5] * 2345), 400, "prompt")
            assert "2345" in message
            assert "1000" in message
            assert (await api.complete("x" * 998, max_tokens=100)).json["usage"]["completion_tokens"] == 1

    run(test())


def test_routes_and_methods() -> None:
    async def test() -> None:
        async with running_api() as api:
            check_error(await api.get("/nowhere"), 404, None)
            answer = await api.get("/v1/completions")
            check_error(answer, 405, None)
            assert answer.headers["allow"] == "POST"

    run(test())


def test_a_full_queue_is_429_with_retry_after() -> None:
    async def test() -> None:
        reject = Rejected(request_id="", code="queue_full", message="4096 prompts wait", retry_after_s=7.0)
        async with running_api(reject=reject) as api:
            for stream in (False, True):
                answer = await api.complete(stream=stream)
                check_error(answer, 429, None)
                assert answer.headers["retry-after"] == "7"
                assert answer.json["error"]["type"] == "rate_limit_error"
                api.check_clean()

    run(test())


SMALL_BODY = ServerConfig(port=0, max_body=ByteSize(10_000))


def test_a_declared_body_over_the_limit_is_refused_unread() -> None:
    async def test() -> None:
        async with running_api(server=SMALL_BODY) as api:
            reader, writer = await api.send(
                "POST", "/v1/completions", b"{", headers={"content-length": "20000"}
            )
            check_error(parse_answer(await reader.read()), 413, None)
            writer.close()

    run(test())


def test_a_chunked_body_over_the_limit_is_refused_before_its_end() -> None:
    """The client goes on uploading: the answer must come, and the connection must end."""

    async def test() -> None:
        async with running_api(server=SMALL_BODY) as api:
            reader, writer = await api.connect()
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
            for _ in range(100):
                writer.write(chunk)
                await asyncio.sleep(0)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413 ")
            writer.close()
            await until(lambda: not api.server.num_connections)

    run(test())


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.connection.BODY_S", 0.1)

    async def test() -> None:
        async with running_api() as api:
            reader, writer = await api.send(
                "POST", "/v1/completions", b'{"mod', headers={"content-length": "100"}
            )
            check_error(parse_answer(await reader.read()), 408, None)
            writer.close()

    run(test())


def test_a_bug_shows_nothing_of_its_inside() -> None:
    async def test() -> None:
        async with running_api() as api:
            object.__setattr__(api.services, "generations", None)
            message = check_error(await api.complete(), 500, None)
            assert "NoneType" not in message

    run(test())


@pytest.mark.parametrize(
    ("head", "status", "says"),
    [
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 200_000, 431, "65536"),
        (b"nonsense\r\n\r\n", 400, "not valid HTTP"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "not valid HTTP"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", 400, "not valid HTTP"),
    ],
)
def test_what_is_no_http(head: bytes, status: int, says: str) -> None:
    async def test() -> None:
        async with running_api() as api:
            reader, writer = await api.connect()
            writer.write(head)
            assert says in check_error(parse_answer(await reader.read()), status, None)
            writer.close()

    run(test())
