"""Does anything grow? Resident memory of every process before and after many requests.

    python -m bench.memory [--requests N]

Serves a tiny random model on CPU, warms up with a fifth of the requests, measures, sends them all, and
measures again. Every request has a prompt of its own. The page pool is shared memory, counted apart, and
has to stay what the configuration says.
"""

import argparse
import asyncio
import random
import sys
from pathlib import Path

import aiohttp

from bench.report import print_rows
from bench.server import serving

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "model"
max_model_len = 512
[[devices]]
name = "cpu"
memory = "{pool_mib}MiB"
[memory]
host = "{pool_mib}MiB"
"""
POOL_MIB = 4
CONCURRENCY = 32


def descendants(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += descendants(child)
    return found


def resident(pid: int) -> tuple[str, int, int]:
    """What the process runs, its private resident bytes, and its shared ones (pools among them)."""
    name = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[2]
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return name, 1024 * int(fields["RssAnon"].split()[0]), 1024 * int(fields["RssShmem"].split()[0])


async def send(url: str, count: int, seed: int) -> None:
    """Requests of mixed lengths, some streaming, some of clients that leave."""
    source = random.Random(seed)
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(session: aiohttp.ClientSession) -> None:
        body = {
            "model": "model",
            "prompt": [source.randrange(256) for _ in range(source.randint(1, 200))],
            "max_tokens": source.randint(1, 60),
            "ignore_eos": True,
            "stream": source.random() < 0.5,
        }
        leaves = source.random() < 0.1
        async with gate, session.post(f"{url}/v1/completions", json=body) as response:
            if leaves:
                await response.content.read(1)
            else:
                await response.read()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
        await asyncio.gather(*(one(session) for _ in range(count)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--port", type=int, default=8378)
    options = parser.parse_args()
    with serving(CONFIG.format(pool_mib=POOL_MIB), options.port) as server:
        pids = [pid for root in server.pids for pid in descendants(root)]
        asyncio.run(send(server.url, options.requests // 5, seed=0))
        before = {pid: resident(pid) for pid in pids}
        asyncio.run(send(server.url, options.requests, seed=1))
        after = {pid: resident(pid) for pid in pids}
        pages = server.metrics()["vllm:kv_cache_usage_perc"]
    rows = []
    for pid in pids:
        name, private, shared = after[pid]
        grown = private - before[pid][1]
        rows.append(
            (name, f"{before[pid][1] / 2**20:.1f}", f"{private / 2**20:.1f}", f"{grown / 2**20:+.2f}")
        )
        rows[-1] += (f"{shared / 2**20:.1f}",)
    print_rows(("process", "MiB before", "after", "grown", "shared (pools)"), rows)
    grown_bytes = sum(after[pid][1] - before[pid][1] for pid in pids)
    each = grown_bytes / options.requests
    print(f"\n{options.requests} requests: {each:.0f} bytes each; pages in use: {pages}")
    return 0 if grown_bytes < 2**20 * len(pids) and pages == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
