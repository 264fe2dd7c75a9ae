"""The official client's calls, as a program would make them."""

import asyncio
from collections.abc import Awaitable, Callable

import openai
import pytest
from openai import AsyncOpenAI

from engine.byte_tokenizer import BOS_ID
from engine.messages import Rejected
from tests.api.fake_engine import CARD, EOS, say
from tests.api.harness import Api, run, running_api, until

MESSAGES = [{"role": "user", "content": "Say it"}]


def client_of(api: Api, **options: object) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="none", **options)  # type: ignore[arg-type]


def with_client(test: Callable[[Api, AsyncOpenAI], Awaitable[None]], **engine: object) -> None:
    async def body() -> None:
        async with running_api(**engine) as api:
            async with client_of(api, max_retries=0) as client:
                await test(api, client)
            api.check_clean()

    run(body())


def test_models() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        assert [(model.id, model.created) async for model in client.models.list()] == [
            ("fake", CARD.loaded_s)
        ]
        assert (await client.models.retrieve("fake")).id == "fake"

    with_client(test)


def test_chat() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="fake", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello world"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len("hello world") + 1
        (spec,) = api.engine.submits[0].prompts
        assert bytes(spec.input_ids[1:]).decode() == "User: Say it\nAssistant:"
        assert spec.sampling.max_tokens == 1000 - len(spec.input_ids)

    with_client(test)


def test_answers_are_taken_back_with_every_field_that_the_client_gives_them() -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}

    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="fake", messages=MESSAGES)  # type: ignore[arg-type]
        said = answer.choices[0].message.model_dump()
        assert {"annotations", "audio", "function_call"} <= said.keys()
        messages = [*MESSAGES, said | {"tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": "a", "content": "x"}]
        await client.chat.completions.create(model="fake", messages=messages)  # type: ignore[arg-type]
        response = await client.responses.create(model="fake", input="Say it")
        items = [item.model_dump() for item in response.output]
        again = [*MESSAGES, *items, *MESSAGES]
        await client.responses.create(model="fake", input=again)  # type: ignore[arg-type]

    with_client(test)


def test_thoughts_are_content() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="fake", messages=MESSAGES)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "<think>hm</think>yes"
        assert not hasattr(answer.choices[0].message, "reasoning_content")

    with_client(test, script=say("<think>hm</think>yes"))


def test_chat_stream_with_usage() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, n=2
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        for index in range(2):
            deltas = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].index == index]
            assert "".join(delta or "" for delta in deltas) == "hello world"
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.completion_tokens == 24
        assert usage.prompt_tokens == len("User: Say it\nAssistant:") + 1
        assert all(chunk.usage is None for chunk in chunks[:-1])
        first, second = api.engine.submits[0].prompts
        assert second.sampling.seed == (first.sampling.seed + 1) % 2**63

    with_client(test)


def test_chat_logprobs() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(
            model="fake", messages=MESSAGES, logprobs=True, top_logprobs=2, max_completion_tokens=3
        )
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert [entry.token for entry in logprobs.content] == ["h", "e", "l"]
        assert [entry.bytes for entry in logprobs.content] == [[104], [101], [108]]
        assert [top.token for top in logprobs.content[0].top_logprobs] == ["h", "i"]

    with_client(test)


def test_completion_echo_with_logprobs() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.completions.create(
            model="fake", prompt="ab", echo=True, logprobs=1, max_tokens=2
        )
        choice = answer.choices[0]
        assert choice.text == "abhe"
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["<bos>", "a", "b", "h", "e"]
        assert choice.logprobs.token_logprobs == [None, -0.5, -0.5, -0.5, -0.5]
        assert choice.logprobs.text_offset == [0, 0, 1, 2, 3]

    with_client(test)


def test_the_alternatives_of_a_completion_have_its_own_token_among_them() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        for num_top, expected in ((0, {"h": -0.5}), (2, {"h": -0.5, "i": -1.5})):
            answer = await client.completions.create(
                model="fake", prompt="ab", logprobs=num_top, max_tokens=1
            )
            logprobs = answer.choices[0].logprobs
            assert logprobs is not None
            assert logprobs.top_logprobs == [expected]

    with_client(test)


def test_several_prompts_and_choices() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.completions.create(model="fake", prompt=["abc", "de"], n=2, max_tokens=4)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in answer.choices] == ["ABC\0", "ABC\0", "DE\0\0", "DE\0\0"]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == 7
        assert answer.usage.completion_tokens == 16

    def shout(spec: object) -> list[int]:
        ids = spec.input_ids[1:]  # type: ignore[attr-defined]
        return [*bytes(ids).decode().upper().encode(), 0, 0, 0]

    with_client(test, script=shout)


def test_json_schema_becomes_a_grammar() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
        await client.chat.completions.create(
            model="fake", messages=MESSAGES, response_format={"type": "json_schema", "json_schema": schema}
        )
        grammar = api.engine.submits[0].prompts[0].sampling.grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        assert grammar.source == '{"type":"object"}'

    with_client(test)


@pytest.mark.parametrize(
    ("extra", "kind", "source"),
    [
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}'),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["yes", 'a "no"']}}, "lark", 'start: "yes" | "a \\"no\\""'),
        ({"guided_choice": ["yes"]}, "lark", 'start: "yes"'),
        ({"guided_grammar": 'start: "x"'}, "lark", 'start: "x"'),
    ],
)
def test_structured_outputs_as_vllm_has_them(extra: dict[str, object], kind: str, source: str) -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        await client.chat.completions.create(model="fake", messages=MESSAGES, extra_body=extra)
        grammar = api.engine.submits[0].prompts[0].sampling.grammar
        assert grammar is not None
        assert (grammar.kind, grammar.source) == (kind, source)

    with_client(test)


def test_special_tokens_are_seen_where_they_are_asked_for() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        for skips, text in ((None, "hi"), (True, "hi"), (False, "h<bos>i")):
            extra = {} if skips is None else {"skip_special_tokens": skips}
            answer = await client.completions.create(model="fake", prompt="x", extra_body=extra)
            assert answer.choices[0].text == text

    with_client(test, script=lambda spec: [*b"h", BOS_ID, *b"i", EOS])


def test_errors_are_the_clients_own() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as not_found:
            await client.completions.create(model="other", prompt="x")
        assert not_found.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model="fake", prompt="x", temperature=9)
        assert bad.value.param == "temperature"
        api.engine.reject = Rejected(request_id="", code="queue_full", message="full")
        with pytest.raises(openai.RateLimitError):
            await client.completions.create(model="fake", prompt="x")

    with_client(test)


def test_its_retries_get_through() -> None:
    async def test() -> None:
        reject = Rejected(request_id="", code="queue_full", message="full", retry_after_s=1.0)
        async with running_api(reject=reject) as api, client_of(api, max_retries=3) as client:
            asking = asyncio.create_task(client.completions.create(model="fake", prompt="x"))
            await until(lambda: api.engine.submits)
            api.engine.reject = None
            assert (await asking).choices[0].text == "hello world"

    run(test())


def test_an_error_in_a_stream_is_raised() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        stream = await client.completions.create(model="fake", prompt="x", stream=True, max_tokens=99)
        chunks = aiter(stream)
        await anext(chunks)
        api.engine.fail_all("the device is gone")
        with pytest.raises(openai.APIError, match="the device is gone"):
            async for _ in chunks:
                pass

    with_client(test, script=say("x" * 50), step_s=0.01)


def test_responses() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        answer = await client.responses.create(model="fake", input="Say it", instructions="Be brief.")
        assert answer.output_text == "hello world"
        assert answer.status == "completed"
        assert answer.usage is not None
        assert answer.usage.output_tokens == 12
        (spec,) = api.engine.submits[0].prompts
        assert bytes(spec.input_ids[1:]).decode() == "System: Be brief.\nUser: Say it\nAssistant:"
        cut = await client.responses.create(model="fake", input=[answer.output[0]], max_output_tokens=3)  # type: ignore[list-item]
        assert cut.status == "incomplete"
        assert cut.output_text == "hel"
        with pytest.raises(openai.BadRequestError) as bad:
            await client.responses.create(model="fake", input="x", previous_response_id="resp-1")
        assert bad.value.param == "previous_response_id"

    with_client(test)


def test_responses_stream() -> None:
    async def test(api: Api, client: AsyncOpenAI) -> None:
        async with client.responses.stream(model="fake", input="Say it") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == final.output_text == "hello world"
        assert events[-1].type == "response.completed"

    with_client(test)
