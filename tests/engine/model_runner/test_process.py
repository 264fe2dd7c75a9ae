"""Runners over real sockets, with a tiny random model on the CPU in fp32: every token is exact."""

import signal

from engine.messages import EndReason
from tests.engine.model_runner.harness import (
    Client,
    make_slice,
    reference,
    runner_in_thread,
    runner_process,
)

PROMPT = [(7 * i + 3) % 250 for i in range(21)]


def tables(client: Client, first: int, count: int) -> list[list[int]]:
    """A page table of `count` pages for each layer group, from page `first`."""
    assert client.layout is not None
    groups = range(len(client.layout.groups))
    return [list(range(first + g * count, first + (g + 1) * count)) for g in groups]


def test_a_slice_gives_the_tokens_of_generate() -> None:
    with runner_in_thread() as client:
        memory = client.start()
        client.plan(make_slice(1, PROMPT, tables(client, 1, 5), max_new=12))
        end = client.until_end(1)
        memory.close()
    assert (end.reason, end.computed) == (EndReason.USED, len(PROMPT) + 11)
    assert client.tokens[1] == reference(PROMPT, 12)
    assert client.fed[1] == end.computed


def test_a_killed_runner_is_replaced_on_the_same_pool_without_a_prefill() -> None:
    expected = reference(PROMPT, 12)
    with runner_process() as (client, process):
        memory = client.start()
        client.plan(make_slice(1, PROMPT, tables(client, 1, 5), max_new=6))
        computed = client.until_end(1).computed
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert client.tokens[1] == expected[:6]
    with runner_in_thread() as successor:
        successor.start(memory)
        last = expected[5]
        going_on = make_slice(
            2, [last], tables(successor, 1, 5), start=computed, num_prompt=len(PROMPT), max_new=6
        )
        successor.plan(going_on)
        successor.until_end(2)
        memory.close()
    assert successor.tokens[2] == expected[6:]
    assert successor.fed[2] == 6
