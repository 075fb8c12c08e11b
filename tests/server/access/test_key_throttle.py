"""Wrong keys: how many an address may send, and whom that does not touch."""

import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from loire.server.access import key_throttle
from loire.server.access.key_throttle import WRONG_PER_MINUTE, KeyThrottle
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


def tried(throttle: KeyThrottle, address: str, number: int = WRONG_PER_MINUTE) -> KeyThrottle:
    for _ in range(number):
        assert throttle.wait_s(address, None) == 0
    return throttle


def test_an_address_may_send_some_wrong_keys_a_minute() -> None:
    now = [0.0]
    throttle = tried(KeyThrottle(lambda: now[0]), "192.0.2.1")
    assert throttle.wait_s("192.0.2.1", None) == pytest.approx(6)
    assert throttle.wait_s("192.0.2.1", "alice") > 0, "or guesses could be told from keys"
    assert throttle.wait_s("192.0.2.2", None) == 0
    now[0] = 6.1
    assert throttle.wait_s("192.0.2.1", None) == 0
    assert throttle.wait_s("192.0.2.1", None) > 0


def test_who_came_from_there_before_goes_on() -> None:
    throttle = KeyThrottle(lambda: 0.0)
    assert throttle.wait_s("192.0.2.1", "alice") == 0
    tried(throttle, "192.0.2.1")
    assert throttle.wait_s("192.0.2.1", None) > 0
    assert throttle.wait_s("192.0.2.1", "alice") == 0
    assert throttle.wait_s("192.0.2.1", "bob") > 0


def test_addresses_of_one_customer_count_as_one() -> None:
    throttle = KeyThrottle(lambda: 0.0)
    for number in range(WRONG_PER_MINUTE):
        assert throttle.wait_s(f"2001:db8::{number:x}", None) == 0
    assert throttle.wait_s("2001:db8::ffff", None) > 0
    assert throttle.wait_s("2001:db8:0:1::1", None) == 0
    tried(throttle, "192.0.2.1")
    assert throttle.wait_s("::ffff:192.0.2.1", None) > 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_throttle, "MAX_ADDRESSES", 3)
    throttle = KeyThrottle(lambda: 0.0)
    for number in range(10):
        throttle.wait_s(f"192.0.2.{number}", None)
    assert len(throttle._addresses) == 3


def test_guesses_are_refused_counted_and_hardly_logged(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [parse_key(f"alice:{ALICE}", place=""), parse_key(f"bob:{BOB}", place="")]
    served = ServedModel([NAME], FakeEngine(tiny_llama))
    app = create_app(served, Access(ring=KeyRing(keys), clock=lambda: 1000.0))

    async def talk() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask(key: str | None) -> httpx.Response:
                headers = {} if key is None else {"x-api-key": key}
                return await client.get("/v1/models", headers=headers)

            assert (await ask(ALICE)).status_code == 200
            found = [(await ask(f"guess-{number}")).status_code for number in range(50)]
            assert found == [401] * WRONG_PER_MINUTE + [429] * (50 - WRONG_PER_MINUTE)
            refused = await ask(BOB)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "6"
            assert refused.json()["error"]["code"] == "too_many_wrong_keys"
            assert (await ask(ALICE)).status_code == 200
            assert (await ask(None)).status_code == 401
            assert (await client.get("/health", headers={"x-api-key": "x"})).status_code != 429

    with caplog.at_level(logging.INFO, "loire.server.calls"):
        asyncio.run(talk())
    assert len(caplog.records) <= WRONG_PER_MINUTE + 2
    text = served.observer.metrics.scrape(by_tenant=True).decode()
    for reason, count in (("wrong", WRONG_PER_MINUTE), ("throttled", 41), ("missing", 1)):
        line = f'loire_authentication_failures_total{{reason="{reason}"}} {float(count)}'
        assert line in text
