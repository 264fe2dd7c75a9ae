"""Errors that a client may see, and the one place where they become OpenAI's error body."""

import logging
import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from engine.messages import RateState, Rejected

logger = logging.getLogger(__name__)


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that cannot be served. `param` names the field at fault by path: `messages[0].content`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        """OpenAI's `type` of the error."""
        if self.status in _TYPES:
            return _TYPES[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, object]:
        """The JSON value that OpenAI's clients expect."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return Response(msgspec.json.encode(self.body()), self.status, headers, media_type="application/json")


def bad_request(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A field with a value that cannot be used."""
    return ApiError(400, message, code=code, param=param)


def unknown_model(name: str, served: list[str]) -> ApiError:
    known = ", ".join(served) or "none yet"
    return ApiError(
        404, f"The model {name!r} is not served here; served: {known}", code="model_not_found", param="model"
    )


def context_too_long(prompt_tokens: int, limit_tokens: int, param: str) -> ApiError:
    message = (
        f"The prompt has {prompt_tokens} tokens, but this model's context holds {limit_tokens}, "
        "and at least one must be left for the answer"
    )
    return bad_request(param, message, "context_length_exceeded")


def body_too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, f"The body is over the limit of {limit_bytes} bytes", code="body_too_large")


def body_late(limit_s: float) -> ApiError:
    return ApiError(408, f"The body did not come within {limit_s:.0f} seconds", code="body_timeout")


def unavailable(message: str, code: str, retry_after_s: float = 2.0) -> ApiError:
    """Nothing is wrong with the request: it should come again later."""
    return ApiError(503, message, code=code, retry_after_s=retry_after_s)


_STATUS_OF_CODE = {
    "queue_full": 429,
    "rate_limit_exceeded": 429,
    "model_not_found": 404,
}
_PARAM_OF_CODE = {"model_not_found": "model", "context_length_exceeded": "prompt"}


def rejected(refusal: Rejected) -> ApiError:
    """What the engine's refusal is in HTTP."""
    code, retry_after_s = refusal.code, refusal.retry_after_s
    status = _STATUS_OF_CODE.get(code)
    if status is None:
        status = 503 if retry_after_s is not None else 400
    if status == 429 and retry_after_s is None:
        retry_after_s = 1.0
    return ApiError(
        status,
        refusal.message,
        code=code,
        param=_PARAM_OF_CODE.get(code),
        retry_after_s=retry_after_s,
        headers=rate_headers(refusal.rates),
    )


def rate_headers(rates: dict[str, RateState]) -> dict[str, str]:
    """OpenAI's headers on limits per minute; none where a tenant has no limit."""
    headers = {}
    for name, state in rates.items():
        headers[f"x-ratelimit-limit-{name}"] = str(state.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(state.remaining)
        headers[f"x-ratelimit-reset-{name}"] = f"{state.reset_s:.3f}s"
    return headers


_HTTP_MESSAGES = {404: "There is nothing at {path}", 405: "{method} is not allowed on {path}"}


def error_response(request: Request, error: Exception) -> Response:
    """The answer for any exception that a route lets out."""
    if isinstance(error, ApiError):
        return error.response()
    if not isinstance(error, HTTPException):
        return internal_error().response()
    template = _HTTP_MESSAGES.get(error.status_code, error.detail)
    message = template.format(path=request.url.path, method=request.method)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    response = ApiError(error.status_code, message, code=code).response()
    response.headers.update(error.headers or {})
    return response


def internal_error() -> ApiError:
    """What a client is told of a bug of ours: nothing of its inside."""
    return ApiError(500, "An internal error occurred; its details are in the server's log", code="internal")
