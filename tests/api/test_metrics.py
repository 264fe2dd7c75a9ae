"""What /metrics shows."""

import asyncio
import re

from engine.messages import Sample
from tests.api.harness import run, running_api, until


def test_requests_are_counted_under_vllms_names() -> None:
    async def test() -> None:
        async with running_api() as api:
            await api.complete(max_tokens=5, stream=True)
            await api.complete(max_tokens=50)
            await api.complete(temperature=9)
            text = (await api.get("/metrics")).body.decode()
            values = dict(re.findall(r"^([^#\s]+) (\S+)$", text, re.MULTILINE))
            label = '{model_name="fake"}'
            assert float(values[f"vllm:prompt_tokens_total{label}"]) == 6
            assert float(values[f"vllm:generation_tokens_total{label}"]) == 5 + 12
            assert float(values[f"vllm:time_to_first_token_seconds_count{label}"]) == 2
            assert float(values[f"vllm:e2e_request_latency_seconds_count{label}"]) == 2
            assert (
                float(values['vllm:request_success_total{finished_reason="length",model_name="fake"}']) == 1
            )
            assert float(values['vllm:request_success_total{finished_reason="stop",model_name="fake"}']) == 1
            assert float(values['fairslice:http_errors_total{status="400"}']) == 1
            assert float(values["fairslice:slices_total"]) == 3

    run(test())


def test_a_prompt_that_fails_is_told_from_one_that_is_aborted() -> None:
    async def test() -> None:
        async with running_api(paused=True) as api:
            failing = asyncio.create_task(api.complete())
            await until(lambda: api.engine.running)
            api.engine.fail_all("no such luck")
            assert (await failing).status == 500
            text = (await api.get("/metrics")).body.decode()
            assert 'vllm:request_success_total{finished_reason="error",model_name="fake"} 1.0' in text
            assert 'finished_reason="abort"' not in text

    run(test())


def test_the_engines_samples_of_every_kind() -> None:
    async def test() -> None:
        async with running_api() as api:
            samples = [
                Sample(name="fairslice:pages", help="Pages", kind="gauge", value=2, labels={"tier": "host"}),
                Sample(name="fairslice:pages", help="Pages", kind="gauge", value=5, labels={"tier": "local"}),
                Sample(
                    name="fairslice:wait_seconds",
                    help="Waits",
                    kind="histogram",
                    value=1.5,
                    buckets=[("0.1", 1), ("+Inf", 3)],
                ),
            ]
            text = api.services.metrics.render(samples).decode()
            assert 'fairslice:pages{tier="host"} 2.0' in text
            assert 'fairslice:pages{tier="local"} 5.0' in text
            assert 'fairslice:wait_seconds_bucket{le="+Inf"} 3.0' in text
            assert "fairslice:wait_seconds_sum 1.5" in text

    run(test())
