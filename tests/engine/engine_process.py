"""A real engine with real runners on a tiny random model, and a client that speaks the api's protocol."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.messages import (
    Abort,
    Admitted,
    FinishReason,
    FromApi,
    GetStats,
    Hello,
    PromptSpec,
    Rejected,
    Sampling,
    Stats,
    Submit,
    ToApi,
    Tokens,
    Welcome,
)
from engine.wire import MessagePipe

TIMEOUT_S = 120.0

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "tiny"
max_model_len = 256
dtype = "float32"
{devices}
[scheduler]
policy = "{policy}"
slice_ms = 40
min_slice_ms = 5
max_batch = 8
[memory]
host = "8MiB"
[engine]
socket = "{socket}"
restart_s = 0.05
"""

DEVICE = """
[[devices]]
name = "{name}"
memory = "{memory}"
threads = 1
"""


class Client:
    """An api process in one object. Tokens are kept by prompt id, as an api keeps them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.open: dict[str, tuple[Submit, PromptSpec]] = {}
        self.tokens: dict[str, list[int]] = {}
        self.finished: dict[str, FinishReason] = {}
        self.rejected: dict[str, Rejected] = {}
        self.stats: Stats | None = None
        self.ready = False
        self._socket: socket.socket | None = None
        self._connect()

    def _connect(self) -> None:
        """Connect and wait until the model is ready; an engine that is dying may still take us in."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            assert time.monotonic() < deadline, "the engine does not listen"
            self.close()
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with contextlib.suppress(OSError, EOFError):
                self._socket.connect(self.path)
                self.pipe: MessagePipe[ToApi] = MessagePipe(self._socket, ToApi)
                self.send(Hello(api_id="test"))
                self.ready = False
                self.wait_for(lambda: self.ready)
                return
            time.sleep(0.05)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def send(self, message: FromApi) -> None:
        self.pipe.send(message)

    def submit(self, prompt_id: str, ids: Sequence[int], max_tokens: int, **sampling: object) -> None:
        sampling = {"temperature": 0.0} | sampling
        spec = PromptSpec(
            prompt_id=prompt_id, input_ids=list(ids), sampling=Sampling(max_tokens=max_tokens, **sampling)
        )
        submit = Submit(request_id=prompt_id, model="tiny", prompts=[spec])
        self.open[prompt_id] = (submit, spec)
        self.tokens[prompt_id] = []
        self.send(submit)

    def abort(self, prompt_id: str) -> None:
        del self.open[prompt_id]
        self.send(Abort(prompt_ids=[prompt_id]))

    def resubmit_all(self) -> None:
        """What an api does after a reconnection."""
        self._connect()
        for prompt_id, (submit, spec) in self.open.items():
            again = PromptSpec(
                prompt_id=prompt_id,
                input_ids=spec.input_ids,
                sampling=spec.sampling,
                output_ids=self.tokens[prompt_id],
            )
            self.send(Submit(request_id=submit.request_id, model="tiny", prompts=[again], resubmitted=True))

    def wait_for(self, condition) -> None:
        """Take messages in until the condition holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "nothing came in time"
            for message in self.pipe.receive(0.5):
                self._take(message)

    def wait(self) -> None:
        self.wait_for(lambda: not self.open)

    def get_stats(self) -> Stats:
        self.stats = None
        self.send(GetStats(serial=1))
        self.wait_for(lambda: self.stats is not None)
        assert self.stats is not None
        return self.stats

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        return sum(sample.value for sample in self.get_stats().samples if sample.name == name)

    def _take(self, message: ToApi) -> None:
        match message:
            case Welcome(ready=ready):
                self.ready = bool(ready)
            case Tokens(deltas=deltas):
                for delta in deltas:
                    if delta.prompt_id not in self.open:
                        continue
                    known = self.tokens[delta.prompt_id]
                    assert delta.start <= len(known), "a token is missing"
                    known += delta.ids[len(known) - delta.start :]
                    if delta.finish is not None:
                        self.finished[delta.prompt_id] = delta.finish
                        del self.open[delta.prompt_id]
            case Rejected(request_id=request_id):
                self.rejected[request_id] = message
                del self.open[request_id]
            case Stats():
                self.stats = message
            case Admitted():
                pass


@contextlib.contextmanager
def engine(
    folder: Path,
    *,
    policy: str = "cfs",
    devices: Sequence[tuple[str, str]] = (("cpu", "256KiB"),),
    lenders: Sequence[tuple[str, str]] = (),
    more: str = "",
) -> Iterator[Client]:
    """A supervised engine; `devices`, and `lenders` without a model, are names and pool sizes. `more` is
    appended to the configuration."""
    path = str(folder / "engine.sock")
    tables = "".join(DEVICE.format(name=name, memory=memory) for name, memory in devices)
    tables += "".join(DEVICE.format(name=n, memory=m) + 'mode = "lend"\n' for n, m in lenders)
    config = folder / "fairslice.toml"
    config.write_text(CONFIG.format(devices=tables, policy=policy, socket=path) + more)
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "--config", str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    client = None
    try:
        client = Client(path)
        yield client
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    finally:
        if client is not None:
            client.close()
        if process.poll() is None:
            process.kill()
            process.wait()


def children(pid: int, name: str) -> list[int]:
    """Ids of the descendants of a process whose command line has `name` in it."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            with contextlib.suppress(OSError):
                if name in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(child)
            found += children(child, name)
    return found


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
