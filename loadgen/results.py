"""What a run leaves behind: one record per request, and what there is to know about the run as a whole.

On disk a run is a folder: `requests.jsonl` (a `RequestRecord` per line), `run.json` (the `RunInfo`),
`summary.json` and `report.html`. Times are seconds on the run's clock, which starts at 0 when the first
request may be sent.
"""

from enum import StrEnum
from pathlib import Path

import msgspec

REQUESTS_FILE = "requests.jsonl"
RUN_FILE = "run.json"


class Outcome(StrEnum):
    OK = "ok"
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by whoever ran loadgen; no fault of the server


class ErrorKind(StrEnum):
    """Why a request failed."""

    REFUSED = "connection refused"
    CONNECT = "could not connect"
    HTTP = "http error"
    STALLED = "stalled"  # connected, then nothing came for the stall limit
    CUT = "stream cut"
    BAD_STREAM = "bad stream"  # not server-sent events, or not the JSON that they should hold
    SERVER_ERROR = "error in stream"
    TIMEOUT = "timeout"
    CLIENT_LIMIT = "client limit"  # this machine ran out of files or ports


class Counting(StrEnum):
    """How the tokens of a request were counted."""

    EVENTS = "events"  # one per event: the server sent no usage
    USAGE = "usage"  # the total by the server's usage at the end, deliveries as one per event
    EACH_USAGE = "usage in each event"  # total and deliveries by the server's usage


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request that was sent, however it ended.

    `chunk_s[i]` is when the i-th delivery of tokens arrived and `chunk_tokens[i]` how many tokens it held, as
    far as could be told (`counted_by`). A delivery is what one read of the socket brought. `output_tokens` is
    the server's own count where it sent one, else the sum of `chunk_tokens`.
    """

    index: int
    row: int
    tenant: str
    outcome: Outcome
    sent_s: float
    end_s: float
    scheduled_s: float | None = None
    asked_input_tokens: int
    asked_output_tokens: int
    input_tokens: int
    cached_tokens: int | None = None
    output_tokens: int
    counted_by: Counting = Counting.EVENTS
    finish_reason: str | None = None
    error: ErrorKind | None = None
    http_status: int | None = None
    detail: str | None = None
    chunk_s: list[float] = []
    chunk_tokens: list[int] = []

    @property
    def first_s(self) -> float | None:
        return self.chunk_s[0] if self.chunk_s else None

    @property
    def ttft_s(self) -> float | None:
        return self.chunk_s[0] - self.sent_s if self.chunk_s else None

    @property
    def completion_s(self) -> float:
        return self.end_s - self.sent_s

    @property
    def error_label(self) -> str | None:
        """The kind of error, with the status code where there is one."""
        if self.error is ErrorKind.HTTP:
            return f"http {self.http_status}"
        return self.error.value if self.error else None


class ClientHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the client kept up. `saturated` lists, in words, every sign that it did not."""

    lateness_p99_s: float  # a request's sending time minus its planned one
    lateness_max_s: float
    loop_lag_p99_s: float  # how long the event loop kept a timer waiting
    loop_lag_max_s: float
    cpu_fraction: float  # of one core
    cpu_wait_fraction: float | None = None  # of the time: ready to run, but others had the cores; Linux tells
    saturated: list[str] = []


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the run was made. `tenant_weights` has every tenant that could send."""

    name: str
    started_at: str  # ISO 8601
    url: str
    model: str
    trace: str
    arrivals: str
    tenants: str
    seed: int
    num_planned: int
    tenant_weights: dict[str, float]
    options: dict[str, str] = {}
    command: str = ""
    interrupted: bool = False
    health: ClientHealth | None = None  # None: nothing was sent over a network (a simulation)


class LoadError(Exception):
    """A folder does not hold a run. The message is one line."""


def save_run(folder: Path, info: RunInfo, records: list[RequestRecord]) -> None:
    encode = msgspec.json.encode
    (folder / RUN_FILE).write_bytes(msgspec.json.format(encode(info)) + b"\n")
    with (folder / REQUESTS_FILE).open("wb") as file:
        for record in records:
            file.write(encode(record) + b"\n")


def load_run(folder: Path) -> tuple[RunInfo, list[RequestRecord]]:
    path, number = folder / RUN_FILE, 1
    try:
        info = msgspec.json.decode(path.read_bytes(), type=RunInfo)
        path = folder / REQUESTS_FILE
        decoder = msgspec.json.Decoder(RequestRecord)
        records: list[RequestRecord] = []
        with path.open("rb") as file:
            for line in file:
                number = len(records) + 1
                records.append(decoder.decode(line))
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise LoadError(f"{path}:{number}: {error}") from error
    return info, records
