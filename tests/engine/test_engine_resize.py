"""The engine as a process, while pools give memory back and take it again: the same tokens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.messages import Resize, Resizing
from engine.questions import Questions
from tests.engine.engine_process import Client, children, engine, kill

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 60
SERVES, LENDS = (("cpu:0", "512KiB"),), (("cpu:1", "512KiB"),)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What every prompt gets when nothing else runs."""
    with engine(tmp_path_factory.mktemp("alone"), devices=(("cpu", "32MiB"),)) as client:
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
            client.wait()
        return client.tokens


def resident_bytes(device: str) -> int:
    """What the pools of a device really take of the machine's memory: the engine holds their files."""
    (loop,) = children(os.getpid(), "engine.loop")
    found = 0
    for file in Path(f"/proc/{loop}/fd").iterdir():
        if f"fairslice-{device} " in os.readlink(file) + " ":
            found += os.stat(file).st_blocks * 512
    return found


def pool_sizes(client: Client, device: str) -> dict[str, int]:
    sizes = client.get_stats().status["pool_sizes"]
    assert isinstance(sizes, dict)
    found: dict[str, int] = sizes[device]
    return found


def wait_settled(client: Client, device: str) -> None:
    client.wait_for(lambda: bool(pool_sizes(client, device)["settled"]))


def resize(client: Client, device: str, num_bytes: int) -> Resizing:
    with Questions(client.path, "a tool") as questions:
        return questions.ask(Resize(serial=1, device=device, num_bytes=num_bytes), Resizing)


def submit_all(client: Client, copy: int = 0) -> None:
    for prompt_id, ids in PROMPTS.items():
        client.submit(f"{prompt_id} {copy}", ids, NUM_TOKENS)


def check(client: Client, alone: dict[str, list[int]]) -> None:
    client.wait()
    assert all(tokens == alone[prompt_id.split()[0]] for prompt_id, tokens in client.tokens.items())


def test_a_lender_and_a_device_that_serves_shrink_under_load_and_grow_again(
    tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    with engine(tmp_path, devices=SERVES, lenders=LENDS) as client:
        for copy in range(3):
            submit_all(client, copy)
        client.wait_for(lambda: resident_bytes("cpu:0") > 300 * 2**10)
        for device in ("cpu:1", "cpu:0"):
            answer = resize(client, device, 192 * 2**10)
            assert answer.error is None
            assert 160 * 2**10 <= answer.num_bytes <= 192 * 2**10
            wait_settled(client, device)
            assert pool_sizes(client, device)["bytes"] == answer.num_bytes
            assert resident_bytes(device) <= answer.num_bytes
        submit_all(client, 3)
        check(client, alone)
        for device in ("cpu:1", "cpu:0"):
            assert resize(client, device, 512 * 2**10).error is None
            wait_settled(client, device)
        submit_all(client, 4)
        check(client, alone)
        assert client.metric("fairslice:withdrawn_segments") == 0
        assert client.metric("fairslice:dropped_contexts") == 0


@pytest.mark.slow
def test_a_runner_that_is_killed_while_its_pool_shrinks_and_grows(
    tmp_path: Path, alone: dict[str, list[int]]
) -> None:
    """Its successor maps the pool as it is by then."""
    with engine(tmp_path, devices=SERVES, lenders=LENDS) as client:
        for copy, num_bytes in enumerate((192 * 2**10, 512 * 2**10)):
            submit_all(client, copy)
            client.wait_for(lambda: sum(map(len, client.tokens.values())) >= 150)
            assert resize(client, "cpu:0", num_bytes).error is None
            (runner,) = children(os.getpid(), "engine.model_runner")
            kill(runner)
            wait_settled(client, "cpu:0")
            check(client, alone)


def test_the_tool_says_what_a_device_has_and_what_it_cannot_have(tmp_path: Path) -> None:
    with engine(tmp_path, devices=SERVES, lenders=LENDS):
        config = ["--config", str(tmp_path / "fairslice.toml")]

        def tool(*arguments: str) -> tuple[int, str]:
            command = [sys.executable, "-m", "engine.resize", *arguments, *config]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            return done.returncode, (done.stdout + done.stderr).strip()

        assert tool("cpu:1", "256KiB") == (0, "the pools of cpu:1 have 0.25 MiB")
        status, complaint = tool("cpu:0", "1GiB")
        assert status == 1
        assert complaint.startswith("fairslice: the pools of cpu:0 can have ")
        status, complaint = tool("cpu:0", "4KiB")
        assert status == 1, "a context of 256 tokens would not fit"
        assert tool("cpu:7", "1GiB") == (1, "fairslice: cpu:7 has no pool whose size could be changed")
        assert tool("cpu:1", "much")[0] == 2
    assert tool("cpu:1", "1GiB")[0] == 1
