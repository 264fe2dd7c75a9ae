"""A server as its users have it: api, engine and runners as processes, on CPU devices. Clients are tenants
with keys; what the engine did is read from its metrics and its log of slices."""

import http.client
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from api.key_file import KeyEntry, KeyFile, TenantEntry, hash_of, id_of, new_key, write_key_file
from engine.messages import GetLive, GetStats, Live, LiveModel, Stats
from engine.questions import Questions
from tests.served import served

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0  # that something happens at all; nothing is measured in seconds
OPERATOR = "operator"

Samples = dict[str, list[tuple[dict[str, str], float]]]


@dataclass(frozen=True)
class Answer:
    status: int
    json: Any


@dataclass(frozen=True)
class Open:
    """A request that was sent. Its prompts are aborted when it is closed before its answer came."""

    connection: http.client.HTTPConnection

    def answer(self) -> Answer:
        response = self.connection.getresponse()
        data = response.read()
        self.connection.close()
        return Answer(response.status, msgspec.json.decode(data))

    def close(self) -> None:
        self.connection.close()


class Server:
    """A running server, asked by its tenants."""

    def __init__(self, address: str, questions: Questions, keys: Mapping[str, str]) -> None:
        self._place = address.removeprefix("http://")
        self._questions = questions
        self._keys = keys

    def send(self, tenant: str, body: Mapping[str, object] | None, path: str = "/v1/completions") -> Open:
        """Send a request, a GET without a body, and do not wait for what comes of it."""
        connection = http.client.HTTPConnection(self._place, timeout=TIMEOUT_S)
        headers = {"authorization": f"Bearer {self._keys[tenant]}", "content-type": "application/json"}
        data = None if body is None else msgspec.json.encode(body)
        connection.request("GET" if body is None else "POST", path, data, headers)
        return Open(connection)

    def complete(self, tenant: str, **fields: object) -> Open:
        """A completion of exactly `max_tokens` tokens by each of `n` prompts."""
        return self.send(tenant, {"model": "tiny", "prompt": [7] * 16, "ignore_eos": True} | fields)

    def get(self, path: str, tenant: str = OPERATOR) -> Answer:
        return self.send(tenant, None, path).answer()

    def metrics(self) -> Samples:
        """Labels and value of every sample, by name, from /metrics."""
        connection = self.send(OPERATOR, None, "/metrics").connection
        text = connection.getresponse().read().decode()
        connection.close()
        samples: Samples = {}
        for name, labels, value in re.findall(r"^([a-z_:]+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
            pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            samples.setdefault(name, []).append((pairs, float(value)))
        return samples

    def live(self, since_ns: int = 0) -> Live:
        """What the engine does now, and the slices that ended after this time of its clock."""
        return self._questions.ask(GetLive(serial=1, since_ns=since_ns), Live)

    def model(self, name: str = "tiny") -> LiveModel:
        """One model as it is now, with all slices that are still known."""
        return next(model for model in self.live().models if model.name == name)

    def pid_of_runner(self, model: str, device: str) -> int:
        status: Any = self._questions.ask(GetStats(serial=1), Stats).status
        pid: int = status["models"][model]["devices"][device]["pid"]
        return pid

    def wait_idle(self) -> None:
        """Wait until nothing is left of what was sent or closed."""
        until(lambda: not any(t.num_running + t.num_waiting for m in self.live().models for t in m.tenants))


@contextmanager
def serving(folder: Path, config: str, tenants: Mapping[str, dict[str, Any]]) -> Iterator[Server]:
    """A server of this configuration, without tables [server] and [engine], for tenants with these fields of
    their `TenantEntry`."""
    folder.mkdir(exist_ok=True)
    keys = {name: new_key() for name in (*tenants, OPERATOR)}
    entries = [
        TenantEntry(
            name=name,
            keys=[KeyEntry(id=id_of(key), sha256=hash_of(key), created="")],
            operator=name == OPERATOR,
            **tenants.get(name, {}),
        )
        for name, key in keys.items()
    ]
    write_key_file(folder / "keys.json", KeyFile(tenants=entries))
    socket_path = str(folder / "engine.sock")
    server = f'[server]\nport = 0\nkeys = "{folder}/keys.json"\nmax_prompts_per_request = 4000\ndrain_s = 1\n'
    engine = f'[engine]\nsocket = "{socket_path}"\nrestart_s = 0.05\n'
    file = folder / "fairslice.toml"
    file.write_text(config + server + engine)
    command = [sys.executable, "-m", "fairslice", "serve", "--config", str(file)]
    with served(command, ROOT) as printed, Questions(socket_path, "a test") as questions:
        yield Server(printed[-1].split()[-1], questions, keys)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what is bound to happen."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.02)
