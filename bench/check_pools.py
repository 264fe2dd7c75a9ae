"""Pools on GPUs: do their bytes outlive their maker, and how fast do pages move when nothing else runs?

    python -m bench.check_pools [--gib 4]

Needs one GPU; with two or more, the other pool lies on the last one, across the link. For each page size, a
child process makes a pool there, fills it, sends its descriptors and is killed with SIGKILL. Then the
runner's own code maps the pool on the first GPU, every byte is compared, and all pages are moved in a random
order, in the ways that moves can be made, as shares of one large copy of as many bytes over the same path,
timed in the same run; each copy is issued by the GPU that has the source, unless it says otherwise. Times are
the host's, from the first call until the last move is known to be complete; in brackets the share by the
device's clock, which leaves out what the host did between two launches.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time
from array import array
from dataclasses import dataclass
from statistics import median

import torch

from bench.movers import ENGINES, Mover, Pools, Ways, issued_here, kernel, large_rate
from engine.memory.regions import create_region, receive_descriptors, send_descriptors
from engine.memory.transfer_cuda import CudaTransfers, MoveTuning
from engine.messages import Attach, PageList, PoolSpec
from engine.model_runner.cuda_device import CudaDevice

LOCAL, PEER, HOST = 0, 1, 2
PAGE_KIB = (2048, 64)
REPEATS = 5

PEER_WAYS: dict[str, Ways] = {
    "fetch": ((PEER, LOCAL),),
    "send": ((LOCAL, PEER),),
    "both at once": ((PEER, LOCAL), (LOCAL, PEER)),
}
HOST_WAYS: dict[str, Ways] = {"from host": ((HOST, LOCAL),), "to host": ((LOCAL, HOST),)}
WANTED = {
    2048: {"fetch": 0.92, "send": 0.88, "both at once": 0.85, "from host": 0.95, "to host": 0.95},
    64: {"fetch": 0.85, "send": 0.85},
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to make moves, of pages of which `run_pages` lie side by side, in random order or by source; all
    issued by GPU 0, or by the GPU that has the source."""

    tuning: MoveTuning
    run_pages: int = 1
    is_sorted: bool = False
    is_issued_here: bool = False


VARIANTS: dict[str, Variant] = {
    "as served": Variant(MoveTuning()),
    "engines": Variant(ENGINES),
    "engines of this GPU alone": Variant(ENGINES, is_issued_here=True),
    "engines, sorted by source": Variant(ENGINES, is_sorted=True),
    "engines, runs of 4 pages": Variant(ENGINES, run_pages=4),
    "engines, runs of 8 pages": Variant(ENGINES, run_pages=8),
    **{f"kernel, {programs} programs": Variant(kernel(programs)) for programs in (16, 32, 64, 132)},
    "kernel, 64 programs, sorted by source": Variant(kernel(64), is_sorted=True),
}


@dataclass(frozen=True, slots=True)
class Size:
    num_pages: int
    page_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    def pool(self, pool: int, kind: str, device: str, region: int | None = None) -> PoolSpec:
        return PoolSpec(
            pool=pool,
            kind=kind,
            device=device,
            num_pages=self.num_pages,
            page_bytes=self.page_bytes,
            region=region,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--gib", type=float, default=4.0, help="size of each pool")
    parser.add_argument("--page-kib", type=int, help="one page size only")
    parser.add_argument("--maker-fd", type=int, help=argparse.SUPPRESS)  # the child that makes a pool
    arguments = parser.parse_args()
    if arguments.page_kib is None:
        for page_kib in PAGE_KIB:  # each in a fresh process
            command = [
                sys.executable,
                "-m",
                "bench.check_pools",
                "--gib",
                str(arguments.gib),
                "--page-kib",
                str(page_kib),
            ]
            subprocess.run(command, check=True)
        return
    page_bytes = arguments.page_kib * 1024
    size = Size(int(arguments.gib * 2**30) // page_bytes, page_bytes)
    if arguments.maker_fd is not None:
        make_pool(socket.socket(fileno=arguments.maker_fd), size)
    else:
        check = Check(size)
        same = check.has_bytes(VARIANTS["as served"])
        print("bytes of a pool whose maker was killed:", "all right" if same else "WRONG")
        assert same
        check.print_rates()


def peer_index() -> int:
    return torch.cuda.device_count() - 1


def make_pool(sock: socket.socket, size: Size) -> None:
    """The child: make the pool, fill it, send its descriptors, and wait to be killed."""
    spec = size.pool(LOCAL, "cuda", f"cuda:{peer_index()}")
    attached = CudaDevice(peer_index()).attach(Attach(local=LOCAL, pools=[spec]), [])
    attached.local.view(torch.int32).copy_(contents(attached.local))
    torch.cuda.synchronize()
    assert attached.exported, "the driver cannot share memory here"
    send_descriptors(sock, attached.exported)
    time.sleep(3600)


def contents(pages: torch.Tensor) -> torch.Tensor:
    """What the maker writes, int32 `[num_pages, words]`, on the device of `pages`."""
    num_pages, page_bytes = pages.shape
    page = torch.arange(num_pages, dtype=torch.int32, device=pages.device)
    word = torch.arange(page_bytes // 4, dtype=torch.int32, device=pages.device)
    return page[:, None] * 1_000_003 + word


def orphaned_pool(size: Size) -> list[int]:
    """Descriptors of a pool whose maker was killed."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "bench.check_pools", "--gib", str(size.num_bytes / 2**30)]
    command += ["--page-kib", str(size.page_bytes // 1024), "--maker-fd", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),)) as child:
        theirs.close()
        try:
            return receive_descriptors(ours)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()


class Check:
    """One page size, on GPU 0."""

    def __init__(self, size: Size) -> None:
        self.size = size
        descriptors = orphaned_pool(size)
        peer = f"cuda:{peer_index()}"
        print(f"\n{size.num_pages} pages of {size.page_bytes // 1024} KiB, the other pool on {peer}")
        specs = [
            size.pool(LOCAL, "cuda", "cuda:0"),
            size.pool(PEER, "cuda", peer, region=0),
            size.pool(HOST, "host", "host", region=len(descriptors)),
        ]
        regions = [*descriptors, create_region("host", size.num_bytes)]
        start_s = time.monotonic()
        attached = CudaDevice(0).attach(Attach(local=LOCAL, pools=specs), regions)
        attach_s = time.monotonic() - start_s
        print(f"attached in {attach_s:.1f} s, {size.num_bytes / 2**30:.1f} GiB of host memory pinned")
        assert not attached.unreachable, attached.unreachable
        assert isinstance(attached.transfers, CudaTransfers)
        torch.zeros(1, device=peer)  # keeps it awake, as the engine does
        self.local = attached.local
        self.pools = attached.transfers.pools
        self.compute = torch.cuda.Stream(0)

    def has_bytes(self, variant: Variant) -> bool:
        """Pull the other pool in a random order; whether all is as its maker wrote it."""
        src_pages, dst_pages = torch.randperm(self.size.num_pages), torch.randperm(self.size.num_pages)
        self.local.zero_()
        torch.cuda.synchronize()
        mover = self.mover(variant)
        mover.submit((PEER, LOCAL), src_pages.tolist(), dst_pages.tolist(), self.size.num_pages)
        mover.close()
        found, expected = self.local.view(torch.int32), contents(self.local)
        parts = zip(src_pages.split(256), dst_pages.split(256), strict=True)
        return all(torch.equal(found[dst.cuda()], expected[src.cuda()]) for src, dst in parts)

    def print_rates(self) -> None:
        """A row for each variant, a column for each way."""
        ways = PEER_WAYS | HOST_WAYS
        limits = self.limits(self.pools)
        print("| | " + " | ".join(ways) + " | host time |\n|" + " --- |" * (len(ways) + 2))
        here = self.limits(issued_here(self.pools))
        for name, rates in (("one large copy a way", limits), ("the same, all issued here", here)):
            print(f"| {name} | " + " | ".join(f"{rate / 1e9:.1f} GB/s" for rate in rates.values()) + " | |")
        wanted = WANTED[self.size.page_bytes // 1024]
        print("| wanted | " + " | ".join(f"{wanted[w]:.2f}" if w in wanted else "" for w in ways) + " | |")
        for name, variant in VARIANTS.items():
            asked = ways if name == "as served" else PEER_WAYS
            try:
                self.write_contents()
                assert self.has_bytes(variant), "wrong bytes"
                cells = [self.shares(variant, way, limits[path]) for path, way in asked.items()]
                cells += [""] * (len(ways) - len(asked))
                print(f"| {name} | " + " | ".join(cells) + f" | {self.host_ms(variant):.2f} ms |", flush=True)
            except Exception as error:  # the others go on
                print(f"| {name} | failed: {error!r} |", flush=True)

    def limits(self, pools: Pools) -> dict[str, float]:
        """Bytes per second of large copies, by way."""
        ways = PEER_WAYS | HOST_WAYS
        return {name: large_rate(pools, way, self.size.num_bytes) for name, way in ways.items()}

    def write_contents(self) -> None:
        """Have in the other pool what its maker wrote."""
        self.local.view(torch.int32).copy_(contents(self.local))
        torch.cuda.synchronize()
        pages = list(range(self.size.num_pages))
        mover = self.mover(Variant(ENGINES))
        mover.submit((LOCAL, PEER), pages, pages, len(pages))
        mover.close()

    def shares(self, variant: Variant, ways: Ways, limit: float) -> str:
        """Medians of some runs after one to warm up. Of two ways, the slower one counts on the device."""
        mover = self.mover(variant)
        whole_s, moving_s = [], []
        for _ in range(1 + REPEATS):
            lists = self.page_lists(variant, len(ways))
            each = self.size.num_pages // 16
            mover.moving_ns.clear()
            torch.cuda.synchronize()
            start_s = time.perf_counter()
            for first in range(0, self.size.num_pages // len(ways), each):
                for way, pages in zip(ways, lists, strict=True):
                    mover.submit(way, *(part[first : first + each] for part in pages), each)
                mover.take()
            mover.finish()
            whole_s.append(time.perf_counter() - start_s)
            moving_s.append(max(mover.moving_ns.values()) / 1e9)
        mover.close()
        rates = [self.size.num_bytes / median(times[1:]) for times in (whole_s, moving_s)]
        return f"{rates[0] / limit:.3f} ({rates[1] / limit:.3f})"

    def mover(self, variant: Variant) -> Mover:
        pools = issued_here(self.pools) if variant.is_issued_here else self.pools
        return Mover(pools, self.compute, variant.tuning)

    def host_ms(self, variant: Variant) -> float:
        """What the first look at a fetch of 2,048 pages takes the runner's loop."""
        mover = self.mover(variant)
        times_s = []
        for _ in range(1 + REPEATS):
            src_pages, dst_pages = self.page_lists(variant, 1)[0]
            mover.submit((PEER, LOCAL), src_pages[:2048], dst_pages[:2048], 256)
            start_s = time.perf_counter()
            mover.take()
            times_s.append(time.perf_counter() - start_s)
            mover.finish()
        mover.close()
        return median(times_s[1:]) * 1e3

    def page_lists(self, variant: Variant, parts: int) -> list[tuple[PageList, PageList]]:
        """Source and destination pages, a part of the pools for each of the ways."""
        share = self.size.num_pages // parts
        inside = torch.arange(variant.run_pages)

        def listed(first: int, *, is_sorted: bool) -> PageList:
            count = share // variant.run_pages
            order = torch.arange(count) if is_sorted else torch.randperm(count)
            pages = (order[:, None] * variant.run_pages + first + inside).flatten()
            return array("i", pages.tolist())

        starts = [part * share for part in range(parts)]
        return [(listed(s, is_sorted=variant.is_sorted), listed(s, is_sorted=False)) for s in starts]


if __name__ == "__main__":
    main()
