"""Records of made-up requests."""

from loadgen.results import Outcome, RequestRecord, RunInfo


def record(
    index: int = 0, *, sent: float = 0.0, chunks: list[float] | None = None, **changes: object
) -> RequestRecord:
    """A request that finished at its last chunk, one token in each, unless `changes` say otherwise."""
    chunk_s = [sent + 1.0] if chunks is None else chunks
    values: dict[str, object] = {
        "index": index,
        "row": index + 2,
        "tenant": "t",
        "outcome": Outcome.OK,
        "sent_s": sent,
        "end_s": chunk_s[-1] if chunk_s else sent,
        "asked_input_tokens": 10,
        "asked_output_tokens": len(chunk_s),
        "input_tokens": 10,
        "output_tokens": len(chunk_s),
        "chunk_s": chunk_s,
        "chunk_tokens": [1] * len(chunk_s),
    }
    return RequestRecord(**(values | changes))  # type: ignore[arg-type]


def run_info(**changes: object) -> RunInfo:
    values: dict[str, object] = {
        "name": "a run",
        "started_at": "2026-01-01T00:00:00",
        "url": "http://server/v1/completions",
        "model": "m",
        "trace": "synthetic:",
        "arrivals": "Poisson, 1/s",
        "tenants": "one",
        "seed": 0,
        "num_planned": 2,
        "tenant_weights": {"t": 1.0},
    }
    return RunInfo(**(values | changes))  # type: ignore[arg-type]
