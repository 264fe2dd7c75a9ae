"""Prometheus metrics: what this process counts, and what the engine reports.

A metric that means what vLLM's does bears its name, so that dashboards for it work; ours begin with
`fairslice:`.
"""

import math
import os
from collections.abc import Iterable, Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engine.messages import Sample

SHARED_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's; read when it is imported

_FAST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 40.0)
_SLOW_S = (0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 960.0)
_TOKENS = tuple(digit * 10.0**power for power in range(6) for digit in (1, 2, 5))
_GAP_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)


Buckets = list[tuple[float | None, int]]
"""A cumulative histogram: (upper bound in seconds, count) with rising bounds; None is the last."""


class Metrics:
    """The counters of one api process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._by_model: dict[str, ModelMetrics] = {}
        model = ["model_name"]

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, model, buckets=buckets, registry=self.registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, model, registry=self.registry)

        self.first_token_s = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token", _FAST_S
        )
        self.gap_s = histogram("vllm:inter_token_latency_seconds", "Between two arrivals of tokens", _GAP_S)
        self.request_s = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the end of the answer", _SLOW_S
        )
        self.decode_s = histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last", _SLOW_S
        )
        self.per_token_s = histogram(
            "vllm:request_time_per_output_token_seconds",
            "From the first token to the last, divided by the tokens after the first",
            _GAP_S,
        )
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request", _TOKENS
        )
        self.longest_choice_tokens = histogram(
            "vllm:request_max_num_generation_tokens", "Tokens of a request's longest choice", _TOKENS
        )
        self.num_choices = histogram("vllm:request_params_n", "Choices asked for", (1, 2, 5, 10, 20))
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens of accepted prompts")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated")
        self.finished = Counter(
            "vllm:request_success",
            "Choices by the reason why they ended",
            [*model, "finished_reason"],
            registry=self.registry,
        )
        self.errors = Counter(
            "fairslice:http_errors", "Error answers by status", ["status"], registry=self.registry
        )
        self.cut_streams = Counter(
            "fairslice:cut_streams",
            "Streams cut off as nobody read them",
            registry=self.registry,
        )
        self.open_streams = Gauge(
            "fairslice:open_streams",
            "Streams being sent",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def of_model(self, model: str) -> "ModelMetrics":
        """Made once for each model."""
        if (of_model := self._by_model.get(model)) is None:
            of_model = self._by_model[model] = ModelMetrics(self, model)
        return of_model

    def render(self, samples: Iterable[Sample]) -> bytes:
        """The text format, with the engine's samples after ours. Where several workers run, ours are the
        sums over all of them: `api.workers` gave them a folder to share their counters in."""
        engine = CollectorRegistry()
        engine.register(_EngineSamples(list(samples)))
        return generate_latest(self._of_all_workers()) + generate_latest(engine)

    def latencies(self) -> tuple[Buckets, Buckets]:
        """Times to the first token and gaps between tokens, over all models and workers."""
        families = {family.name: family for family in self._of_all_workers().collect()}
        first_token = families.get("vllm:time_to_first_token_seconds")
        return _buckets(first_token), _buckets(families.get("vllm:inter_token_latency_seconds"))

    def _of_all_workers(self) -> CollectorRegistry:
        if SHARED_VARIABLE not in os.environ:
            return self.registry
        shared = CollectorRegistry()
        multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return shared


class ModelMetrics:
    """The metrics of one model: to find each by its label costs as much as to count."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.first_token_s = metrics.first_token_s.labels(model)
        self.gap_s = metrics.gap_s.labels(model)
        self.request_s = metrics.request_s.labels(model)
        self.decode_s = metrics.decode_s.labels(model)
        self.per_token_s = metrics.per_token_s.labels(model)
        self.request_prompt_tokens = metrics.request_prompt_tokens.labels(model)
        self.request_generation_tokens = metrics.request_generation_tokens.labels(model)
        self.longest_choice_tokens = metrics.longest_choice_tokens.labels(model)
        self.num_choices = metrics.num_choices.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.finished = partial(metrics.finished.labels, model)  # of the reason


def _buckets(family: Metric | None) -> Buckets:
    """Counts by upper bound, summed over labels."""
    counts: dict[float, int] = {}
    for sample in family.samples if family is not None else ():
        if sample.name.endswith("_bucket"):
            bound = float(sample.labels["le"])
            counts[bound] = counts.get(bound, 0) + round(sample.value)
    return [(bound if math.isfinite(bound) else None, counts[bound]) for bound in sorted(counts)]


class _EngineSamples(Collector):
    """The engine's samples as Prometheus families."""

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        by_name: dict[str, list[Sample]] = {}
        for sample in self._samples:
            by_name.setdefault(sample.name, []).append(sample)
        for name, samples in by_name.items():
            yield _family(name, samples)


def _family(name: str, samples: list[Sample]) -> Metric:
    first = samples[0]
    labels = list(first.labels)
    if first.kind == "histogram":
        histogram = HistogramMetricFamily(name, first.help, labels=labels)
        for sample in samples:
            histogram.add_metric(list(sample.labels.values()), sample.buckets, sample.value)
        return histogram
    family = (
        CounterMetricFamily(name, first.help, labels=labels)
        if first.kind == "counter"
        else GaugeMetricFamily(name, first.help, labels=labels)
    )
    for sample in samples:
        family.add_metric(list(sample.labels.values()), sample.value)
    return family
