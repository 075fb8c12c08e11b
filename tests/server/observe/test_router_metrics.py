"""What gateways read to choose a server: the usual names, and a port of its own."""

import asyncio
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loire.server.host.app import create_app
from loire.server.host.metrics_port import MetricsServer
from loire.server.host.run import bind
from loire.server.observe.metrics import Metrics
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, run

GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


def router_view(metrics: Metrics) -> dict[str, tuple[dict[str, str], float]]:
    """(labels, value) of each of vLLM's names."""
    families = text_string_to_metric_families(metrics.scrape(by_tenant=True).decode())
    return {
        sample.name.removeprefix("vllm:"): (sample.labels, sample.value)
        for family in families
        for sample in family.samples
        if sample.name.startswith("vllm:")
    }


def test_routers_find_their_gauges_from_the_start() -> None:
    view = router_view(Metrics(lambda: None))
    assert {name: view[name][1] for name in GAUGES} == dict.fromkeys(GAUGES, 0.0)
    assert "cache_config_info" not in view


def test_they_say_what_loires_own_say(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama, "Hello there")
    served = ServedModel([NAME, "other"], engine)

    async def ask() -> None:
        transport = httpx.ASGITransport(app=create_app(served))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": NAME, "prompt": "one two three"}
            assert (await client.post("/v1/completions", json=body)).status_code == 200

    run(ask)
    view = router_view(served.observer.metrics)
    num_prompt = len(engine.submissions[0].request.prompt_token_ids)
    assert view["prefix_cache_queries_total"][1] == num_prompt
    assert view["prefix_cache_hits_total"][1] == 16
    labels, value = view["cache_config_info"]
    assert value == 1
    assert labels["block_size"] == str(engine.config.block_size)
    assert labels["num_gpu_blocks"] == str(engine.config.num_blocks)
    assert all(view[name][0] == {"model_name": NAME, "engine": "0"} for name in GAUGES)


def test_the_second_port_has_metrics_and_nothing_else() -> None:
    metrics = Metrics(lambda: None)
    metrics.preemptions.inc(7)

    async def scrape() -> None:
        listener = bind("127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = MetricsServer(metrics)
        serving = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.get("/metrics")
            assert answer.status_code == 200
            assert "loire_preemptions_total 7.0" in answer.text
            assert (await client.get("/v1/models")).status_code == 404
            assert (await client.post("/metrics")).status_code == 405
        server.leave()
        await serving

    asyncio.run(scrape())
