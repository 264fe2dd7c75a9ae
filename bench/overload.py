"""Many streams at once through a pool that holds few of them, on CPU: exactness, preemptions, gaps.

    python -m bench.overload [--model PATH] [--streams N] [--holds N] [--max-tokens N] [--bound-s S]

Sends all streams at the same moment, once under cfs and once under fcfs, then every prompt alone. Says
whether each answer equals the one that it gets alone, how often prompts were preempted, what was recomputed,
and the longest gap between two tokens of a stream. Of a stream that differs it names the first token that
does, and how far the two likeliest tokens of that place are apart alone. Exit status 1 if cfs misses what is
expected of it.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from bisect import bisect_right
from dataclasses import dataclass, field

import aiohttp

from bench.report import print_rows
from bench.server import serving

CONFIG = """
[[models]]
{path}name = "model"
dtype = "float32"
max_model_len = {max_model_len}
[[devices]]
name = "cpu"
memory = {pool_bytes}
[scheduler]
policy = "{policy}"
max_batch = {holds}
[memory]
host = {host_bytes}
"""


@dataclass(slots=True)
class Stream:
    """One request and what came of it."""

    ids: list[int]
    max_tokens: int
    text: str = ""
    num_tokens: int = 0
    sent_s: float = 0.0
    token_s: list[float] = field(default_factory=list)

    @property
    def body(self) -> dict[str, object]:
        """What is asked of the server."""
        return {
            "model": "model",
            "prompt": self.ids,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def is_as(self, other: "Stream") -> bool:
        return self.text == other.text and self.num_tokens == other.num_tokens

    @property
    def longest_wait_s(self) -> float:
        """Without a token: the first one counts from the sending."""
        return max(self.longest_gap_s, self.token_s[0] - self.sent_s)

    @property
    def longest_gap_s(self) -> float:
        return max((b - a for a, b in zip(self.token_s, self.token_s[1:], strict=False)), default=0.0)


def make_streams(options: argparse.Namespace) -> list[Stream]:
    source = random.Random(options.seed)
    return [
        Stream(
            ids=[
                source.randrange(3, options.vocabulary) for _ in range(source.randint(4, options.max_prompt))
            ],
            max_tokens=source.randint(options.max_tokens // 8, options.max_tokens),
        )
        for _ in range(options.streams)
    ]


async def run_stream(session: aiohttp.ClientSession, url: str, stream: Stream) -> None:
    body = stream.body | {"stream": True, "stream_options": {"include_usage": True}}
    stream.sent_s = time.monotonic()
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            for choice in chunk["choices"]:
                stream.text += choice["text"]
                stream.token_s.append(time.monotonic())
            if chunk.get("usage"):
                stream.num_tokens = chunk["usage"]["completion_tokens"]


async def run_together(url: str, streams: list[Stream]) -> float:
    """All at once; seconds until the last has ended."""
    connector = aiohttp.TCPConnector(limit=0)
    began_s = time.monotonic()
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        await asyncio.gather(*(run_stream(session, url, stream) for stream in streams))
    return time.monotonic() - began_s


async def run_alone(url: str, streams: list[Stream]) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
        for stream in streams:
            await run_stream(session, url, stream)


async def differences(url: str, policy: str, streams: list[Stream], alone: list[Stream]) -> list[str]:
    """A line for each stream whose answer is not the one that it got alone."""
    lines = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
        for place, (stream, expected) in enumerate(zip(streams, alone, strict=True)):
            if not stream.is_as(expected):
                where = await first_difference(session, url, stream, expected)
                lines.append(f"{policy}: stream {place} is not as alone {where}")
    return lines


async def first_difference(session: aiohttp.ClientSession, url: str, stream: Stream, expected: Stream) -> str:
    """Asks the prompt once more, alone, for the log-probabilities where the texts part."""
    async with session.post(f"{url}/v1/completions", json=expected.body | {"logprobs": 5}) as response:
        response.raise_for_status()
        logprobs = (await response.json())["choices"][0]["logprobs"]
    shorter = min(len(stream.text), len(expected.text))
    parting = next((i for i in range(shorter) if stream.text[i] != expected.text[i]), shorter)
    token = max(0, bisect_right(logprobs["text_offset"], parting) - 1)
    top = sorted(logprobs["top_logprobs"][token].items(), key=lambda item: -item[1])
    likeliest, second = top[0], top[1]
    return (
        f"from token {token + 1} of {expected.num_tokens} on; there alone {likeliest[0]!r} has "
        f"{likeliest[1]} and {second[0]!r} {second[1]}, {likeliest[1] - second[1]:.3g} less"
    )


def config(options: argparse.Namespace, policy: str, holds: int) -> str:
    """Pool sizes come from the bytes that a token of context takes in this model."""
    longest = options.max_prompt + options.max_tokens
    return CONFIG.format(
        path=f'path = "{options.model}"\n' if options.model else "",
        policy=policy,
        holds=max(holds, options.max_batch),
        max_model_len=longest + 16,
        pool_bytes=int(holds * (longest + 32) * options.token_bytes),
        host_bytes=int(options.streams * (longest + 32) * options.token_bytes),
    )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="as in fairslice.toml; left out: the embedded model")
    parser.add_argument("--token-bytes", type=int, default=36_864, help="of context, over all layers")
    parser.add_argument("--vocabulary", type=int, default=30_000)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--holds", type=int, default=8)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--max-prompt", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--bound-s", type=float, default=30.0, help="that no wait may pass under cfs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8377)
    return parser.parse_args()


def main() -> int:
    options = read_options()
    rows, answers, counted, different = [], {}, {}, []
    for policy in ("cfs", "fcfs"):
        answers[policy] = make_streams(options)
        with serving(config(options, policy, options.holds), options.port) as server:
            took_s = asyncio.run(run_together(server.url, answers[policy]))
            counted[policy] = server.metrics()
        rows.append(row(policy, answers[policy], counted[policy], took_s))
    alone = make_streams(options)
    with serving(config(options, "cfs", options.holds), options.port) as server:
        asyncio.run(run_alone(server.url, alone))
        for policy, streams in answers.items():
            different += asyncio.run(differences(server.url, policy, streams, alone))
    equal = {
        policy: sum(a.is_as(b) for a, b in zip(streams, alone, strict=True))
        for policy, streams in answers.items()
    }
    print_rows(HEADER, [(*cells, f"{equal[cells[0]]}/{len(alone)}") for cells in rows])
    waits = {policy: max(s.longest_wait_s for s in streams) for policy, streams in answers.items()}
    bound = f"bound on the wait for a token, the first included: {options.bound_s} s"
    print(f"\n{bound}; cfs {waits['cfs']:.2f} s, fcfs {waits['fcfs']:.2f} s")
    print("\n".join(different))
    kept = (
        equal["cfs"] == len(alone)
        and waits["cfs"] <= options.bound_s < waits["fcfs"]
        and counted["cfs"]["fairslice:recomputed_tokens_total"] == 0
        and counted["cfs"]["fairslice:preemptions_total"] > options.streams
    )
    return 0 if kept else 1


HEADER = (
    *("policy", "took s", "tokens/s", "preemptions", "recomputed", "longest gap s", "first token p99 s"),
    *("messages", "as alone"),
)


def row(policy: str, streams: list[Stream], counted: dict[str, float], took_s: float) -> tuple[str, ...]:
    num_tokens = sum(stream.num_tokens for stream in streams)
    began_s = min(stream.token_s[0] for stream in streams)
    firsts = sorted(stream.token_s[0] - began_s for stream in streams)
    return (
        policy,
        f"{took_s:.1f}",
        f"{num_tokens / took_s:.0f}",
        f"{counted['fairslice:preemptions_total']:.0f}",
        f"{counted['fairslice:recomputed_tokens_total']:.0f}",
        f"{max(stream.longest_gap_s for stream in streams):.2f}",
        f"{firsts[int(0.99 * len(firsts))]:.2f}",
        f"{counted['fairslice:plans_sent_total']:.0f} for {num_tokens} tokens",
    )


if __name__ == "__main__":
    sys.exit(main())
