"""How many streamed tokens per second one api process carries, with a fake engine and a raw client.

    python -m bench.api_stream [--streams 256] [--rate 20000] [--seconds 10]

The engine process offers `rate` tokens per second, one token per stream and step, as an engine does. The
client process only counts what it reads. The api is pinned to a core of its own where the machine has
several. Prints tokens per second as delivered, the api's CPU time for each, and how late every token was:
from the engine's sending of it to the client's reading of it. Exit status 1 if it falls short of a limit;
lateness is a limit at the default number of streams only, as all streams have their tokens in one step here.
On a machine that others use, lateness measures them: `chrt -r 10 python -m bench.api_stream` (as root) goes
before them for these seconds.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import uvloop

from engine.messages import (
    Abort,
    Admitted,
    FinishReason,
    FromApi,
    Hello,
    ModelCard,
    Submit,
    TokenDelta,
    Tokens,
    Welcome,
)
from engine.wire import MessageStream

LIMIT_TOKENS_PER_S = 15_000
LIMIT_LATE_MS = 20.0  # of the 99th percentile of tokens
LIMIT_RESIDENT_MIB = 1024
CARD = ModelCard(
    name="fake",
    architecture="none",
    source="dummy",
    tokenizer=None,
    vocab_size=300,
    max_model_len=1_000_000,
    bos_token_id=256,
    eos_token_ids=(257,),
    loaded_s=0,
)
LETTERS = b"abcdefghijklmnopqrstuvwxyz"
WINDOW = 4096  # steps whose sending times are remembered


class PacedEngine:
    """Sends each prompt one token per step. Token k of a stream is the letter k modulo 26."""

    def __init__(self, streams: int, rate: float, seconds: float, times_path: Path) -> None:
        self._streams = streams
        self._step_s = streams / rate
        self._num_steps = int(seconds / self._step_s)
        self._times_path = times_path
        self._prompts: list[str] = []
        self._started = asyncio.Event()
        self._stream: MessageStream[FromApi] | None = None

    def connect(self) -> MessageStream[FromApi]:
        self._stream = MessageStream(FromApi, self._on_message, lambda error: None)
        return self._stream

    def _on_message(self, message: FromApi) -> None:
        assert self._stream is not None
        match message:
            case Hello():
                self._stream.send(Welcome(engine_id="fake", ready=[CARD]))
            case Submit():
                self._prompts += [spec.prompt_id for spec in message.prompts]
                self._stream.send(Admitted(request_id=message.request_id))
                if len(self._prompts) == self._streams:
                    self._started.set()
            case Abort():
                raise SystemExit("the api aborted a prompt: the client is gone")

    async def run(self) -> None:
        await self._started.wait()
        assert self._stream is not None
        times: list[float] = []
        begin_s = time.monotonic()
        for step in range(self._num_steps):
            await asyncio.sleep(max(0.0, begin_s + step * self._step_s - time.monotonic()))
            finish = FinishReason.LENGTH if step == self._num_steps - 1 else None
            ids = [LETTERS[step % 26]]
            times.append(time.monotonic())
            self._stream.send(
                Tokens(
                    deltas=[
                        TokenDelta(prompt_id=prompt, start=step, ids=ids, finish=finish)
                        for prompt in self._prompts
                    ]
                )
            )
        self._times_path.write_text(json.dumps(times))
        await asyncio.sleep(3600)


async def serve_engine(path: str, streams: int, rate: float, seconds: float, times_path: Path) -> None:
    engine = PacedEngine(streams, rate, seconds, times_path)
    server = await asyncio.get_running_loop().create_unix_server(engine.connect, path)
    async with server:
        await engine.run()


class CountingClient(asyncio.Protocol):
    """Counts the tokens of one stream: the letters between `"text":"` and the next quote."""

    MARK = b'"text":"'

    def __init__(self, body: bytes, done: asyncio.Future[None]) -> None:
        self._body = body
        self._done = done
        self._rest = b""
        self.num_tokens = 0
        self.num_chunks = 0
        self.arrivals: list[tuple[int, float]] = []  # (tokens so far, time)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(self._body)}\r\n"
            "connection: close\r\n\r\n"
        )
        cast(asyncio.Transport, transport).write(head.encode() + self._body)

    def data_received(self, data: bytes) -> None:
        *events, self._rest = (self._rest + data).split(b"\n\n")
        before = self.num_tokens
        for event in events:
            _, found, text = event.partition(self.MARK)
            if found:
                self.num_tokens += text.index(b'"')
                self.num_chunks += 1
        if self.num_tokens > before:
            self.arrivals.append((self.num_tokens, time.monotonic()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


def _same(client: CountingClient) -> CountingClient:
    return client


async def drive(port: int, streams: int) -> list[CountingClient]:
    loop = asyncio.get_running_loop()
    body = json.dumps({"model": "fake", "prompt": "x", "max_tokens": 999_000, "stream": True}).encode()
    clients, ends = [], []
    for _ in range(streams):
        done = loop.create_future()
        client = CountingClient(body, done)
        await loop.create_connection(partial(_same, client), "127.0.0.1", port)
        clients.append(client)
        ends.append(done)
    await asyncio.gather(*ends)
    return clients


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=20_000.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--engine", nargs=2, metavar=("SOCKET", "TIMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine is not None:
        socket_path, times_path = options.engine
        asyncio.run(
            serve_engine(socket_path, options.streams, options.rate, options.seconds, Path(times_path))
        )
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> int:
    config, times_path, sock = folder / "fairslice.toml", folder / "times.json", folder / "engine.sock"
    config.write_text(f'[server]\nport = 0\n[engine]\nsocket = "{sock}"\n')
    arguments = [f"--{name}={getattr(options, name)}" for name in ("streams", "rate", "seconds")]
    module = [sys.executable, "-m"]
    paced_engine = [*module, "bench.api_stream", *arguments, "--engine", str(sock), str(times_path)]
    engine = subprocess.Popen(paced_engine)
    api = subprocess.Popen([*module, "api", "--config", str(config)], stdout=subprocess.PIPE, text=True)
    try:
        assert api.stdout is not None
        line = next(line for line in api.stdout if "serving on" in line)
        cores = sorted(os.sched_getaffinity(0))
        worker_pid = int(Path(f"/proc/{api.pid}/task/{api.pid}/children").read_text().split()[0])
        if len(cores) > 1:
            os.sched_setaffinity(worker_pid, cores[:1])
            os.sched_setaffinity(engine.pid, cores[1:])
            os.sched_setaffinity(0, cores[1:])
        cpu_before_s = cpu_time_s(worker_pid)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            clients = runner.run(drive(int(line.rsplit(":", 1)[1]), options.streams))
        cpu_s = cpu_time_s(worker_pid) - cpu_before_s
        return report(clients, json.loads(times_path.read_text()), cpu_s, worker_pid)
    finally:
        for process in (api, engine):
            process.terminate()
            process.wait()


def cpu_time_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(clients: list[CountingClient], sent_s: list[float], cpu_s: float, pid: int) -> int:
    num_tokens = sum(client.num_tokens for client in clients)
    begin_s = sent_s[0]
    end_s = max(client.arrivals[-1][1] for client in clients)
    late_ms = sorted(
        (arrived_s - sent_s[index]) * 1e3
        for client in clients
        for (before, _), (tokens, arrived_s) in pairwise([(0, 0.0), *client.arrivals])
        for index in range(before, tokens)
    )
    rate = num_tokens / (end_s - begin_s)
    rss_kib = next(
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line
    )
    print(f"streams                       {len(clients)}")
    print(f"tokens offered per second     {len(sent_s) * len(clients) / (sent_s[-1] - sent_s[0]):,.0f}")
    print(f"tokens delivered per second   {rate:,.0f}   (limit: at least {LIMIT_TOKENS_PER_S:,})")
    per_token_us = cpu_s / num_tokens * 1e6
    print(f"api CPU per token             {per_token_us:.1f} us: {num_tokens / cpu_s:,.0f} per core second")
    print(f"tokens per chunk              {num_tokens / sum(client.num_chunks for client in clients):.2f}")
    p99_ms = late_ms[int(len(late_ms) * 0.99)]
    print(
        f"every token late by           p50 {statistics.median(late_ms):.1f} ms, p99 {p99_ms:.1f} ms"
        f" (limit: {LIMIT_LATE_MS:.0f}), worst {late_ms[-1]:.1f} ms"
    )
    resident_mib = int(rss_kib) / 1024
    print(f"api resident, highest         {resident_mib:.0f} MiB   (limit: {LIMIT_RESIDENT_MIB})")
    fast = num_tokens / cpu_s >= LIMIT_TOKENS_PER_S
    prompt = p99_ms <= LIMIT_LATE_MS or len(clients) > 256
    return 0 if fast and prompt and resident_mib <= LIMIT_RESIDENT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
