"""Pools on GPUs: do their bytes outlive their maker, and how fast do pages move?

    python -m bench.check_pools [--gib 4]

Needs one GPU; with two or more, the other pool lies on the last one, across the link. For each page size, a
child process makes a pool there, fills it, sends its descriptors and is killed with SIGKILL. Then the
runner's own code maps the pool on the first GPU, every byte is compared, and all pages are moved in a random
order, beside one large copy of as many bytes over the same path, timed in the same run. Times are the host's,
from the first call until the last move is known to be complete.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from cuda.bindings import runtime

from engine.memory.cuda_calls import unwrap
from engine.memory.regions import create_region, receive_descriptors, send_descriptors
from engine.memory.transfer_cuda import CudaTransfers
from engine.messages import Attach, Move, PoolSpec
from engine.model_runner.cuda_device import CudaDevice

LOCAL, PEER, HOST = 0, 1, 2
PAGE_KIB = (2048, 64)
REPEATS = 5

Moves = tuple[tuple[int, int], ...]
"""(source pool, destination pool) of moves that go at once; two share the pages half and half."""

ROWS: dict[str, Moves] = {
    "peer to local (pull)": ((PEER, LOCAL),),
    "local to peer (push)": ((LOCAL, PEER),),
    "both at once": ((PEER, LOCAL), (LOCAL, PEER)),
    "host to local": ((HOST, LOCAL),),
    "local to host": ((LOCAL, HOST),),
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
        check.compare_bytes()
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
        self.local = attached.local
        self.transfers = attached.transfers
        self.pools = attached.transfers.pools
        self.streams = [torch.cuda.Stream() for _ in range(2)]
        self.start_s = 0.0

    def compare_bytes(self) -> None:
        """Pull the orphaned pool in a random order."""
        move = self.send_pages(((PEER, LOCAL),))[0]
        found, expected = self.local.view(torch.int32), contents(self.local)
        src_pages, dst_pages = torch.tensor(move.src_pages), torch.tensor(move.dst_pages)
        parts = zip(src_pages.split(256), dst_pages.split(256), strict=True)
        same = all(torch.equal(found[dst.cuda()], expected[src.cuda()]) for src, dst in parts)
        print("bytes of a pool whose maker was killed:", "all right" if same else "WRONG")
        assert same

    def print_rates(self) -> None:
        print(f"{'path':<22} {'pages GB/s':>11} {'one copy':>9} {'share':>6}")
        for name, moves in ROWS.items():
            pages, large = self.rate(self.send_pages, moves), self.rate(self.send_large, moves)
            print(f"{name:<22} {pages:>11.1f} {large:>9.1f} {pages / large:>6.2f}", flush=True)

    def rate(self, send: Callable[[Moves], object], moves: Moves) -> float:
        """GB/s, the median of some runs after one to warm up."""
        durations_s = []
        for _ in range(1 + REPEATS):
            torch.cuda.synchronize()
            self.start_s = time.perf_counter()
            send(moves)
            durations_s.append(time.perf_counter() - self.start_s)
        return self.size.num_bytes / median(durations_s[1:]) / 1e9

    def send_pages(self, moves: Moves) -> list[Move]:
        """Move all pages in a random order, as a runner does; returns the moves when they are complete."""
        share = self.size.num_pages // len(moves)
        made = []
        for i, (src, dst) in enumerate(moves):
            src_pages, dst_pages = ((torch.randperm(share) + i * share).tolist() for _ in range(2))
            made.append(Move(move_id=i, src_pool=src, dst_pool=dst, src_pages=src_pages, dst_pages=dst_pages))
        self.start_s = time.perf_counter()
        for move in made:
            self.transfers.submit(move)
        while self.transfers.num_open:
            self.transfers.completed()
        return made

    def send_large(self, moves: Moves) -> None:
        """One copy for each move, of its share of the bytes."""
        share_bytes = self.size.num_bytes // len(moves)
        for i, (src, dst) in enumerate(moves):
            result = runtime.cudaMemcpyAsync(
                self.pools[dst].pages.data_ptr() + i * share_bytes,
                self.pools[src].pages.data_ptr() + i * share_bytes,
                share_bytes,
                runtime.cudaMemcpyKind.cudaMemcpyDefault,
                runtime.cudaStream_t(self.streams[i].cuda_stream),
            )
            unwrap("cudaMemcpyAsync", result)
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
