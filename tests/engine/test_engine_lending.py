"""The engine as a process, with devices that lend their memory: the same tokens, whatever goes wrong."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from engine.messages import Resize, Resizing
from engine.questions import Questions
from tests.engine.engine_process import Client, children, engine, kill

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 60
SERVES, LENDS = (("cpu:0", "192KiB"),), (("cpu:1", "512KiB"), ("cpu:2", "512KiB"))
MANY_PAGES = 40  # of a lender: more than the 24 that cpu:0 may have as well and the 4 that stay in a segment
SLOW = """
[[memory.links]]
between = ["cpu:0", "cpu:1"]
delay_ms = 15
[[memory.links]]
between = ["cpu:0", "cpu:2"]
delay_ms = 40
"""
RANKED = """
[[memory.links]]
between = ["cpu:0", "cpu:1"]
bytes_per_s = "2GiB"
[[memory.links]]
between = ["cpu:0", "cpu:2"]
bytes_per_s = "1GiB"
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What every prompt gets when nothing else runs."""
    with engine(tmp_path_factory.mktemp("alone"), devices=(("cpu", "32MiB"),)) as client:
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
            client.wait()
        return client.tokens


def submit_all(client: Client) -> None:
    for prompt_id, ids in PROMPTS.items():
        client.submit(prompt_id, ids, NUM_TOKENS)


def moved(client: Client, src: str, dst: str) -> float:
    """Bytes that were moved from one device to another."""
    labels = {"src": src, "dst": dst}
    samples = [s for s in client.get_stats().samples if s.name == "fairslice:moved_bytes"]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def num_pages(client: Client, device: str) -> float:
    """Pages in use in the memory of a device."""
    samples = [s for s in client.get_stats().samples if s.name == "fairslice:tier_pages_used"]
    return sum(s.value for s in samples if s.labels["tier"] == device)


def is_settled(client: Client, device: str) -> bool:
    """Whether the device has given back what it was asked for."""
    sizes = client.get_stats().status["pool_sizes"]
    assert isinstance(sizes, dict)
    return bool(sizes[device]["settled"])


def test_contexts_live_with_lenders_and_come_back_exact(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    """Moves are late on purpose: a page that were read too early would be full of other tokens."""
    with engine(tmp_path, devices=SERVES, lenders=LENDS, more=SLOW) as client:
        submit_all(client)
        client.wait()
        assert client.tokens == alone
        assert sum(moved(client, "cpu:0", lender) for lender in ("cpu:1", "cpu:2")) > 0
        assert sum(moved(client, lender, "cpu:0") for lender in ("cpu:1", "cpu:2")) > 0
        assert moved(client, "cpu:0", "host") == 0
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:leased_segments") > 0


class Load:
    """Prompts without end: whatever the machine's speed, so many are open."""

    def __init__(self, client: Client, num_open: int) -> None:
        self._client = client
        self._num_open = num_open
        self._next = ((f"{name} {copy}", ids) for copy in count() for name, ids in PROMPTS.items())

    def wait_for(self, condition: Callable[[], bool]) -> None:
        def is_so_under_load() -> bool:
            while len(self._client.open) < self._num_open:
                self._client.submit(*next(self._next), NUM_TOKENS)
            return condition()

        self._client.wait_for(is_so_under_load)


def test_from_local_to_a_peer_to_another_peer_to_the_host_and_back(
    tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    """The nearer lender needs its memory, then the other: each has one segment left."""
    without_cache = "[prefix_cache]\nenabled = false\n"  # or its contexts would move from lender to lender
    with engine(tmp_path, devices=SERVES, lenders=LENDS, more=RANKED + without_cache) as client:
        load = Load(client, num_open=20)
        for lender, next_tier in (("cpu:1", "cpu:2"), ("cpu:2", "host")):
            is_asked = False
            while not is_asked:
                load.wait_for(lambda lender=lender: num_pages(client, lender) >= MANY_PAGES)
                assert moved(client, lender, next_tier) == 0
                with standstill():
                    is_asked = num_pages(client, lender) >= MANY_PAGES  # still
                    if is_asked:
                        give_back(client, lender)
            load.wait_for(lambda lender=lender: is_settled(client, lender))
            assert moved(client, lender, next_tier) > 0
        load.wait_for(lambda: moved(client, "host", "cpu:0") > 0)
        client.wait()
        assert all(tokens == alone[prompt_id.split()[0]] for prompt_id, tokens in client.tokens.items())
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:dropped_contexts") == 0


@contextlib.contextmanager
def standstill() -> Iterator[None]:
    """No step is made, nor a move."""
    (runner,) = children(os.getpid(), "engine.model_runner")
    os.kill(runner, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(runner, signal.SIGCONT)


def give_back(client: Client, lender: str) -> None:
    with Questions(client.path, "a tool") as questions:
        answer = questions.ask(Resize(serial=1, device=lender, num_bytes=2**15), Resizing)
    assert answer.error is None


@pytest.mark.slow
def test_a_killed_runner_finds_its_contexts_with_lenders(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    with engine(tmp_path, devices=SERVES, lenders=LENDS, more=SLOW) as client:
        submit_all(client)
        client.wait_for(lambda: sum(map(len, client.tokens.values())) >= 200)
        (runner,) = children(os.getpid(), "engine.model_runner")
        kill(runner)
        client.wait()
        assert client.tokens == alone
        assert client.metric("fairslice:dropped_contexts") == 0


@pytest.mark.slow
def test_two_devices_that_serve_share_two_that_lend(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    serves = (("cpu:0", "192KiB"), ("cpu:3", "192KiB"))
    with engine(tmp_path, devices=serves, lenders=LENDS, more=SLOW) as client:
        for copy in range(3):
            for prompt_id, ids in PROMPTS.items():
                client.submit(f"{prompt_id} {copy}", ids, NUM_TOKENS)
        client.wait()
        assert all(tokens == alone[prompt_id.split()[0]] for prompt_id, tokens in client.tokens.items())
        assert moved(client, "cpu:3", "cpu:1") + moved(client, "cpu:3", "cpu:2") > 0


@pytest.mark.slow
def test_everything_full_costs_recomputation_only(tmp_path: Path, alone: dict[str, list[int]]) -> None:
    with engine(tmp_path, devices=SERVES, lenders=(("cpu:1", "64KiB"),), more="") as client:
        submit_all(client)
        client.wait()
        assert client.tokens == alone


@pytest.mark.slow
def test_the_report_shows_pools_paths_and_leases(tmp_path: Path) -> None:
    with engine(tmp_path, devices=SERVES, lenders=LENDS) as client:
        submit_all(client)
        client.wait()
        command = [sys.executable, "-m", "engine.memory_report", "--config", str(tmp_path / "fairslice.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for words in ("tiny: pages of", "lent by cpu:1", "cpu:0 -> cpu:", "lender cpu:2: ", "GPU"):
        assert words in done.stdout, done.stdout
