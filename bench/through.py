"""What HTTP, the api and the engine cost: streams through a whole server beside the executor alone.

    python -m bench.through [--model PATH] [--streams N ...] [--prompt N] [--tokens N] [--executor]

All streams of a case start at once and ask for the same number of tokens. The server's rate is what the api
received in a window that begins when every stream has its first token and ends before any stream does: every
step of it decodes all streams. The executor's rate (`--executor`, needs a GPU and the
Llama-3.1-8B shape) is that of `bench.decode_step`, in the same run, at the window's mean context.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from bench.report import print_rows
from bench.server import Server, serving

CONFIG = """
[[models]]
path = "{model}"
name = "model"
devices = ["{device}"]
max_model_len = 4096
[[devices]]
name = "{device}"
memory = "{memory}"
"""
TOKENS = "vllm:generation_tokens_total"
SETTLES_S = 0.5  # after the last first token


@dataclass(slots=True)
class Window:
    """A time in which all streams decode."""

    num_waiting: int  # streams that have no token yet
    began_s: float = 0.0
    ended_s: float = 0.0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    num_chunks: int = 0
    chunks_before: int = 0
    chunks_after: int = 0
    all_started: asyncio.Event = field(default_factory=asyncio.Event)
    one_ended: bool = False

    def grew(self, name: str) -> float:
        return self.after[name] - self.before[name]

    @property
    def tokens_per_s(self) -> float:
        return self.grew(TOKENS) / (self.ended_s - self.began_s)

    @property
    def mean_tokens(self) -> float:
        """Of all streams together, halfway."""
        return (self.before[TOKENS] + self.after[TOKENS]) / 2

    @property
    def idle_share(self) -> float:
        """Of the device, by its own clock, while work was queued."""
        idle_s = self.grew("fairslice:idle_seconds_total")
        return idle_s / (idle_s + self.grew("fairslice:busy_seconds_total"))

    @property
    def step_ms(self) -> float:
        return self.grew("fairslice:busy_seconds_total") / self.grew("fairslice:steps_total") * 1e3


async def run_stream(
    session: aiohttp.ClientSession, url: str, ids: list[int], n: int, window: Window
) -> None:
    body = {
        "model": "model",
        "prompt": ids,
        "max_tokens": n,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    is_first = True
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            window.num_chunks += 1
            if is_first:
                is_first = False
                window.num_waiting -= 1
                if not window.num_waiting:
                    window.all_started.set()
    window.one_ended = True


async def measure(server: Server, num_streams: int, options: argparse.Namespace) -> Window:
    """Raises RuntimeError if a stream ended before the window did."""
    window = Window(num_streams)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        prompts = [[3 + (7 * i + 13 * j) % 250 for j in range(options.prompt)] for i in range(num_streams)]
        streams = [
            asyncio.create_task(run_stream(session, server.url, ids, options.tokens, window))
            for ids in prompts
        ]
        await window.all_started.wait()
        await asyncio.sleep(SETTLES_S)
        window.chunks_before = window.num_chunks
        window.began_s, window.before = time.monotonic(), await asyncio.to_thread(server.metrics)
        await asyncio.sleep(options.window_s)
        window.chunks_after = window.num_chunks
        window.ended_s, window.after = time.monotonic(), await asyncio.to_thread(server.metrics)
        if window.one_ended:
            raise RuntimeError("a stream ended inside the window: ask for more --tokens")
        await asyncio.gather(*streams)
    return window


def executor_rates(cases: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Tokens per second of the executor alone, by (batch, context)."""
    import torch

    from bench import decode_step
    from bench.gpu import compiled_rig, copy_rate
    from engine.model_runner.device_step import StepOptions

    bytes_per_s = copy_rate()
    torch.cuda.empty_cache()
    num_pages = 1 + max(batch * (context // 16 + 10) for batch, context in cases)
    rig = compiled_rig(StepOptions(256, 8192, 8192), num_pages)
    return {
        (batch, context): batch / decode_step.measure(rig, batch, context, bytes_per_s).wall_ms * 1e3
        for batch, context in cases
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="dummy:llama-3.1-8b")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--memory", default="48GiB", help="of the page pool")
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=900, help="tokens of each answer")
    parser.add_argument("--window-s", type=float, default=3.0)
    parser.add_argument("--executor", action="store_true", help="measure the executor alone, too")
    parser.add_argument("--port", type=int, default=8378)
    options = parser.parse_args()
    config = CONFIG.format(model=options.model, device=options.device, memory=options.memory)
    windows: dict[int, Window] = {}
    contexts: dict[int, int] = {}
    with serving(config, options.port) as server:
        for count in options.streams:
            before = server.metrics().get(TOKENS, 0.0)
            windows[count] = asyncio.run(measure(server, count, options))
            contexts[count] = options.prompt + round((windows[count].mean_tokens - before) / count)
    alone = {}
    if options.executor:
        cases = [(count, contexts[count] - 64) for count in options.streams]  # it grows by 128
        alone = {batch: rate for (batch, _), rate in executor_rates(cases).items()}
    header = ("streams", "context", "step ms", "idle", "chunks/s", "tokens/s", "executor", "ratio")
    print_rows(header, [row(count, contexts[count], windows[count], alone) for count in options.streams])


def row(count: int, context: int, window: Window, alone: dict[int, float]) -> tuple[str, ...]:
    rate = alone.get(count)
    return (
        str(count),
        str(context),
        f"{window.step_ms:.2f}",
        f"{window.idle_share:.2%}",
        f"{(window.chunks_after - window.chunks_before) / (window.ended_s - window.began_s):.0f}",
        f"{window.tokens_per_s:.0f}",
        *(("-", "-") if rate is None else (f"{rate:.0f}", f"{window.tokens_per_s / rate:.3f}")),
    )


if __name__ == "__main__":
    main()
