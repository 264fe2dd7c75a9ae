"""What `bench.moves` runs on: decode steps over a pool on GPU 0, and pools that pages go to and come from."""

from collections import deque
from collections.abc import Callable

import torch

from bench.gpu import Rig, fill, machine, make_rig
from bench.movers import issued_here, large_rate, lend
from engine.memory.page import PageLayout
from engine.memory.regions import create_region
from engine.memory.transfer_cuda import CudaTransfers
from engine.memory.transfer_paths import CudaPool
from engine.messages import Attach, PoolSpec
from engine.model_runner.batch import PendingStep, Row, StepResult, StepRow
from engine.model_runner.cuda_device import CudaDevice
from engine.model_runner.device_step import StepOptions
from engine.model_runner.devices import page_view

LOCAL, PEER, HOST, OTHER_PEER = 1, 2, 3, 4
FETCH, MIRROR, UP, DOWN, RELAY = (
    (PEER, LOCAL),
    (LOCAL, PEER),
    (HOST, LOCAL),
    (LOCAL, HOST),
    (PEER, OTHER_PEER),
)
BATCH = 64
SEGMENT_BYTES = 2**28
OTHER_PEER_GIB = 24
LARGE_BYTES = 4 * 2**30
LIMIT_WAYS: tuple[tuple[tuple[int, int], ...], ...] = (
    (FETCH,), (MIRROR,), (FETCH, MIRROR), (RELAY,), (UP,), (DOWN,),
)  # fmt: skip
NAMES = {LOCAL: "GPU", PEER: "lender", OTHER_PEER: "other lender", HOST: "host"}


def lending_gpus() -> dict[int, int]:
    """GPUs by the pool that each lends: the last one, and the one before. Of two GPUs that is GPU 0, whose
    second pool is then as another GPU's to the first lender, which sends there over the same links."""
    last = torch.cuda.device_count() - 1
    return {PEER: last, OTHER_PEER: last - 1}


class MoveRig:
    """A model on GPU 0, pools of lenders (if `peer_gib`) and of the host, and the rows of the table."""

    def __init__(self, pool_gib: float, peer_gib: float, host_gib: float) -> None:
        self.rows: list[tuple[str, ...]] = []
        self._sizes = peer_gib, host_gib
        self.lenders = lending_gpus() if peer_gib else {}
        self.pools: dict[int, CudaPool] = {}
        options = StepOptions(max_batch=2 * BATCH, max_step_tokens=2048, max_model_len=8192)
        num_pages = int(pool_gib * 2**30) // 2**21
        self.rig: Rig = make_rig(options, num_pages, capture=False, make_pool=self._attach)
        self.rig.executor.capture(lambda stage, fraction: None, (BATCH,))
        self.page_bytes = self.rig.layout.page_bytes
        stream = self.rig.executor.stream
        assert stream is not None
        self.compute = stream
        there = [ways for ways in LIMIT_WAYS if all(set(way) <= self.pools.keys() for way in ways)]
        self.limits = {ways: large_rate(self.pools, ways, LARGE_BYTES) for ways in there}
        here = {ways: large_rate(issued_here(self.pools), ways, LARGE_BYTES) for ways in there}
        for ways, rate in self.limits.items():
            what = " and ".join(f"{NAMES[src]} to {NAMES[dst]}" for src, dst in ways)
            print(f"{what}: {rate / 1e9:.1f} GB/s, issued by GPU 0 {here[ways] / 1e9:.1f}", flush=True)

    def _attach(self, layout: PageLayout, num_pages: int) -> torch.Tensor:
        """Map a pool for the model, what the other GPUs lend, and a host pool, as a runner does."""
        peer_gib, host_gib = self._sizes
        page_bytes = layout.page_bytes

        def spec(pool: int, kind: str, device: str, num_pages: int, region: int | None = None) -> PoolSpec:
            return PoolSpec(
                pool=pool, kind=kind, device=device, num_pages=num_pages, page_bytes=page_bytes, region=region
            )

        specs, descriptors = [spec(LOCAL, "cuda", "cuda:0", num_pages)], []
        for pool, index in self.lenders.items():
            num_bytes = int((peer_gib if pool == PEER else OTHER_PEER_GIB) * 2**30)
            made = lend(index, num_bytes, SEGMENT_BYTES)
            torch.zeros(1, device=f"cuda:{index}")  # keeps it awake, as the engine does
            count = len(made) * SEGMENT_BYTES // page_bytes
            specs.append(spec(pool, "cuda", f"cuda:{index}", count, len(descriptors)))
            descriptors += made
        host_pages = int(host_gib * 2**30) // page_bytes
        specs.append(spec(HOST, "host", "host", host_pages, len(descriptors)))
        descriptors.append(create_region("host", host_pages * page_bytes))
        attached = CudaDevice(0).attach(Attach(local=LOCAL, pools=specs), descriptors)
        assert not attached.unreachable, attached.unreachable
        assert isinstance(attached.transfers, CudaTransfers)
        self.pools = attached.transfers.pools
        return fill(page_view(attached.local, layout, torch.bfloat16))

    def pages_of(self, pool: int, count: int) -> list[int]:
        """Random pages; of a pool with fewer, the same again."""
        pages = torch.randperm(len(self.pools[pool].pages)).tolist()
        return (pages * -(-count // len(pages)))[:count]

    def decode(self, rows: list[Row], num_steps: int, on_step: Callable[[int], object]) -> list[StepResult]:
        """Decode from position 1,024; `on_step` is called after each launch, as the runner looks at moves."""
        pending: deque[PendingStep] = deque()
        results: list[StepResult] = []
        for count in range(num_steps):
            ids = [7] if count == 0 else None
            step = [StepRow(row, 1024 + count, 1, ids, sample=True) for row in rows]
            pending.append(self.rig.executor.launch(step))
            on_step(count)
            if len(pending) == self.rig.executor.depth:
                results.append(pending.popleft().result())
        return results + [step.result() for step in pending]

    def add_row(self, *cells: str) -> None:
        """Add a row to the table, and print it at once."""
        self.rows.append(cells)
        print(" | ".join(cells), flush=True)

    def table(self) -> str:
        header = ("what", "variant", "measured", "steps", "with gaps", "host time a step", "wanted")
        lines = ["| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *self.rows)]
        return "\n".join([f"Moves beside compute, {machine()}", "", *lines])
