"""What happens now, for the page at `/`: one snapshot per process, however many pages look at it.

The engine is asked only while somebody asks us, and at most every `REFRESH_S`. It sends the slices that
ended since the last time; those of the last `KEPT_S` are kept here, and each page gets what it has not seen.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

import msgspec
from msgspec import Struct

from api.auth import Tenant
from api.engine_client import EngineClient
from api.metrics import Buckets, Metrics
from engine.messages import Live, LiveLender, LiveModel, LiveTenant, SliceFate, SliceRecord

REFRESH_S = 0.25
KEPT_S = 60.0
MAX_KEPT = 10_000  # slices of one model
OTHERS = ""  # stands for all tenants whose names are not the reader's business; no tenant is named so


class Latencies(Struct, frozen=True, kw_only=True):
    """Cumulative histograms over all requests so far, as Prometheus has them: (bound in seconds, count) with
    rising bounds, None for the last."""

    first_token: Buckets
    gap: Buckets


class LiveState(Struct, frozen=True, kw_only=True):
    """The answer of `GET /live/state`. `models[].ended` are the slices that ended after the time of the
    `cursor` that was sent along. `sees_all` is false for a reader who sees other tenants as one."""

    engine_id: str
    now_ns: int
    cursor: str
    sees_all: bool
    models: list[LiveModel]
    lenders: list[LiveLender]
    latencies: Latencies


class LiveFeed:
    """Snapshots for all readers of this process."""

    def __init__(
        self, client: EngineClient, metrics: Metrics, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._clock_s = clock_s
        self._refreshing = asyncio.Lock()
        self._refreshed_s = -REFRESH_S
        self._live: Live | None = None
        self._latencies = Latencies(first_token=[], gap=[])
        self._ended: dict[str, deque[SliceRecord]] = {}  # by model

    async def state(self, reader: Tenant, since_ns: int) -> LiveState | None:
        """What `reader` may see, with the slices that ended after `since_ns`; None without an engine."""
        async with self._refreshing:
            if self._clock_s() - self._refreshed_s >= REFRESH_S:
                await self._refresh()
        live = self._live
        if live is None:
            return None
        if since_ns > live.now_ns:
            since_ns = 0  # of another machine's clock
        models = [
            msgspec.structs.replace(model, ended=self._ended_since(model.name, since_ns))
            for model in live.models
        ]
        return LiveState(
            engine_id=live.engine_id,
            now_ns=live.now_ns,
            cursor=str(live.now_ns),
            sees_all=reader.is_operator,
            models=models if reader.is_operator else [_as_seen_by(reader.name, model) for model in models],
            lenders=live.lenders,
            latencies=self._latencies,
        )

    async def _refresh(self) -> None:
        since_ns = self._live.now_ns if self._live is not None else 0
        self._live = await self._client.live(since_ns)
        self._refreshed_s = self._clock_s()
        if self._live is None:
            return
        first_token, gap = self._metrics.latencies()
        self._latencies = Latencies(first_token=first_token, gap=gap)
        for model in self._live.models:
            ended = self._ended.setdefault(model.name, deque(maxlen=MAX_KEPT))
            ended.extend(model.ended)
            while ended and _end_ns(ended[0]) < self._live.now_ns - KEPT_S * 1e9:
                ended.popleft()

    def _ended_since(self, model: str, since_ns: int) -> list[SliceRecord]:
        """In order of their end."""
        records = []
        for record in reversed(self._ended[model]):
            if _end_ns(record) <= since_ns:
                break
            records.append(record)
        records.reverse()
        return records


def _end_ns(record: SliceRecord) -> int:
    assert record.end_ns is not None
    return record.end_ns


def _as_seen_by(name: str, model: LiveModel) -> LiveModel:
    """The same without what concerns other tenants: they are one, whose slices are only places and times."""
    own = [tenant for tenant in model.tenants if tenant.name == name]
    others = [tenant for tenant in model.tenants if tenant.name != name]
    if others:
        merged = LiveTenant(
            name=OTHERS,
            weight=None,
            service_ns=sum(tenant.service_ns for tenant in others),
            num_running=sum(tenant.num_running for tenant in others),
            num_waiting=sum(tenant.num_waiting for tenant in others),
        )
        own.append(merged)
    return msgspec.structs.replace(
        model,
        tenants=own,
        ended=[_slice_as_seen_by(name, record) for record in model.ended],
        in_force=[_slice_as_seen_by(name, record) for record in model.in_force],
    )


def _slice_as_seen_by(name: str, record: SliceRecord) -> SliceRecord:
    if record.tenant == name:
        return record
    return msgspec.structs.replace(
        record,
        prompt=0,
        tenant=OTHERS,
        arrival_ns=record.start_ns,
        first_token_ns=None,
        prefilled=0,
        sampled=0,
        fate=None if record.fate is None else SliceFate.PREEMPTED,
    )
