"""Time to the first token of prompts that share a prefix, with and without it in the cache, through HTTP.

    python -m bench.prefix [--model PATH --device cuda:0 --memory SIZE] [--prefix N] [--own N] [--repeat N]

Every round makes a new prefix and sends it three times, one request after the other, each with tokens of its
own behind it: the first (cold) finds nothing, the others (warm) find the prefix. A `turn` goes on where the
first prompt ended. Medians over the rounds; beside them what the server says it found, and the same with the
cache off. Left out, the model is the tiny dummy with a context that is long enough, on CPU. Exit status 1 if
the first token does not come `--wanted` times sooner.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.report import print_rows
from bench.server import serving

CONFIG = """
[[models]]
path = "{model}"
name = "model"
max_model_len = {max_model_len}
[[devices]]
name = "{device}"
memory = "{memory}"
[prefix_cache]
enabled = {enabled}
"""
TINY = Path(__file__).parent.parent / "engine/model_runner/presets/tiny.json"
OUTPUT_TOKENS = 16
WARM = 2  # requests of a round that find the prefix


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got."""

    kind: str
    first_token_s: float
    cached_tokens: int


async def ask(session: aiohttp.ClientSession, url: str, kind: str, ids: list[int]) -> Answer:
    body = {
        "model": "model",
        "prompt": ids,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent_s = time.monotonic()
    first_s, cached = None, 0
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            first_s = first_s or time.monotonic()
            usage = json.loads(line[6:]).get("usage")
            if usage:
                cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert first_s is not None
    return Answer(kind, first_s - sent_s, cached)


async def run_rounds(url: str, options: argparse.Namespace) -> list[Answer]:
    source = random.Random(options.seed)

    def draw(count: int) -> list[int]:
        return [source.randrange(3, options.vocabulary) for _ in range(count)]

    answers = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session:
        await ask(session, url, "warm-up", draw(options.prefix + options.own))
        for _ in range(options.repeat):
            prefix = draw(options.prefix)
            prompts = [("cold", prefix + draw(options.own))]
            prompts += [("warm", prefix + draw(options.own)) for _ in range(WARM)]
            prompts.append(("turn", prompts[0][1] + draw(options.own)))
            answers += [await ask(session, url, kind, ids) for kind, ids in prompts]
    return answers


@contextmanager
def chosen_model(options: argparse.Namespace) -> Iterator[str]:
    """The model's path; the tiny dummy gets room for the prompts."""
    if options.model is not None:
        yield options.model
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        shape = json.loads(TINY.read_text()) | {"max_position_embeddings": longest(options)}
        file.write_text(json.dumps(shape))
        yield f"dummy:{file}"


def longest(options: argparse.Namespace) -> int:
    """Tokens of a prompt's context, at most."""
    return int(options.prefix + 2 * options.own + 4 * OUTPUT_TOKENS)


def measure(options: argparse.Namespace, model: str, *, enabled: bool) -> dict[str, tuple[float, int]]:
    """By kind of request, the medians of seconds to the first token and of tokens found."""
    config = CONFIG.format(
        model=model,
        device=options.device,
        memory=options.memory,
        max_model_len=longest(options),
        enabled=str(enabled).lower(),
    )
    with serving(config, options.port) as server:
        answers = asyncio.run(run_rounds(server.url, options))
    medians = {}
    for kind in ("cold", "warm", "turn"):
        of_kind = [answer for answer in answers if answer.kind == kind]
        first_token_s = statistics.median(answer.first_token_s for answer in of_kind)
        medians[kind] = (first_token_s, statistics.median_low(answer.cached_tokens for answer in of_kind))
    return medians


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="as in fairslice.toml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--own", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--wanted", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8378)
    return parser.parse_args()


def main() -> int:
    options = parse()
    rows, gained = [], 0.0
    with chosen_model(options) as model:
        for enabled in (True, False):
            medians = measure(options, model, enabled=enabled)
            cold_s = medians["cold"][0]
            rows += [
                ("on" if enabled else "off", kind, f"{s * 1e3:.1f}", str(cached), f"{cold_s / s:.1f}")
                for kind, (s, cached) in medians.items()
            ]
            if enabled:
                gained = cold_s / medians["warm"][0]
    print_rows(("cache", "request", "first token ms", "cached tokens", "times sooner"), rows)
    print(f"\n{options.prefix} shared and {options.own} own tokens: {gained:.1f} times sooner")
    return 0 if gained >= options.wanted else 1


if __name__ == "__main__":
    sys.exit(main())
