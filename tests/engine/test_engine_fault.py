"""The engine as a process, with a device that fails, whose pool is not to be trusted any more; and with a
plan that fails, after which its own books are not."""

from pathlib import Path

import pytest

from engine.messages import FinishReason
from engine.suspects import MAX_ENDS
from tests.engine.engine_process import Client, engine

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 180

# Read by every Python process that finds it on its path: a runner for whose process id a file is there fails
# as a GPU would, also if it has nothing to do. As soon as the engine knows, all of its pool is spoiled.
FAULT = """
import gc, os, sys
from pathlib import Path

flag = Path(__file__).parent / str(os.getpid())

def fail():
    from engine.model_runner.devices import CpuDevice
    CpuDevice.is_fault = lambda device, error: True
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def spoil():
    from engine.model_runner.devices import Attached
    gc.unfreeze()  # what is frozen is not found
    for found in [found for found in gc.get_objects() if type(found) is Attached]:
        found.local.fill_(77)

def send_and_spoil(mailbox, message):
    from engine.messages import Fault
    send(mailbox, message)
    if isinstance(message, Fault):
        while mailbox._socket.recv(1 << 16):
            pass
        spoil()

if "engine.model_runner" in sys.orig_argv:
    from engine.model_runner.mailbox import Mailbox
    from engine.model_runner.runner import Runner
    send, step, wait = Mailbox.send, Runner.step, Runner._wait
    Mailbox.send = send_and_spoil
    Runner.step = lambda runner: fail() if flag.exists() else step(runner)
    Runner._wait = lambda runner, limit_s: wait(runner, 0.01 if limit_s is None else limit_s)
"""

# Likewise: no runner survives a step with the token 255 of a prompt.
POISON = """
import sys

def launch(runner, rows):
    assert not any(255 in (row.ids or ()) for row in rows), "a bug"
    return compute(runner, rows)

if "engine.model_runner" in sys.orig_argv:
    from engine.model_runner.cpu_executor import CpuExecutor
    compute, CpuExecutor.launch = CpuExecutor.launch, launch
"""

# Likewise: the next plan fails while a file is there, which it removes.
BAD_PLAN = """
from pathlib import Path
from engine.scheduler import Scheduler

flag, plan = Path(__file__).parent / "fail", Scheduler.plan

def fail(self, now_ns):
    if flag.exists():
        flag.unlink()
        raise AssertionError("the books are wrong")
    return plan(self, now_ns)

Scheduler.plan = fail
"""


def pid_of_runner(client: Client, device: str) -> int:
    models = client.get_stats().status["models"]
    assert isinstance(models, dict)
    pid: int = models["tiny"]["devices"][device]["pid"]
    return pid


def make_fail(client: Client, device: str, num_lost: int, folder: Path) -> None:
    """Have the device's runner fail, the `num_lost`th to do so."""
    (folder / str(pid_of_runner(client, device))).touch()
    client.wait_for(lambda: client.metric("fairslice:runners_lost") == num_lost)


def test_contexts_in_the_pool_of_a_device_that_failed_are_recomputed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices serve; each lends the other what it does not need."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    devices = (("cpu:0", "192KiB"), ("cpu:1", "1MiB"))
    with engine(tmp_path, devices=devices) as client:
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
            client.wait()
        alone = dict(client.tokens)
        for number, device in enumerate(("cpu:0", "cpu:1"), start=1):
            client.wait_for(lambda: client.metric("fairslice:device_up") == 2)
            for prompt_id, ids in PROMPTS.items():
                client.submit(f"{prompt_id} {device}", ids, NUM_TOKENS)
            count = sum(map(len, client.tokens.values())) + 100
            client.wait_for(lambda count=count: sum(map(len, client.tokens.values())) >= count)
            make_fail(client, device, number, tmp_path)
            client.wait()
        assert {name: client.tokens[name] for name in alone} == alone
        wrong = [name for name, tokens in client.tokens.items() if tokens != alone[name.split()[0]]]
        assert not wrong
        assert client.metric("fairslice:recomputed_tokens") > 0


def test_an_engine_whose_plan_fails_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BAD_PLAN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    with engine(tmp_path) as client:
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
        client.wait()
        alone = dict(client.tokens)
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, ids, NUM_TOKENS)
        (tmp_path / "fail").touch()
        with pytest.raises((EOFError, OSError)):
            client.wait()
        client.resubmit_all()
        client.wait()
        assert client.tokens == alone
    said = capfd.readouterr().err
    assert "the books are wrong" in said
    assert "the engine ended with status 1" in said


def test_a_prompt_that_no_runner_survives_is_failed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    with engine(tmp_path) as client:
        for prompt_id, ids in PROMPTS.items():
            client.submit(prompt_id, [token % 200 for token in ids], NUM_TOKENS)
        client.submit("poison", [1, 2, 255, 4], NUM_TOKENS)
        client.wait()
        lost = client.metric("fairslice:runners_lost")
    assert client.finished.pop("poison") is FinishReason.ERROR
    assert set(client.finished.values()) == {FinishReason.LENGTH}
    assert client.finished.keys() == PROMPTS.keys()
    assert MAX_ENDS <= lost <= MAX_ENDS + 1
    said = capfd.readouterr().err
    assert "E fairslice.engine: the prompt poison is failed: 3 runners in a row ended" in said
    assert "starting it again in 0.05 s" in said
    assert "starting it again in 0.2 s" in said
