"""One line in the log for each request, and an id by which a client can follow its own through logs.

A line says who asked for how much and how it ended; never what was asked or answered.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ID_HEADER = "x-request-id"
MAX_ID_CHARS = 128
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics", "/live/state"})  # machines ask for them for ever

logger = logging.getLogger("api.requests")


def _nothing() -> Mapping[str, object]:
    return {}


@dataclass(slots=True)
class RequestNote:
    """What is noted of a request on its way. `request_id` is the client's own, if it gave one."""

    request_id: str
    is_clients_id: bool
    fields: dict[str, object] = field(default_factory=dict)
    outcome: Callable[[], Mapping[str, object]] = _nothing  # asked for at the end

    def name(self, request_id: str) -> None:
        """Another id for a request to which its client gave none."""
        if not self.is_clients_id:
            self.request_id = request_id


def note_of(request: Request) -> RequestNote:
    note: RequestNote = request.state.note
    return note


class RequestLog:
    """Wraps the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = scope.setdefault("state", {})["note"] = _first_note(scope)
        begin_s = time.monotonic()
        status: int | None = None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = note.request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            _write(scope, note, status, time.monotonic() - begin_s)


def _first_note(scope: Scope) -> RequestNote:
    given = Headers(scope=scope).get(ID_HEADER, "")
    if given.isascii() and given.isprintable() and 0 < len(given) <= MAX_ID_CHARS:
        return RequestNote(given, is_clients_id=True)
    return RequestNote(f"req-{secrets.token_hex(16)}", is_clients_id=False)


def _write(scope: Scope, note: RequestNote, status: int | None, duration_s: float) -> None:
    path = scope["raw_path"].decode("ascii", "replace")  # as it was sent: nothing in it breaks a line
    is_quiet = path in QUIET_PATHS or path.startswith("/static/")
    level = logging.DEBUG if is_quiet else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {
        "request_id": note.request_id,
        "status": status,
        "duration_s": round(duration_s, 4),
        **note.fields,
        **note.outcome(),
    }
    logger.log(level, "%s %s", scope["method"], path, extra=fields)
