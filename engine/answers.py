"""What the engine tells api processes of itself when they ask, and what it does for an operator."""

import time
from collections.abc import Mapping

from engine.admission import Admission
from engine.lenders import Lenders
from engine.live import collect_live
from engine.messages import Live, Resize, Resizing, Stats, Welcome
from engine.model_host import ModelHost
from engine.pool_sizes import PoolSizes, ResizeError
from engine.stats import collect_samples, collect_status


class Answers:
    """Looks at all parts of the engine `engine_id`."""

    def __init__(
        self,
        engine_id: str,
        models: Mapping[str, ModelHost],
        admission: Admission,
        lenders: Lenders,
        pool_sizes: PoolSizes,
    ) -> None:
        self._engine_id = engine_id
        self._models = models
        self._admission = admission
        self._lenders = lenders
        self._pool_sizes = pool_sizes

    def welcome(self) -> Welcome:
        """Which models are served, which of those have no runner now, and how far the others are."""
        hosts = self._models.values()
        return Welcome(
            engine_id=self._engine_id,
            ready=[host.card for host in hosts if host.is_ready and host.card is not None],
            loading={host.name: host.progress for host in hosts if not host.is_ready},
            recovering={host.name: host.progress for host in hosts if host.is_recovering},
        )

    def stats(self, serial: int) -> Stats:
        """Metrics and status."""
        hosts = list(self._models.values())
        return Stats(
            serial=serial,
            samples=collect_samples(hosts, self._admission, self._lenders.lending),
            status={
                **collect_status(hosts, self._lenders.lending),
                "pool_sizes": self._pool_sizes.status(),
            },
        )

    def live(self, serial: int, since_ns: int) -> Live:
        """A snapshot for the live page, with slices since `since_ns`."""
        hosts, lending = self._models.values(), self._lenders.lending
        return collect_live(self._engine_id, serial, hosts, lending, since_ns, time.monotonic_ns())

    def resize(self, wish: Resize) -> Resizing:
        """Begin to make a pool as large as wished."""
        try:
            num_bytes = self._pool_sizes.resize(wish.device, wish.num_bytes)
        except ResizeError as error:
            return Resizing(serial=wish.serial, error=str(error))
        return Resizing(serial=wish.serial, num_bytes=num_bytes)
