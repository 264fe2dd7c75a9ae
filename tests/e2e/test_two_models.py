"""Two models on one server: devices of their own, one lender for both, tenants and their limits in common."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.server import Answer, Open, Server, serving, until
from tests.e2e.shares import check_shares
from tests.engine.engine_process import kill

MODELS = ("first", "second")
NUM_PROMPTS = 12  # of 5 pages each: more than there is room for
NUM_TOKENS = 60
SLICE_NS = 20_000_000
pytestmark = pytest.mark.slow

CONFIG = """
[[models]]
path = "dummy:tiny"
name = "first"
devices = ["cpu:0"]
max_model_len = 256
dtype = "float32"
[[models]]
path = "dummy:tiny"
name = "second"
devices = ["cpu:1"]
max_model_len = 512
dtype = "float32"
seed = 1
[[devices]]
name = "cpu:0"
memory = "192KiB"
threads = 1
[[devices]]
name = "cpu:1"
memory = "320KiB"
threads = 1
[[devices]]
name = "cpu:2"
memory = "2MiB"
mode = "lend"
threads = 1
[[memory.links]]
between = ["cpu:0", "cpu:2"]
bytes_per_s = "2GiB"
[[memory.links]]
between = ["cpu:1", "cpu:2"]
bytes_per_s = "2GiB"
[memory]
host = "4MiB"
[scheduler]
slice_ms = 20
max_batch = 4
min_slice_ms = 5
[prefix_cache]
enabled = false
"""
TENANTS = {"anna": {"weight": 1.0}, "bert": {"weight": 2.0}, "few": {"max_prompts": 6}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("models"), CONFIG, TENANTS) as server:
        until(lambda: all(any(d.is_up for d in server.model(name).devices) for name in MODELS))
        yield server


@pytest.fixture(scope="module")
def alone(server: Server) -> dict[str, str]:
    """What each model says when nothing else runs."""
    return {model: texts(ask(server, model, n=1).answer())[0] for model in MODELS}


def ask(server: Server, model: str, n: int = NUM_PROMPTS) -> Open:
    return server.complete("anna", model=model, n=n, max_tokens=NUM_TOKENS, temperature=0)


def texts(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    return [choice["text"] for choice in answer.json["choices"]]


def by_model(server: Server, metric: str, **labels: str) -> dict[str, float]:
    """Sums over the samples that have these labels."""
    samples = [s for s in server.metrics().get(metric, []) if labels.items() <= s[0].items()]
    return {name: sum(v for each, v in samples if each["model_name"] == name) for name in MODELS}


def test_both_are_listed_and_others_are_not_found(server: Server) -> None:
    listed = server.get("/v1/models").json["data"]
    assert {card["id"]: card["max_model_len"] for card in listed} == {"first": 256, "second": 512}
    for answer in (
        server.get("/v1/models/third"),
        server.complete("anna", model="third", max_tokens=1).answer(),
    ):
        assert answer.status == 404
        assert answer.json["error"]["code"] == "model_not_found"
        assert "third" in answer.json["error"]["message"]


def test_requests_reach_their_model_and_contexts_of_both_live_with_the_lender(
    server: Server, alone: dict[str, str]
) -> None:
    assert alone["first"] != alone["second"]
    before = by_model(server, "vllm:generation_tokens_total")
    asked = {model: ask(server, model) for model in MODELS}
    for model, request in asked.items():
        assert texts(request.answer()) == [alone[model]] * NUM_PROMPTS
    after = by_model(server, "vllm:generation_tokens_total")
    assert all(after[model] - before[model] == NUM_PROMPTS * NUM_TOKENS for model in MODELS)
    for src, model in (("cpu:0", "first"), ("cpu:1", "second")):
        moved = by_model(server, "fairslice:moved_bytes_total", src=src, dst="cpu:2")
        assert [name for name, num_bytes in moved.items() if num_bytes] == [model]
    assert all(by_model(server, "fairslice:preemptions_total").values())


def test_what_was_had_of_one_model_is_no_debt_at_the_other(server: Server) -> None:
    """Bert has the second model for himself, and then half of the first beside Anna, by their weights."""
    with closing(server.complete("bert", model="second", n=8, max_tokens=480)):
        with (
            closing(server.complete("anna", model="first", n=40, max_tokens=230)),
            closing(server.complete("bert", model="first", n=40, max_tokens=230)),
        ):
            check_shares(server, {"anna": 1.0, "bert": 2.0}, SLICE_NS, "first")
        served = by_model(server, "fairslice:tenant_service_seconds_total", tenant="bert")
        assert all(served.values())
    server.wait_idle()


def test_limits_of_a_tenant_hold_over_all_models(server: Server) -> None:
    with closing(server.complete("few", model="first", n=4, max_tokens=230)):
        until(lambda: any(tenant.name == "few" for tenant in server.model("first").tenants))
        refused = server.complete("few", model="second", n=3, max_tokens=1).answer()
        assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "4 prompts are open, of 6 allowed" in refused.json["error"]["message"]
        assert server.complete("few", model="second", n=2, max_tokens=1).answer().status == 200
    server.wait_idle()


def test_one_model_serves_on_when_the_runner_of_the_other_is_killed(
    server: Server, alone: dict[str, str]
) -> None:
    pids = [server.pid_of_runner(*place) for place in (("first", "cpu:0"), ("second", "cpu:1"))]
    tokens = server.model("first").output_tokens
    interrupted, other = ask(server, "first"), ask(server, "second")
    until(lambda: server.model("first").output_tokens > tokens + 50)
    kill(pids[0])
    until(lambda: not server.model("first").devices[0].is_up)
    assert texts(other.answer()) == [alone["second"]] * NUM_PROMPTS
    assert texts(ask(server, "second", n=1).answer()) == [alone["second"]]
    assert texts(interrupted.answer()) == [alone["first"]] * NUM_PROMPTS
    assert by_model(server, "fairslice:runners_lost_total") == {"first": 1, "second": 0}
    assert server.pid_of_runner("second", "cpu:1") == pids[1]
