"""The few metrics by which routers choose a server, under the names that vLLM has made usual.

Gateways such as llm-d's endpoint picker and vLLM's production stack know them without
configuration. They say what Loire's own metrics say; docs/deploy.md names who reads them.
"""

import time
from collections.abc import Callable, Iterable

from prometheus_client import Counter
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loire.server.observe.engine_state import EngineState

_LABELS = ("model_name", "engine")
LORA_INFO = "vllm:lora_requests_info"
_ENGINE = "0"
"""vLLM numbers the engines of a server; here is one."""


class RouterMetrics(Collector):
    """Looked up when they are asked for. Requests count as none while there is no engine yet, so
    that a router finds the metrics from the start.

    queries, hits: counters of prompt tokens and of those found in the prefix cache.
    """

    def __init__(
        self, read_state: Callable[[], EngineState | None], queries: Counter, hits: Counter
    ) -> None:
        self._read_state = read_state
        self._queries, self._hits = queries, hits

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        state = self._read_state()
        labels = ("" if state is None else state.model, _ENGINE)
        gauges = {
            "num_requests_running": 0 if state is None else state.num_running,
            "num_requests_waiting": 0 if state is None else state.num_waiting,
            "kv_cache_usage_perc": 0.0 if state is None else state.kv_usage,
        }
        for name, value in gauges.items():
            gauge = GaugeMetricFamily(f"vllm:{name}", _MEANINGS[name], labels=_LABELS)
            gauge.add_metric(labels, value)
            yield gauge
        for name, counter in (
            ("prefix_cache_queries", self._queries),
            ("prefix_cache_hits", self._hits),
        ):
            family = CounterMetricFamily(f"vllm:{name}", _MEANINGS[name], labels=_LABELS)
            family.add_metric(labels, _total(counter))
            yield family
        if state is not None:
            yield _cache_config(state)
            if state.adapters is not None:
                yield _lora_info(state)


_MEANINGS = {
    "num_requests_running": "As loire_running_requests",
    "num_requests_waiting": "As loire_waiting_requests",
    "kv_cache_usage_perc": "As loire_kv_usage_ratio: a share from 0 to 1, in spite of its name",
    "prefix_cache_queries": "Prompt tokens that were looked up in the prefix cache",
    "prefix_cache_hits": "Those of them that were found there",
}


def _total(counter: Counter) -> float:
    """The sum over all labels."""
    return sum(
        sample.value
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    )


def _lora_info(state: EngineState) -> Metric:
    """Which adapters have requests, as labels of the time at which that is so, in seconds."""
    values = {
        "running_lora_adapters": ",".join(state.running_adapters),
        "waiting_lora_adapters": ",".join(state.waiting_adapters),
        "max_lora": str(state.max_adapters),
    }
    info = GaugeMetricFamily(
        LORA_INFO, "Adapters that requests are for, in its labels", labels=tuple(values)
    )
    info.add_metric(tuple(values.values()), time.time())
    return info


def _cache_config(state: EngineState) -> Metric:
    """The size of the KV pool, as labels of a 1. Its blocks are "gpu" blocks on a CPU, too."""
    values = {
        "model_name": state.model,
        "engine": _ENGINE,
        "block_size": str(state.block_size),
        "num_gpu_blocks": str(state.num_blocks),
        "cache_dtype": state.kv_cache_dtype,
        "enable_prefix_caching": str(state.enable_prefix_caching),
    }
    info = GaugeMetricFamily(
        "vllm:cache_config_info", "The KV pool, in its labels", labels=tuple(values)
    )
    info.add_metric(tuple(values.values()), 1)
    return info
