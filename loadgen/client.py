"""Sends one request, reads its stream, and says how it ended. Nothing that a server does raises."""

import asyncio
import errno
import io
from collections.abc import Callable

import aiohttp

from loadgen.monitor import Monitor
from loadgen.plan import PlannedRequest
from loadgen.results import ErrorKind, Outcome, RequestRecord
from loadgen.stream import RequestError, TokenStream

Clock = Callable[[], float]  # seconds since the run began

_CLIENT_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS)
_LARGE_BODY_BYTES = 1 << 20  # above this aiohttp wants a file, which it sends piece by piece
_NETWORK_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)


def open_session(
    *, max_connections: int | None, stall_s: float, timeout_s: float | None
) -> aiohttp.ClientSession:
    """A session whose requests fail when nothing is heard for `stall_s`, or after `timeout_s` in all.

    Each request has a connection of its own, as each of many users would: one used twice may be closing just
    as the next request is written to it, and that would count as the server's failure.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections or 0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=stall_s, sock_read=stall_s),
        headers={"Accept": "text/event-stream", "Accept-Encoding": "identity"},
        auto_decompress=False,
    )


class Client:
    """Sends planned requests to one URL."""

    def __init__(self, session: aiohttp.ClientSession, url: str, clock: Clock, monitor: Monitor) -> None:
        self._session = session
        self._url = url
        self._clock = clock
        self._monitor = monitor

    async def send(self, request: PlannedRequest) -> RequestRecord:
        """The record of the request. Cancelling it ends the request as interrupted and still gives one."""
        stream = TokenStream()
        outcome, error, status = Outcome.FAILED, None, None
        sent_s = self._clock()
        self._monitor.on_sent(request.tenant)
        body = io.BytesIO(request.body) if len(request.body) > _LARGE_BODY_BYTES else request.body
        try:
            async with self._session.post(self._url, data=body, headers=request.headers) as response:
                status = response.status
                if status != 200:
                    text = (await response.content.read(1 << 16)).decode(errors="replace")
                    raise RequestError(ErrorKind.HTTP, " ".join(text.split()) or str(response.reason))
                await self._read(response.content, stream, request.tenant, sent_s)
            outcome = Outcome.OK
        except asyncio.CancelledError:
            outcome = Outcome.INTERRUPTED
        except RequestError as failure:
            error = failure
        except _NETWORK_ERRORS as failure:
            error = RequestError(classify(failure), str(failure) or type(failure).__name__)
        record = stream.record(
            request, outcome=outcome, sent_s=sent_s, end_s=self._clock(), error=error, http_status=status
        )
        self._monitor.on_end(record)
        return record

    async def _read(
        self, content: aiohttp.StreamReader, stream: TokenStream, tenant: str, sent_s: float
    ) -> None:
        last_s: float | None = None
        num_bytes = 0
        while data := await content.readany():
            now_s = self._clock()
            num_bytes += len(data)
            num_tokens = stream.feed(data, now_s)
            if num_tokens:
                if last_s is None:
                    self._monitor.on_first(tenant, now_s - sent_s, num_tokens)
                else:
                    self._monitor.on_tokens(tenant, now_s - last_s, num_tokens)
                last_s = now_s
            if stream.error:
                raise stream.error
        stream.close(num_bytes)


def classify(error: BaseException) -> ErrorKind:
    """The kind of a failure that the network stack reported."""
    cause: BaseException = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno in _CLIENT_ERRNOS:
        return ErrorKind.CLIENT_LIMIT
    if isinstance(cause, ConnectionRefusedError):
        return ErrorKind.REFUSED
    if isinstance(error, aiohttp.SocketTimeoutError):
        return ErrorKind.STALLED
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return ErrorKind.CONNECT
    if isinstance(error, TimeoutError):
        return ErrorKind.TIMEOUT
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL):
        return ErrorKind.BAD_STREAM
    return ErrorKind.CUT
