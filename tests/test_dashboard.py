"""docs/metrics.md and the Grafana dashboard name the metrics that a server exports, and no others."""

import json
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.served import served

ROOT = Path(__file__).parent.parent
DASHBOARD = json.loads((ROOT / "packaging" / "grafana" / "fairslice.json").read_text())
pytestmark = pytest.mark.slow

NUM_PROMPTS = 6  # twice what fits
CONFIG = """
[[models]]
path = "dummy:tiny"
name = "tiny"
devices = ["cpu:0"]
max_model_len = 256
[[devices]]
name = "cpu:0"
memory = "300KiB"
threads = 1
[[devices]]
name = "cpu:1"
memory = "4MiB"
mode = "lend"
threads = 1
[scheduler]
slice_ms = 40
min_slice_ms = 5
[memory]
host = "4MiB"
[server]
port = 0
[engine]
socket = "{socket}"
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name and type of every metric of a server whose prompts did not fit into one device."""
    folder = tmp_path_factory.mktemp("served")
    config = folder / "fairslice.toml"
    config.write_text(CONFIG.format(socket=folder / "engine.sock"))
    command = [sys.executable, "-m", "fairslice", "serve", "--config", str(config)]
    with served(command, ROOT) as printed:
        address = printed[-1].split()[-1]
        with ThreadPoolExecutor(NUM_PROMPTS) as pool:
            list(pool.map(partial(complete, address), range(NUM_PROMPTS)))
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            text = answer.read().decode()
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


def complete(address: str, number: int) -> None:
    """One answer of a fixed length, from a prompt of its own."""
    body = {"model": "tiny", "prompt": [number] * 120, "max_tokens": 80, "ignore_eos": True}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        answer.read()


def documented() -> dict[str, str]:
    """Name and type of every metric in the tables of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    return dict(re.findall(r"^\| `([a-z0-9_:]+)` \| (counter|gauge|histogram)\b", text, re.MULTILINE))


def names_in_dashboard() -> set[str]:
    """Of metrics, without what a histogram's series have at their ends."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    names = {name for query in queries for name in re.findall(r"\b(?:vllm|fairslice):\w+", query)}
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_every_metric_is_documented_with_its_type(exported: dict[str, str]) -> None:
    assert documented() == exported


def test_the_dashboard_asks_for_metrics_that_there_are(exported: dict[str, str]) -> None:
    assert names_in_dashboard() <= set(exported)


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)  # no panel lies over another
    assert all(panel["title"] and (panel["type"] == "row" or panel["description"]) for panel in panels)


def test_names_of_vllms_dashboard_are_exported_where_they_mean_the_same(exported: dict[str, str]) -> None:
    names = {
        "vllm:e2e_request_latency_seconds",
        "vllm:generation_tokens_total",
        "vllm:inter_token_latency_seconds",
        "vllm:kv_cache_usage_perc",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prompt_tokens_total",
        "vllm:request_decode_time_seconds",
        "vllm:request_generation_tokens",
        "vllm:request_max_num_generation_tokens",
        "vllm:request_prompt_tokens",
        "vllm:request_success_total",
        "vllm:request_time_per_output_token_seconds",
        "vllm:time_to_first_token_seconds",
    }
    assert names <= set(exported)
