"""What Prometheus and the log see of requests and steps, and what the dashboard needs of it."""

import asyncio
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from loire.base.step import SlotRecord, StepRecord
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.host.logs import JsonFormatter, TextFormatter
from loire.server.observe import call_log
from loire.server.observe.metrics import Metrics
from loire.server.observe.rare_log import FewOfMany
from loire.server.serving.served import ServedModel
from support.fake_engine import DEATH, NAME, Connection, FakeEngine, run

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi there"}]}
ALICE, ROOT = "alice-key-0123456789", "root-key-0123456789a"
KEYS = Access(
    ring=KeyRing(
        [parse_key(f"alice:{ALICE}", place=""), parse_key(f"root:{ROOT}", place="", admin=True)]
    )
)
DASHBOARD = Path(__file__).parents[3] / "deploy/grafana/loire.json"
REPLY = "Hello there"


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, REPLY)


def visit(
    served: ServedModel,
    visitor: Callable[[httpx.AsyncClient], Awaitable[None]],
    access: Access | None = None,
) -> None:
    """Let a visitor talk to an app."""
    app = create_app(served, access or Access())

    async def talk() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await visitor(client)

    run(talk)


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(served: ServedModel) -> dict[str, float]:
    """Every sample of a scrape by its name and labels."""
    found = {}
    for family in families(served.observer.metrics.scrape(by_tenant=True).decode()).values():
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def slot(
    seq_id: int, prefill: int, decode: int, *, request_id: str = "request-0", ended: bool = False
) -> SlotRecord:
    return SlotRecord(seq_id, seq_id, request_id, prefill, decode, ended)


def step(*slots: SlotRecord, preemptions: int = 0) -> StepRecord:
    return StepRecord(
        step_id=0, time_s=1.0, compute_s=0.004, slots=slots, num_running=len(slots), num_waiting=0,
        blocks_free=1, blocks_cached=1, blocks_in_use=1, kv_live_tokens=1, kv_fragmented_tokens=0,
        kv_reserved_tokens=0, kv_idle_tokens=0, num_preemptions=preemptions,
    )  # fmt: skip


# --- the metrics ------------------------------------------------------------------------------


def test_names_and_units_follow_the_conventions() -> None:
    metrics = Metrics(lambda: None)
    for name in ("a", "b"):
        metrics.requests.labels(name, "completed").inc()
    for family in families(metrics.scrape(by_tenant=True).decode()).values():
        if family.name.startswith("vllm:"):
            continue  # names of others, for routers that know them
        assert re.fullmatch(r"(loire|process)_[a-z_]+", family.name), family.name
        assert family.documentation, family.name
        if family.name.startswith("process_"):
            continue
        if family.type == "counter":
            names = {sample.name.removesuffix("_created") for sample in family.samples}
            assert names <= {f"{family.name}_total", family.name}
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_sequences", "_tokens")), family.name
    assert not re.search(r"milliseconds|_ms\b|percent", metrics.scrape(by_tenant=True).decode())


def test_requests_are_counted(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)
    num_output = len(engine.frontend.tokenizer.encode(REPLY))

    async def visitor(client: httpx.AsyncClient) -> None:
        for fields in ({}, {"stream": True}, {"n": 2}):
            response = await client.post("/v1/chat/completions", json={**CHAT, **fields})
            assert response.status_code == 200
        assert (await client.get("/metrics")).headers["content-type"].startswith("text/plain")

    visit(served, visitor)
    found = samples(served)
    num_prompt = len(engine.submissions[0].request.prompt_token_ids)
    assert found["loire_requests_total{outcome=completed,tenant=}"] == 3
    assert found["loire_prompt_tokens_total{tenant=}"] == 3 * num_prompt
    assert found["loire_cached_prompt_tokens_total{tenant=}"] == 3 * 16
    assert found["loire_output_tokens_total{tenant=}"] == 4 * num_output
    assert found["loire_prefix_cache_queries_total"] == 3
    assert found["loire_prefix_cache_hits_total"] == 3
    assert found["loire_time_to_first_token_seconds_count"] == 3
    assert found["loire_inter_token_latency_seconds_count"] == 4 * (num_output - 1)
    assert found["loire_request_duration_seconds_count"] == 3
    assert found["loire_running_requests"] == found["loire_waiting_requests"] == 0
    assert found["loire_kv_blocks"] == engine.config.num_blocks


def test_aborted_and_failed_requests_are_told_apart(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)

    async def visitor(client: httpx.AsyncClient) -> None:
        engine.death = DEATH
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 503
        engine.death, engine.failure = None, "logits are not finite"
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 500
        engine.failure = None
        engine.pause = asyncio.Event()
        connection = Connection(engine, "/v1/chat/completions", {**CHAT, "stream": True})
        connection.app = client._transport.app  # type: ignore[attr-defined]
        streaming = asyncio.create_task(connection.run())
        await connection.wrote.wait()
        now = samples(served)
        assert now["loire_running_requests"] == 1
        assert now["loire_kv_usage_ratio"] == 2 / engine.config.num_blocks
        connection.gone.set()
        await streaming

    visit(served, visitor)
    found = samples(served)
    assert found["loire_requests_total{outcome=failed,tenant=}"] == 2
    assert found["loire_requests_total{outcome=aborted,tenant=}"] == 1
    assert "loire_requests_total{outcome=completed,tenant=}" not in found
    assert found["loire_request_duration_seconds_count"] == 0


def test_rejections_are_counted_by_reason(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)
    key = {"Authorization": f"Bearer {ALICE}"}

    async def visitor(client: httpx.AsyncClient) -> None:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/messages", json=CHAT)
        await client.get("/admin/requests", headers=key)
        await client.post("/v1/chat/completions", json={**CHAT, "model": "x"}, headers=key)
        await client.post("/v1/chat/completions", json={**CHAT, "temperature": 9}, headers=key)
        await client.get("/nothing", headers=key)
        await client.post("/v1/chat/completions", json=CHAT, headers=key)

    visit(served, visitor, KEYS)
    found = samples(served)
    assert found["loire_rejection_duration_seconds_count{reason=invalid_api_key}"] == 2
    rejected = {name: value for name, value in found.items() if "rejections_total" in name}
    assert rejected == {
        "loire_rejections_total{reason=invalid_api_key}": 2,
        "loire_rejections_total{reason=admin_key_needed}": 1,
        "loire_rejections_total{reason=model_not_found}": 1,
        "loire_rejections_total{reason=400}": 1,
        "loire_rejections_total{reason=404}": 1,
    }
    assert found["loire_requests_total{outcome=completed,tenant=alice}"] == 1


def test_figures_by_tenant_are_for_admins(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)
    bob = "bob-key-0123456789ab"
    keys = [*KEYS.ring.keys, parse_key(f"bob:{bob}", place="")]
    told: dict[str, str] = {}

    async def visitor(client: httpx.AsyncClient) -> None:
        for key in (ALICE, ALICE, bob):
            headers = {"x-api-key": key}
            await client.post("/v1/chat/completions", json=CHAT, headers=headers)
        for key in (ALICE, ROOT, ""):
            headers = {"x-api-key": key} if key else {}
            told[key] = (await client.get("/metrics", headers=headers)).text

    visit(served, visitor, Access(ring=KeyRing(keys), public_metrics=True))
    for key in (ALICE, ""):
        assert 'loire_requests_total{outcome="completed"} 3.0' in told[key]
        assert "tenant" not in told[key].replace("all tenants", "")
        assert "bob" not in told[key]
        assert families(told[key]).keys() == families(told[ROOT]).keys()
    assert 'loire_requests_total{outcome="completed",tenant="bob"} 1.0' in told[ROOT]


def test_steps_are_counted(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)
    [listener] = engine.listeners
    listener(step(slot(0, 30, 0), slot(1, 0, 1), slot(2, 0, 0, ended=True)))
    listener(step(slot(0, 0, 1), slot(1, 0, 1), preemptions=2))
    engine.num_restarts = 3
    found = samples(served)
    assert found["loire_step_duration_seconds_count"] == 2
    assert found["loire_step_duration_seconds_sum"] == pytest.approx(0.008)
    assert found["loire_batch_size_sequences_sum"] == 4
    assert found["loire_batch_size_tokens_sum"] == 33
    assert found["loire_computed_tokens_total{phase=prefill}"] == 30
    assert found["loire_computed_tokens_total{phase=decode}"] == 3
    assert found["loire_preemptions_total"] == 2
    assert found["loire_engine_restarts_total"] == 3


def test_nothing_is_shown_of_an_engine_that_is_not_there() -> None:
    found = samples(ServedModel([NAME]))
    assert "loire_running_requests" not in found
    assert found["loire_preemptions_total"] == 0


def test_every_metric_of_the_dashboard_exists(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)

    async def visitor(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.post("/v1/chat/completions", json={})).status_code == 400

    visit(served, visitor)
    found = {
        sample.name: set(sample.labels)
        for family in families(served.observer.metrics.scrape(by_tenant=True).decode()).values()
        for sample in family.samples
    }
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]] + [
        item["query"] for item in dashboard["templating"]["list"] if item["type"] == "query"
    ]
    used = {name for query in queries for name in re.findall(r"\bloire_\w+", query)}
    assert len(used) > 20
    assert used - found.keys() == set()
    for panel in dashboard["panels"]:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                names = re.findall(r"\bloire_\w+", target["expr"])
                assert all(label in found[name] for name in names), target


# --- a request's life -------------------------------------------------------------------------


def test_a_request_can_be_asked_about_while_it_runs_and_afterwards(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine)

    async def visitor(client: httpx.AsyncClient) -> None:
        engine.pause = asyncio.Event()
        headers = {"x-request-id": "mine-1"}
        asking = asyncio.create_task(
            client.post("/v1/chat/completions", json=CHAT, headers=headers)
        )
        await engine.began.wait()
        [listener] = engine.listeners
        request_id = engine.submissions[0].request.request_id
        listener(step(slot(5, 30, 0, request_id=request_id)))
        listener(step(slot(5, 0, 1, request_id=request_id), slot(6, 9, 0, request_id="other")))
        listener(step(slot(5, 20, 0, request_id=request_id), preemptions=1))
        listener(step(slot(5, 11, 0, request_id=request_id)))
        while not served.observer.calls.latest()[0].requests[0].num_output_tokens:
            await asyncio.sleep(0)
        running = (await client.get("/admin/requests/mine-1")).json()
        assert running["status"] is None
        [life] = running["requests"]
        assert (life["state"], life["steps"], life["recomputations"]) == ("running", 4, 1)
        assert life["output_tokens"] == 1
        engine.pause.set()
        assert (await asking).headers["x-request-id"] == "mine-1"
        for wanted in ("mine-1", request_id):
            ended = (await client.get(f"/admin/requests/{wanted}")).json()
            assert (ended["id"], ended["status"], ended["path"]) == (
                "mine-1",
                200,
                "/v1/chat/completions",
            )
            [life] = ended["requests"]
            assert (life["state"], life["finish_reasons"]) == ("completed", ["stop"])
            assert life["ttft_s"] >= 0
            assert life["cached_tokens"] == 16
        assert "hi there" not in json.dumps(ended)
        [listed] = (await client.get("/admin/requests")).json()["data"]
        assert listed | {"same_id": []} == ended
        missing = await client.get("/admin/requests/none")
        assert missing.status_code == 404
        assert "1,000" in missing.json()["error"]["message"]
        assert (await client.get("/admin/requests?limit=0")).status_code == 400

    visit(served, visitor)
    assert served.observer._running == {}


def test_only_the_latest_calls_are_kept(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loire.server.observe.recent_calls.MAX_CALLS", 3)
    served = ServedModel([NAME], engine)

    async def visitor(client: httpx.AsyncClient) -> None:
        for number in range(5):
            headers = {"x-request-id": f"id-{number}"}
            await client.post("/v1/chat/completions", json=CHAT, headers=headers)

    visit(served, visitor)
    assert [call.call_id for call in served.observer.calls.latest()] == ["id-4", "id-3", "id-2"]


def test_lives_are_for_admins(engine: FakeEngine) -> None:
    async def visitor(client: httpx.AsyncClient) -> None:
        for key, status in ((ALICE, 403), (ROOT, 200)):
            headers = {"Authorization": f"Bearer {key}"}
            assert (await client.get("/admin/requests", headers=headers)).status_code == status

    visit(ServedModel([NAME], engine), visitor, KEYS)


# --- ids and the log --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1.2:3_4", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("two words", False),
        ("line\tbreak", False),
        ("é", False),
    ],
)
def test_request_ids(engine: FakeEngine, given: str, kept: bool) -> None:
    async def visitor(client: httpx.AsyncClient) -> None:
        headers = [("x-request-id", given.encode())]
        for path in ("/v1/models", "/nothing"):
            answered = (await client.get(path, headers=headers)).headers["x-request-id"]
            assert (answered == given) is kept
            assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", answered)
        first = (await client.get("/v1/models")).headers["x-request-id"]
        assert first != (await client.get("/v1/models")).headers["x-request-id"]

    visit(ServedModel([NAME], engine), visitor)


def test_an_internal_error_has_its_id_too(engine: FakeEngine) -> None:
    async def visitor(client: httpx.AsyncClient) -> None:
        engine.death = ValueError("a defect")
        response = await client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 500
        assert response.headers["x-request-id"].startswith("call-")
        assert "a defect" not in response.text

    visit(ServedModel([NAME], engine), visitor)


def logged(
    engine: FakeEngine, *, log_prompts: bool, formatter: logging.Formatter, num_refused: int = 1
) -> list[str]:
    """Lines of the log while one request is answered, and some are refused."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger("loire.server")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)

    async def visitor(client: httpx.AsyncClient) -> None:
        headers = {"x-request-id": "mine"}
        await client.post("/v1/chat/completions", json=CHAT, headers=headers)
        await client.get("/v1/models", headers=headers)
        for _ in range(num_refused):
            await client.get("/a%0Aforged line", headers=headers)

    try:
        visit(ServedModel([NAME], engine, log_prompts=log_prompts), visitor)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return stream.getvalue().splitlines()


def test_the_log_for_machines(engine: FakeEngine) -> None:
    answered, refused = map(
        json.loads, logged(engine, log_prompts=False, formatter=JsonFormatter())
    )
    assert answered["message"] == "POST /v1/chat/completions 200"
    assert (answered["level"], answered["logger"]) == ("INFO", "loire.server.calls")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answered["time"])
    assert answered["request_id"] == "mine"
    assert answered["engine_requests"] == ["request-0"]
    assert answered["output_tokens"] == len(engine.frontend.tokenizer.encode(REPLY))
    assert answered["cached_tokens"] == 16
    assert answered["outcome"] == "completed"
    assert answered["seconds"] >= answered["ttft_s"] >= 0
    assert refused["message"] == "GET /a\\nforged line 404"
    assert "outcome" not in refused


def test_the_log_for_people(engine: FakeEngine) -> None:
    answered, refused = logged(engine, log_prompts=False, formatter=TextFormatter())
    assert "INFO POST /v1/chat/completions 200 request_id=mine seconds=" in answered
    assert "engine_requests=request-0" in answered
    assert "GET /a\\nforged line 404" in refused


def test_refusals_are_no_flood_in_the_log(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0.0, 5.0)  # of seconds, each time one looks
    monkeypatch.setattr(call_log, "FewOfMany", partial(FewOfMany, clock=clock.__next__))
    monkeypatch.setattr(call_log, "REFUSALS_PER_MINUTE", 2)
    lines = logged(engine, log_prompts=False, formatter=TextFormatter(), num_refused=14)
    assert ["unnoted" in line for line in lines] == [False] * 3 + [True, False]
    assert "unnoted=9" in lines[3]


def test_prompts_are_logged_only_if_asked_for(engine: FakeEngine) -> None:
    quiet = "\n".join(logged(engine, log_prompts=False, formatter=TextFormatter()))
    assert "hi there" not in quiet
    assert REPLY not in quiet
    told = "\n".join(logged(engine, log_prompts=True, formatter=JsonFormatter()))
    assert "hi there" in told
