"""The OpenAPI document, made from the very types that requests are checked against."""

from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from api import schemas
from api.live import LiveState
from api.schemas import Strict

API_VERSION = "1"
REF = "#/components/schemas/"

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One operation. `streams`: with `stream` it answers with server-sent events. `errors` are the statuses
    that it may answer with beside those that every operation has."""

    method: str
    path: str
    summary: str
    answer: Json
    body: type[Strict] | None = None
    streams: bool = False
    needs_key: bool = True
    errors: tuple[int, ...] = ()
    content_type: str = "application/json"
    query: Json = field(default_factory=dict)


def _object(required: dict[str, Json], **more: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": required | more}


def _list(item: Json) -> Json:
    return {"type": "array", "items": item}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
EVENT: Json = {"type": "object", "required": ["data"], "properties": {"event": TEXT, "data": TEXT}}
ANYTHING: Json = {"description": "Any JSON value"}
FINISH: Json = _or_null({"enum": ["stop", "length", "tool_calls"]})
USAGE = _object(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": _object({"cached_tokens": COUNT}),
    }
)
MODEL = _object(
    {"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT, "max_model_len": COUNT}
)
CALL = _object(
    {
        "id": TEXT,
        "type": {"const": "function"},
        "function": _object({"name": TEXT, "arguments": TEXT}),
    }
)
MESSAGE = _object(
    {"role": {"const": "assistant"}, "content": _or_null(TEXT), "refusal": {"type": "null"}},
    tool_calls=_list(CALL),
)


def _completion(name: str, choice: dict[str, Json]) -> Json:
    common: dict[str, Json] = {"index": COUNT, "logprobs": ANYTHING, "finish_reason": FINISH}
    return _object(
        {
            "id": TEXT,
            "object": {"const": name},
            "created": COUNT,
            "model": TEXT,
            "choices": _list(_object(common | choice, prompt_logprobs=ANYTHING)),
            "usage": USAGE,
        }
    )


ANSWERS: dict[str, Json] = {
    "Error": _object(
        {"error": _object({"message": TEXT, "type": TEXT, "param": _or_null(TEXT), "code": _or_null(TEXT)})}
    ),
    "Model": MODEL,
    "Models": _object({"object": {"const": "list"}, "data": _list({"$ref": REF + "Model"})}),
    "Completion": _completion("text_completion", {"text": TEXT}),
    "ChatCompletion": _completion("chat.completion", {"message": MESSAGE}),
    "Response": _object(
        {
            "id": TEXT,
            "object": {"const": "response"},
            "created_at": COUNT,
            "status": {"enum": ["completed", "incomplete"]},
            "model": TEXT,
            "output": _list(_object({"type": {"const": "message"}, "content": _list(ANYTHING)})),
            "usage": _object({"input_tokens": COUNT, "output_tokens": COUNT, "total_tokens": COUNT}),
        }
    ),
    "Tokens": _object(
        {
            "count": COUNT,
            "max_model_len": COUNT,
            "tokens": _list(COUNT),
            "token_strs": _or_null(_list(TEXT)),
        }
    ),
    "Text": _object({"prompt": TEXT}),
    "Health": _object({"status": TEXT}),
    "Ready": _object(
        {"status": TEXT}, models=_list(TEXT), loading={"type": "object"}, recovering={"type": "object"}
    ),
}


def _answer(name: str) -> Json:
    return {"$ref": REF + name}


GENERATION_ERRORS = (400, 404, 408, 413, 429, 500, 503)

ENDPOINTS = (
    Endpoint("get", "/v1/models", "The models that are ready.", _answer("Models")),
    Endpoint("get", "/v1/models/{model}", "One model.", _answer("Model"), errors=(404,)),
    Endpoint(
        "post",
        "/v1/completions",
        "Continue a text.",
        _answer("Completion"),
        schemas.CompletionRequest,
        streams=True,
        errors=GENERATION_ERRORS,
    ),
    Endpoint(
        "post",
        "/v1/chat/completions",
        "Answer a conversation.",
        _answer("ChatCompletion"),
        schemas.ChatRequest,
        streams=True,
        errors=GENERATION_ERRORS,
    ),
    Endpoint(
        "post",
        "/v1/responses",
        "Answer a conversation, in the form of OpenAI's Responses. Nothing is stored.",
        _answer("Response"),
        schemas.ResponsesRequest,
        streams=True,
        errors=GENERATION_ERRORS,
    ),
    Endpoint(
        "post",
        "/tokenize",
        "The tokens that a prompt or a conversation is served as.",
        _answer("Tokens"),
        schemas.TokenizeRequest,
        errors=(400, 404, 408, 413, 500, 503),
    ),
    Endpoint(
        "post",
        "/detokenize",
        "The text of tokens.",
        _answer("Text"),
        schemas.DetokenizeRequest,
        errors=(400, 404, 408, 413, 500, 503),
    ),
    Endpoint("get", "/health", "The process is alive.", _answer("Health"), needs_key=False),
    Endpoint("get", "/ready", "A model can be used.", _answer("Ready"), needs_key=False),
    Endpoint(
        "get",
        "/metrics",
        "Prometheus metrics. Where there are keys, an operator's is needed.",
        TEXT,
        errors=(403,),
        content_type="text/plain",
    ),
    Endpoint(
        "get",
        "/live/state",
        "What the engine does now, as the page at / shows it, with the slices that ended since the answer "
        "whose `cursor` is sent along.",
        {"$ref": REF + "LiveState"},
        errors=(400, 503),
        query={"cursor": {"type": "string", "pattern": "^[0-9]{1,18}$"}},
    ),
    Endpoint("get", "/openapi.json", "This document.", {"type": "object"}, needs_key=False),
)


@lru_cache(maxsize=16)
def document(models: tuple[str, ...]) -> bytes:
    """The document as JSON, for a server of these models."""
    bodies = [endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None]
    _, components = msgspec.json.schema_components(
        [*bodies, LiveState], schema_hook=_any_value, ref_template=REF + "{name}"
    )
    paths: dict[str, Json] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    for component in components.values():
        if "model" in component.get("properties", ()):
            component["properties"]["model"] = {"type": "string"} | ({"enum": list(models)} if models else {})
    value = {
        "openapi": "3.1.0",
        "info": {"title": "Fairslice", "version": API_VERSION},
        "paths": paths,
        "components": {
            "schemas": components | ANSWERS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return msgspec.json.encode(value)


def _operation(endpoint: Endpoint) -> Json:
    content: Json = {endpoint.content_type: {"schema": endpoint.answer}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": EVENT}
    responses: Json = {"200": {"description": "The answer.", "content": content}}
    if endpoint.path == "/ready":
        responses["503"] = {"description": "Not yet.", "content": content}
    statuses = {*endpoint.errors, *((401,) if endpoint.needs_key else ())}
    for status in sorted(statuses):
        responses[str(status)] = {
            "description": ERROR_TEXTS[status],
            "content": {"application/json": {"schema": {"$ref": REF + "Error"}}},
        }
    operation: Json = {"summary": endpoint.summary, "responses": responses}
    if endpoint.needs_key:
        operation["security"] = [{"key": []}, {}]
    if endpoint.body is not None:
        schema = {"$ref": REF + endpoint.body.__name__}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "{model}" in endpoint.path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": TEXT}]
    if endpoint.query:
        operation["parameters"] = [
            {"name": name, "in": "query", "schema": schema} for name, schema in endpoint.query.items()
        ]
    return operation


ERROR_TEXTS = {
    400: "Something in the request cannot be used; `param` names it.",
    401: "An API key is needed, or the one given is not known.",
    403: "The key may not do this.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "A limit of the tenant or of the queue is reached; `Retry-After` says when to come again.",
    500: "The prompt could not be served.",
    503: "The server is starting or ending; `Retry-After` says when to come again.",
}


def _any_value(kind: type) -> Json:
    """The schema of `object`, which stands for any JSON value."""
    if kind is object:
        return ANYTHING
    raise NotImplementedError(kind)
