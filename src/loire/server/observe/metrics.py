"""What Prometheus sees. Names and units follow https://prometheus.io/docs/practices/naming/.

All metrics are in a registry of their own, so that several servers in one process do not mix.
docs/metrics.md says what each one means.
"""

from collections.abc import Callable, Collection, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loire.base.messages import AdapterCounts
from loire.base.step import StepRecord
from loire.server.observe.engine_state import EngineState
from loire.server.observe.router_metrics import LORA_INFO, RouterMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0),
)
"""Bounds of histograms of time: three a decade, from a step to a long answer."""

POWERS = tuple(float(2**exponent) for exponent in range(14))
"""Bounds of histograms of sizes: 1 to 8192."""


class Metrics:
    """Everything that is counted and measured.

    read_state: asked at each scrape; None while there is no engine yet.
    """

    def __init__(self, read_state: Callable[[], EngineState | None]) -> None:
        # The time at which each counter was made doubles the series and is never asked for.
        disable_created_metrics()
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_StateCollector(read_state))
        ProcessCollector(registry=self.registry)
        self.requests = self._counter(
            "loire_requests", "Requests that ended, by how they did", "tenant", "outcome"
        )
        self.rejections = self._counter(
            "loire_rejections", "Calls that were refused, by the error's code", "reason"
        )
        self.rejection_duration = self._histogram(
            "loire_rejection_duration_seconds",
            "From the arrival of a call's headers to its refusal",
            SECONDS,
            "reason",
        )
        self.authentication_failures = self._counter(
            "loire_authentication_failures", "Calls without a key that counted", "reason"
        )
        self.prompt_tokens = self._counter(
            "loire_prompt_tokens", "Prompt tokens of requests that began", "tenant"
        )
        self.cached_tokens = self._counter(
            "loire_cached_prompt_tokens", "Those of them found in the prefix cache", "tenant"
        )
        self.registry.register(
            RouterMetrics(read_state, queries=self.prompt_tokens, hits=self.cached_tokens)
        )
        self.output_tokens = self._counter("loire_output_tokens", "Tokens generated", "tenant")
        self.prefix_queries = self._counter(
            "loire_prefix_cache_queries", "Requests that looked into the prefix cache"
        )
        self.prefix_hits = self._counter(
            "loire_prefix_cache_hits", "Requests that found a beginning of their prompt there"
        )
        self.queue_time = self._histogram(
            "loire_queue_time_seconds", "From arrival to the first step that computes a request"
        )
        self.time_to_first_token = self._histogram(
            "loire_time_to_first_token_seconds", "From arrival to the first output token"
        )
        self.inter_token_latency = self._histogram(
            "loire_inter_token_latency_seconds", "From one output token of a request to the next"
        )
        self.request_duration = self._histogram(
            "loire_request_duration_seconds", "From arrival to the end of a request"
        )
        self.step_duration = self._histogram(
            "loire_step_duration_seconds", "Forward pass and sampling of a step"
        )
        self.batch_size = self._histogram(
            "loire_batch_size_sequences", "Sequences computed in a step", POWERS
        )
        self.batch_tokens = self._histogram(
            "loire_batch_size_tokens", "Tokens computed in a step", POWERS
        )
        self.computed_tokens = self._counter(
            "loire_computed_tokens", "Tokens that steps computed", "phase"
        )
        self.preemptions = self._counter(
            "loire_preemptions", "Sequences whose blocks were taken back, to be computed again"
        )
        self._prefill = self.computed_tokens.labels("prefill")
        self._decode = self.computed_tokens.labels("decode")

    def add_step(self, record: StepRecord) -> None:
        """Count a step."""
        num_prefill = num_decode = num_sequences = 0
        for slot in record.slots:
            num_prefill += slot.num_prefill_tokens
            num_decode += slot.num_decode_tokens
            num_sequences += bool(slot.num_prefill_tokens or slot.num_decode_tokens)
        self.step_duration.observe(record.compute_s)
        self.batch_size.observe(num_sequences)
        self.batch_tokens.observe(num_prefill + num_decode)
        self._prefill.inc(num_prefill)
        self._decode.inc(num_decode)
        self.preemptions.inc(record.num_preemptions)

    def scrape(self, *, by_tenant: bool, with_adapters: bool = True) -> bytes:
        """All metrics in Prometheus' text format. by_tenant: else those of tenants are summed.
        with_adapters: names of adapters are shown."""
        if by_tenant:
            return generate_latest(self.registry)
        sums = CollectorRegistry(auto_describe=False)
        sums.register(_Sums(self.registry, () if with_adapters else (LORA_INFO,)))
        return generate_latest(sums)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _histogram(
        self, name: str, meaning: str, bounds: Iterable[float] = SECONDS, *labels: str
    ) -> Histogram:
        return Histogram(name, meaning, labels, buckets=tuple(bounds), registry=self.registry)


class _Sums(Collector):
    """The metrics of a registry without the label `tenant`: a tenant must not see the others."""

    def __init__(self, registry: CollectorRegistry, without: Collection[str]) -> None:
        self._registry = registry
        self._without = without

    def collect(self) -> Iterable[Metric]:
        """Each metric, its samples summed over the tenants."""
        for family in self._registry.collect():
            if family.name in self._without:
                continue
            values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
            if not any("tenant" in sample.labels for sample in family.samples):
                yield family
                continue
            for sample in family.samples:
                rest = tuple((k, v) for k, v in sample.labels.items() if k != "tenant")
                key = sample.name, rest
                values[key] = values.get(key, 0.0) + sample.value
            summed = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in values.items():
                summed.add_sample(name, dict(labels), value)
            yield summed


class _StateCollector(Collector):
    """What is not counted but looked up when it is asked for."""

    def __init__(self, read_state: Callable[[], EngineState | None]) -> None:
        self._read_state = read_state

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment; none while there is no engine."""
        state = self._read_state()
        if state is None:
            return
        yield GaugeMetricFamily(
            "loire_running_requests", "Requests of which something is computed", state.num_running
        )
        yield GaugeMetricFamily(
            "loire_waiting_requests", "Requests of which nothing is computed", state.num_waiting
        )
        yield GaugeMetricFamily(
            "loire_waiting_tokens", "Prompt tokens of those", state.num_waiting_tokens
        )
        yield GaugeMetricFamily("loire_kv_blocks", "KV blocks of the pool", state.num_blocks)
        yield GaugeMetricFamily("loire_kv_block_size", "Tokens per KV block", state.block_size)
        yield GaugeMetricFamily(
            "loire_kv_blocks_in_use", "Those that requests hold", state.num_blocks_in_use
        )
        yield GaugeMetricFamily(
            "loire_kv_usage_ratio",
            "Share of the pool that requests hold, 0 to 1",
            state.kv_usage,
        )
        yield CounterMetricFamily(
            "loire_engine_restarts",
            "Engines started to replace one that had died",
            state.num_restarts,
        )
        if state.adapters is not None:
            yield from _adapter_metrics(state.adapters)


def _adapter_metrics(counts: AdapterCounts) -> Iterable[Metric]:
    yield GaugeMetricFamily(
        "loire_adapters_loaded", "Adapters whose weights are in memory", counts.num_resident
    )
    yield GaugeMetricFamily("loire_adapter_memory_bytes", "Bytes of these", counts.num_bytes)
    for name, meaning, value in (
        ("hits", "Sequences that found the weights of their adapter in memory", counts.hits),
        ("loads", "Adapters whose weights were read from their files", counts.loads),
        ("evictions", "Adapters whose weights made room for others'", counts.evictions),
    ):
        yield CounterMetricFamily(f"loire_adapter_{name}", meaning, value)
