"""One answer as it arrives: what came when, and how many tokens it held."""

from array import array

import msgspec

from loadgen.events import DONE, Event, Usage, decode_event
from loadgen.plan import PlannedRequest
from loadgen.results import Counting, ErrorKind, Outcome, RequestRecord
from loadgen.sse import BadStreamError, SseParser

_DETAIL_CHARS = 300


class RequestError(Exception):
    """The request failed, in a way that has a kind."""

    def __init__(self, kind: ErrorKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class TokenStream:
    """Counts the tokens of one streamed answer and notes when each delivery came.

    If the server repeats its usage in every event, deliveries are counted exactly. If not, an event is one
    token, and the usage at the end corrects the total but not the deliveries.
    """

    __slots__ = (
        "_continuous",
        "_num_events",
        "_parser",
        "chunk_s",
        "chunk_tokens",
        "done",
        "error",
        "finish_reason",
        "num_tokens",
        "usage",
    )

    def __init__(self) -> None:
        self._parser = SseParser()
        self._num_events = 0
        self._continuous: bool | None = None  # unknown before the first token
        self.chunk_s = array("d")
        self.chunk_tokens = array("L")
        self.num_tokens = 0
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.error: RequestError | None = None  # nothing after it counts

    @property
    def counting(self) -> Counting:
        if self.usage is None:
            return Counting.EVENTS
        return Counting.EACH_USAGE if self._continuous else Counting.USAGE

    def feed(self, data: bytes, now_s: float) -> int:
        """Take in what one read brought; returns how many tokens it held, up to the `error` if it has one."""
        before = self.num_tokens
        try:
            for payload in self._parser.feed(data):
                if payload == DONE:
                    self.done = True
                else:
                    self._take(decode_event(payload))
                self._num_events += 1
        except RequestError as error:
            self.error = error
        except (BadStreamError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self.error = RequestError(ErrorKind.BAD_STREAM, str(error))
        num_tokens = self.num_tokens - before
        if num_tokens:
            self.chunk_s.append(now_s)
            self.chunk_tokens.append(num_tokens)
        return num_tokens

    def _take(self, event: Event) -> None:
        if event.error is not None:
            raise RequestError(ErrorKind.SERVER_ERROR, _message(event.error))
        if event.usage is not None:
            self.usage = event.usage
        num_tokens = 0
        for choice in event.choices:
            num_tokens += choice.has_token()
            self.finish_reason = choice.finish_reason or self.finish_reason
        if self._continuous is None and num_tokens:
            self._continuous = event.usage is not None
        if self._continuous and event.choices and event.usage is not None:
            num_tokens = max(0, event.usage.completion_tokens - self.num_tokens)
        self.num_tokens += num_tokens

    def close(self, num_bytes: int) -> None:
        """The body has ended; raises `RequestError` unless the answer had ended too."""
        if self.done or self.finish_reason is not None:
            return
        if self._num_events == 0 and num_bytes:
            raise RequestError(ErrorKind.BAD_STREAM, "the answer holds no server-sent event")
        raise RequestError(ErrorKind.CUT, f"the stream ended after {self.num_tokens} tokens, before its end")

    def record(
        self,
        request: PlannedRequest,
        *,
        outcome: Outcome,
        sent_s: float,
        end_s: float,
        error: RequestError | None = None,
        http_status: int | None = None,
    ) -> RequestRecord:
        usage = self.usage
        details = usage.prompt_tokens_details if usage else None
        return RequestRecord(
            index=request.index,
            row=request.row,
            tenant=request.tenant,
            outcome=outcome,
            sent_s=_rounded(sent_s),
            end_s=_rounded(end_s),
            scheduled_s=None if request.at_s is None else _rounded(request.at_s),
            asked_input_tokens=request.input_tokens,
            asked_output_tokens=request.output_tokens,
            input_tokens=(usage and usage.prompt_tokens) or request.input_tokens,
            cached_tokens=details.cached_tokens if details else None,
            output_tokens=(usage and usage.completion_tokens) or self.num_tokens,
            counted_by=self.counting,
            finish_reason=self.finish_reason,
            error=error.kind if error else None,
            http_status=http_status,
            detail=str(error)[:_DETAIL_CHARS] if error else None,
            chunk_s=[_rounded(moment) for moment in self.chunk_s],
            chunk_tokens=self.chunk_tokens.tolist(),
        )


def _message(error: object) -> str:
    """What an error object of the API says, in one line."""
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return " ".join(str(error).split())


def _rounded(moment_s: float) -> float:
    """To 10 microseconds, below what a client can tell: the files are half as long."""
    return round(moment_s, 5)
