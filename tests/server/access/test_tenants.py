"""Tenants share an engine, but nothing that would tell one about another."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.base.config import EngineOptions
from loire.engine.supervised import SupervisedEngine
from loire.server.access.admission import Admission
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.limits import ServerLimits
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.serving.client import tenant_salt
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, run

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"
RING = KeyRing([parse_key(f"alice:{ALICE}", place=""), parse_key(f"bob:{BOB}", place="")])
ACCESS = Access(ring=RING)
LONG_PROMPT = "A beginning that fills more than one block of the cache. " * 3


async def complete(client: httpx.AsyncClient, key: str, **fields: Any) -> dict[str, Any]:
    body = {"model": NAME, "prompt": LONG_PROMPT, "max_tokens": 2, "ignore_eos": True, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    response = await client.post("/v1/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scrape(served: ServedModel) -> bytes:
    return served.observer.metrics.scrape(by_tenant=True)


def test_salts() -> None:
    assert tenant_salt("", "") == ""
    assert tenant_salt("", "x") == "x"
    salts = {
        tenant_salt(tenant, salt) for tenant in ("a", "b", "ab") for salt in ("", "a", "b", '"')
    }
    assert len(salts) == 12
    assert tenant_salt("a", "x") == tenant_salt("a", "x")
    assert "a" not in {salt for salt in salts if len(salt) != 64}


def test_nobody_but_an_admin_goes_before_other_tenants(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama)
    root = parse_key(f"root:{BOB}", place="", admin=True)
    access = Access(ring=KeyRing([RING.keys[0], root]))

    async def ask(settled: Access, key: str, priority: int) -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(ServedModel([NAME], engine), settled))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": NAME, "prompt": "x", "priority": priority}
            headers = {"Authorization": f"Bearer {key}"}
            return await client.post("/v1/completions", json=body, headers=headers)

    refused = asyncio.run(ask(access, ALICE, -1))
    assert refused.status_code == 403
    assert refused.json()["error"]["param"] == "priority"
    for settled, key, priority in ((access, ALICE, 1), (access, BOB, -1), (Access(), "", -1)):
        assert asyncio.run(ask(settled, key, priority)).status_code == 200
    sent = [submission.request for submission in engine.submissions]
    assert [(request.tenant, request.priority) for request in sent] == [
        ("alice", 1),
        ("root", -1),
        ("", -1),
    ]


def test_a_flood_leaves_room_in_the_queue(tiny_llama: Path) -> None:
    engine = FakeEngine(tiny_llama)
    admission = Admission(ServerLimits(max_queued_requests=20))
    served = ServedModel([NAME], engine, admission)
    app = create_app(served, ACCESS)

    async def test() -> None:
        engine.gate = asyncio.Event()
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def post(key: str, prompt: str) -> httpx.Response:
                body = {"model": NAME, "prompt": prompt, "max_tokens": 2}
                headers = {"Authorization": f"Bearer {key}"}
                return await client.post("/v1/completions", json=body, headers=headers)

            flood = [asyncio.create_task(post(ALICE, str(n))) for n in range(40)]
            while len(engine.running) < 16 or served.admission.num_preparing:
                await asyncio.sleep(0.001)
            assert served.observer.waiting_of("alice").num_waiting_sequences == 16
            others = [asyncio.create_task(post(BOB, str(n))) for n in range(2)]
            while len(engine.running) < 18:
                await asyncio.sleep(0.001)
            engine.gate.set()
            answers = await asyncio.gather(*flood)
            assert [answer.status_code for answer in answers].count(200) == 16
            refused = next(answer for answer in answers if answer.status_code == 429)
            error = refused.json()["error"]
            assert error["code"] == "queue_full"
            assert "16 sequences of tenant 'alice'" in error["message"]
            assert refused.headers["retry-after"] == "1"
            assert [(await answer).status_code for answer in others] == [200, 200]

    run(test)
    for tenant in ("alice", "bob"):
        waiting = served.observer.waiting_of(tenant)
        assert (waiting.num_waiting_sequences, waiting.num_waiting_tokens) == (0, 0)
        assert served.admission.num_preparing_of[tenant] == 0


@pytest.mark.parametrize("fields", [{}, {"cache_salt": "mine"}])
def test_salt_reaches_the_engine(tiny_llama: Path, fields: dict[str, str]) -> None:
    engine = FakeEngine(tiny_llama)
    app = create_app(ServedModel([NAME], engine), ACCESS)

    async def test() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for key in (ALICE, ALICE, BOB):
                await complete(client, key, **fields)

    asyncio.run(test())
    first, again, other = (submission.request.cache_salt for submission in engine.submissions)
    assert first == again == tenant_salt("alice", fields.get("cache_salt", ""))
    assert other == tenant_salt("bob", fields.get("cache_salt", ""))


def test_tenants_do_not_find_each_others_prefixes(tiny_llama: Path) -> None:
    async def test() -> list[int]:
        options = EngineOptions(dtype="float32", num_threads=1, kv_cache_memory_bytes=2**20)
        engine = await SupervisedEngine.create(str(tiny_llama), options)
        served = ServedModel([NAME], engine)
        app = create_app(served, ACCESS)
        transport = httpx.ASGITransport(app=app)
        cached = []
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                for key, salt in (
                    (ALICE, ""), (ALICE, ""), (BOB, ""), (ALICE, "s"), (BOB, "s"), (BOB, "s"),
                ):  # fmt: skip
                    usage = (await complete(client, key, cache_salt=salt))["usage"]
                    cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            # The engine's steps reach the metrics and the lives of the requests.
            assert b'loire_computed_tokens_total{phase="decode"} 6.0' in scrape(served)
            lives = [call.requests[0] for call in served.observer.calls.latest()]
            assert len(lives) == 6
            assert all(life.num_steps >= 2 for life in lives)
            assert b"loire_kv_blocks_in_use 0.0" in scrape(served)
        finally:
            await engine.close()
        return cached

    first, again, other, salted, other_salted, other_again = asyncio.run(test())
    assert (first, other, salted, other_salted) == (0, 0, 0, 0)
    assert again == other_again > 0
