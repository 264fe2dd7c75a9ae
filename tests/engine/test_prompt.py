"""What a prompt keeps of its steps, and tells its api."""

from engine.fairness.policy import Task
from engine.memory.context import Context
from engine.messages import Sampling, TokenLogprobs
from engine.prompt import Prompt
from tests.engine.fake_runner import FULL


def make_prompt(ids: list[int]) -> Prompt:
    task = Task(
        serial=1, tenant="t", weight=1.0, nice=0, arrival_ns=0, latency_ns=None, prompt_tokens=len(ids)
    )
    sampling = Sampling(max_tokens=4, prompt_logprobs=0)
    return Prompt(
        prompt_id="p",
        api_id="api",
        input_ids=ids,
        output_ids=[],
        sampling=sampling,
        task=task,
        context=Context(FULL),
        arrival_ns=0,
        last_token_ns=0,
    )


def test_logprobs_of_positions_that_are_computed_again_are_told_once() -> None:
    prompt = make_prompt([10, 11, 12, 13, 14, 15])
    known = [None, *(TokenLogprobs(logprob=-float(i), rank=1) for i in range(1, 6))]
    prompt.take_logprobs(0, None, known[:4])
    prompt.take_logprobs(2, None, [None, known[3]])  # its runner died, and two positions were lost
    prompt.take_logprobs(4, None, known[4:])
    prompt.output_ids.append(99)
    assert prompt.take_delta().prompt_logprobs == known
