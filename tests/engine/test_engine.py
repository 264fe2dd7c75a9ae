"""The engine as a process: contention, aborts, and everything that may die."""

import os
import subprocess
import sys

import pytest

from engine.messages import FinishReason
from tests.engine.engine_process import Client, children, engine, kill

PROMPTS = {f"p{number}": [(7 * number + i) % 256 for i in range(3 + 5 * number)] for number in range(10)}
NUM_TOKENS = 150
NUM_FED = sum(len(ids) + NUM_TOKENS - 1 for ids in PROMPTS.values())  # positions, each computed once
SAMPLED = {"temperature": 1.0, "top_p": 0.95, "top_k": 50}  # every other prompt is sampled, by its seed


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """What every prompt gets when nothing else runs."""
    with engine(tmp_path_factory.mktemp("alone"), devices=(("cpu", "32MiB"),)) as client:
        for prompt_id, ids in PROMPTS.items():
            submit(client, prompt_id, ids)
            client.wait()
        return client.tokens


def submit(client: Client, prompt_id: str, ids: list[int]) -> None:
    sampling = SAMPLED | {"seed": len(ids)} if len(ids) % 2 else {}
    client.submit(prompt_id, ids, NUM_TOKENS, **sampling)


def submit_all(client: Client) -> None:
    for prompt_id, ids in PROMPTS.items():
        submit(client, prompt_id, ids)


def has_tokens(client: Client, count: int) -> bool:
    return sum(map(len, client.tokens.values())) >= count


def test_a_small_pool_gives_the_same_tokens(tmp_path, alone):
    with engine(tmp_path) as client:
        submit_all(client)
        client.wait()
        assert client.tokens == alone
        assert set(client.finished.values()) == {FinishReason.LENGTH}
        assert client.metric("fairslice:preemptions") > 0
        assert client.metric("fairslice:evicted_pages") > 0
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:plans_sent") < client.metric("fairslice:output_tokens") / 2


@pytest.mark.parametrize("memory", ["256KiB", "8MiB"])
def test_a_runner_that_is_killed_is_followed_by_one_on_the_same_pool(tmp_path, alone, memory):
    """No position that was reported is computed again, whether contexts have copies elsewhere or do not."""
    with engine(tmp_path, devices=(("cpu:0", memory), ("cpu:1", memory))) as client:
        client.wait_for(lambda: client.metric("fairslice:device_up") == 2)
        submit_all(client)
        client.wait_for(lambda: has_tokens(client, 150))
        runners = children(os.getpid(), "engine.model_runner")
        assert len(runners) == 2
        kill(runners[0])
        client.wait()
        assert client.tokens == alone
        client.wait_for(lambda: client.metric("fairslice:runners_lost") == 1)
        assert client.metric("fairslice:recomputed_tokens") == 0
        assert client.metric("fairslice:computed_tokens") == NUM_FED
        assert client.metric("fairslice:dropped_contexts") == 0


def test_an_engine_that_is_killed_gets_its_prompts_back(tmp_path, alone):
    with engine(tmp_path) as client:
        submit_all(client)
        client.wait_for(lambda: has_tokens(client, 200))
        (loop,) = children(os.getpid(), "engine.loop")
        kill(loop)
        with pytest.raises((EOFError, OSError)):
            client.wait()
        client.resubmit_all()
        client.wait()
        assert client.tokens == alone


def test_a_lost_connection_replays_what_was_missed(tmp_path, alone):
    with engine(tmp_path) as client:
        submit_all(client)
        client.wait_for(lambda: has_tokens(client, 50))
        client.resubmit_all()
        client.wait()
        assert client.tokens == alone


def test_aborted_prompts_free_their_pages(tmp_path):
    with engine(tmp_path) as client:
        submit_all(client)
        client.wait_for(lambda: has_tokens(client, 30))
        for prompt_id in list(client.open):
            client.abort(prompt_id)
        client.wait_for(lambda: client.metric("vllm:kv_cache_usage_perc") == 0.0)
        assert client.metric("fairslice:open_prompts") == 0
        client.submit("after", [1, 2, 3], 5)
        client.wait()
        assert len(client.tokens["after"]) == 5


def test_refusals(tmp_path):
    with engine(tmp_path) as client:
        client.submit("long", list(range(250)) * 2, 5)
        client.wait()
        assert client.rejected["long"].code == "context_length_exceeded"
        assert "500" in client.rejected["long"].message
        assert "256" in client.rejected["long"].message


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('[[models]]\npath = "/nowhere"\n', "/nowhere"),
        ("[scheduler]\nslice = 3\n", "scheduler.slice: unknown key"),
        ('[[devices]]\nname = "cuda:9"\n', "cuda:9"),
        ('[[models]]\npath = "dummy:tiny"\n[[devices]]\nname = "cpu"\nmemory = "16KiB"\n', "devices.memory"),
    ],
)
def test_a_start_that_cannot_work_says_why_in_one_line(tmp_path, config, complaint):
    file = tmp_path / "fairslice.toml"
    file.write_text(config + f'[engine]\nsocket = "{tmp_path}/engine.sock"\n')
    done = subprocess.run(
        [sys.executable, "-m", "engine", "--config", str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("fairslice:")]
    assert len(lines) == 1
    assert complaint in lines[0]
    assert "Traceback" not in done.stderr
