"""The log's line for each request, and its id."""

import json
import logging

import pytest

from api.logs import JsonFormatter, TextFormatter
from tests.api.harness import Api, run, running_api, until

SECRET = "nobody may read this"


async def lines_after(api: Api, caplog: pytest.LogCaptureFixture, count: int) -> list[logging.LogRecord]:
    """A line is written once the answer has left."""

    def lines() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "api.requests"]

    await until(lambda: len(lines()) == count)
    return lines()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line_without_its_text(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    async def test() -> None:
        async with running_api() as api:
            body = {"model": "fake", "prompt": SECRET, "stream": stream}
            answer = await api.post("/v1/completions", body, {"x-request-id": "mine-1"})
            assert answer.headers["x-request-id"] == "mine-1"
            (record,) = await lines_after(api, caplog, 1)
            line = json.loads(JsonFormatter().format(record))
            assert line["request_id"] == "mine-1"
            assert line["message"] == "POST /v1/completions"
            assert (line["status"], line["tenant"], line["model"]) == (200, "default", "fake")
            assert (line["prompt_tokens"], line["completion_tokens"]) == (len(SECRET) + 1, 12)
            assert line["finish"] == "stop"
            assert line["generation"].startswith("cmpl-")
            text = TextFormatter().format(record)
            assert "request_id=mine-1 status=200" in text
            assert not any(SECRET in JsonFormatter().format(record) for record in caplog.records)
            assert not any("hello world" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.INFO):
        run(test())


def test_every_answer_bears_an_id_errors_included(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with running_api() as api:
            for status, answer in [
                (404, await api.ask("GET", "/no%0Awhere", headers={"x-request-id": "mine-2"})),
                (400, await api.post("/v1/completions", b"{", {"x-request-id": "mine-2"})),
            ]:
                assert (answer.status, answer.headers["x-request-id"]) == (status, "mine-2")
            assert (await api.complete()).headers["x-request-id"].startswith("cmpl-")
            for bad in ("x" * 200, "caf\u00e9", ""):
                answer = await api.ask("GET", "/v1/models", headers={"x-request-id": bad})
                assert answer.headers["x-request-id"].startswith("req-")
            object.__setattr__(api.services, "text_models", None)
            body = {"model": "fake", "prompt": "x"}
            answer = await api.post("/v1/completions", body, {"x-request-id": "mine-3"})
            assert (answer.status, answer.headers["x-request-id"]) == (500, "mine-3")
            records = await lines_after(api, caplog, 7)
            assert all("\n" not in TextFormatter().format(record) for record in records)

    with caplog.at_level(logging.INFO):
        run(test())
