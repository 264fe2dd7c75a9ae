"""/v1/completions against a fake engine."""

from tests.api.harness import run, running_api


def test_streams_text_and_ends_with_done() -> None:
    async def test() -> None:
        async with running_api() as api:
            answer = await api.complete(stream=True, max_tokens=50)
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            *chunks, done = answer.events
            assert done == "[DONE]"
            assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello world"
            assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
            api.check_clean()

    run(test())


def test_answers_whole() -> None:
    async def test() -> None:
        async with running_api() as api:
            answer = await api.complete(max_tokens=5)
            assert answer.status == 200
            assert answer.json["choices"] == [
                {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
            ]
            assert answer.json["usage"] == {
                "prompt_tokens": 3,
                "completion_tokens": 5,
                "total_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 0},
            }
            api.check_clean()

    run(test())
