"""POST /v1/responses: text in, text out. Nothing is stored, so no response can go on from an earlier one."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from api.answers import AnswerOptions, Fields
from api.choices import Choice, Piece
from api.generation import Generation
from api.reader import Reader
from api.routes.chat import answer_chat
from api.schemas import ResponsesRequest
from api.services import arrival_s, read_body, services_of
from api.sse import to_json

READER = Reader(ResponsesRequest)


async def responses(request: Request) -> Response:
    arrived_s = arrival_s()
    services = services_of(request)
    tenant = services.tenant_of(request)
    services.generations.check_accepting()
    body = await read_body(request, READER)
    make_format = partial(ResponsesFormat, asked=body)
    return await answer_chat(request, services, tenant, body.chat(), make_format, "resp", arrived_s)


class ResponsesFormat:
    """One message with one part of text, and the events that tell of its growth."""

    def __init__(self, generation: Generation, options: AnswerOptions, *, asked: ResponsesRequest) -> None:
        self._generation = generation
        self._created_s = options.created_s
        self._asked = asked
        self._text: list[str] = []
        self._num_events = 0
        self._place: Fields = {
            "item_id": "msg" + generation.plan.submit.request_id.removeprefix("resp"),
            "output_index": 0,
            "content_index": 0,
        }

    def opening(self) -> bytes:
        created: Fields = {"response": self._response("in_progress", [])}
        return (
            self._event("response.created", created)
            + self._event("response.in_progress", created)
            + self._item_event("added", self._message("in_progress", []))
            + self._event("response.content_part.added", self._place | {"part": _part("")})
        )

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        if not piece.text:
            return b""
        self._text.append(piece.text)
        delta = self._place | {"delta": piece.text, "logprobs": []}
        return self._event("response.output_text.delta", delta)

    def closing(self) -> bytes:
        text = "".join(self._text)
        status = self._status
        message = self._message(status, [_part(text)])
        return (
            self._event("response.output_text.done", self._place | {"text": text, "logprobs": []})
            + self._event("response.content_part.done", self._place | {"part": _part(text)})
            + self._item_event("done", message)
            + self._event(f"response.{status}", {"response": self._response(status, [message])})
        )

    async def whole(self) -> Fields:
        (pieces,) = await self._generation.complete()
        status = self._status
        text = "".join(piece.text for piece in pieces)
        return self._response(status, [self._message(status, [_part(text)])])

    @property
    def _status(self) -> str:
        return "incomplete" if self._generation.choices[0].finish_reason == "length" else "completed"

    def _event(self, kind: str, fields: Fields) -> bytes:
        data = {"type": kind, "sequence_number": self._num_events} | fields
        self._num_events += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json(data))

    def _item_event(self, kind: str, item: Fields) -> bytes:
        return self._event(f"response.output_item.{kind}", {"output_index": 0, "item": item})

    def _message(self, status: str, content: list[Fields]) -> Fields:
        return {
            "type": "message",
            "id": self._place["item_id"],
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _response(self, status: str, output: list[Fields]) -> Fields:
        sampling = self._generation.request.prompts[0].spec.sampling
        return {
            "id": self._generation.plan.submit.request_id,
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self._asked.instructions,
            "max_output_tokens": self._asked.max_output_tokens,
            "metadata": self._asked.metadata or {},
            "model": self._generation.plan.card.name,
            "output": output,
            "parallel_tool_calls": False,
            "temperature": sampling.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": sampling.top_p,
            "usage": None if status == "in_progress" else self._usage(),
        }

    def _usage(self) -> Fields:
        usage = self._generation.usage()
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


def _part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
