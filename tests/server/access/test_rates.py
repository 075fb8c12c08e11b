"""Limits per tenant: what was given out never exceeds what there was, and clients are told."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.errors import ConfigError
from loire.server.access.admission import Admission
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.limits import ServerLimits
from loire.server.access.options import Access
from loire.server.access.rates import Bucket, Limits, TenantMeter, Use
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from loire.server.web.errors import ApiError
from support.fake_engine import NAME, Connection, FakeEngine, events, run

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"
CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": NAME, "prompt": "hi", "max_tokens": 4}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- arithmetic -------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 100), st.integers(1, 2000)), max_size=50),
)
def test_bucket_gives_no_more_than_there_was(
    per_minute: int, calls: list[tuple[float, int]]
) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    taken = 0
    for pause, amount in calls:
        clock.now += pause
        if bucket.level >= amount:
            bucket.take(amount)
            taken += amount
        elapsed = clock.now - 1000
        assert taken <= per_minute + per_minute * elapsed / 60 + 1e-6
        assert 0 <= bucket.level <= per_minute


@settings(deadline=None)
@given(st.integers(1, 1000), st.integers(0, 5000), st.integers(1, 1000))
def test_a_client_that_waits_as_told_is_let_in(per_minute: int, taken: int, wanted: int) -> None:
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    bucket.take(taken)
    wanted = min(wanted, per_minute)
    wait = bucket.wait_s(wanted)
    if wait > 0:
        clock.now += wait * 0.99
        assert bucket.level < wanted
        clock.now += wait * 0.01
    assert bucket.level == pytest.approx(wanted, abs=1e-6) or bucket.level > wanted


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 300),
    st.lists(st.tuples(st.sampled_from("begpow"), st.integers(1, 100)), max_size=80),
)
def test_a_meter_balances(
    concurrency: int, rpm: int, tpm: int, calls: list[tuple[str, int]]
) -> None:
    clock = Clock()
    limits = Limits(requests_per_minute=rpm, tokens_per_minute=tpm, concurrency=concurrency)
    meter = TenantMeter("t", limits, clock)
    uses: list[tuple[Use, int]] = []
    num_begun = num_prompt = num_output = 0
    for kind, amount in calls:
        minutes = (clock.now - 1000) / 60
        try:
            if kind == "b":
                uses.append((meter.begin(), 1))
                num_begun += 1
            elif kind == "e" and uses:
                uses.pop()[0].end()
            elif kind == "g" and uses:
                use, num_before = uses[-1]
                wanted = max(num_before, amount % 8)
                use.grow(wanted)
                uses[-1] = use, wanted
                num_begun += wanted - num_before
            elif kind == "p":
                meter.take_prompt(amount)
                num_prompt += amount
            elif kind == "o":
                meter.take_output(amount)
                num_output += amount
            elif kind == "w":
                clock.now += amount / 10
        except ApiError as refusal:
            told = refusal.headers
            never, wait_s = told is None, 0 if told is None else int(told["Retry-After"])
            too_many = kind == "g" and amount % 8 > min(concurrency, rpm)
            assert wait_s >= 1 or (never and (too_many or (kind == "p" and amount > tpm)))
        assert meter.num_running == sum(num for _, num in uses) <= concurrency
        assert num_begun <= rpm * (1 + minutes) + 1e-6
        assert num_prompt <= tpm * (1 + minutes) + 1e-6
        headers = meter.headers()
        remaining = int(headers["x-ratelimit-remaining-tokens"])
        assert max(0, tpm - num_prompt - num_output) <= remaining <= tpm
        assert int(headers["x-ratelimit-remaining-requests"]) <= rpm


def test_refusals_say_the_numbers() -> None:
    clock = Clock()
    limits = Limits(requests_per_minute=2, tokens_per_minute=60, concurrency=2)
    meter = TenantMeter("alice", limits, clock)
    meter.begin()
    use = meter.begin()
    with pytest.raises(ApiError, match="'alice' may have 2 sequences at a time, and 2 are"):
        meter.begin()
    use.end()
    with pytest.raises(ApiError, match="its 2 requests per minute: try again in 30 s") as caught:
        meter.begin()
    assert caught.value.headers == {"Retry-After": "30"}
    clock.now += 30
    use = meter.begin()
    with pytest.raises(ApiError, match=r"2 sequences at a time, and this call brings 8: .* never"):
        use.grow(8)
    with pytest.raises(ApiError, match=r"1 are in progress, and this call brings 2: try again"):
        use.grow(2)
    with pytest.raises(ApiError, match=r"61 tokens.*only 60 per minute.*never") as caught:
        meter.take_prompt(61)
    assert caught.value.headers is None
    meter.take_prompt(50)
    with pytest.raises(ApiError, match=r"20 tokens.* 60 tokens per minute .*has 10 left"):
        meter.take_prompt(20)
    meter.take_output(100)
    use.end()
    clock.now += 60
    with pytest.raises(ApiError, match="used its 60 tokens per minute: try again in 31 s"):
        meter.begin()
    clock.now += 31
    meter.begin()


def test_a_call_takes_a_request_for_each_sequence() -> None:
    clock = Clock()
    meter = TenantMeter("alice", Limits(requests_per_minute=10), clock)
    use = meter.begin()
    use.grow(8)
    assert meter.headers()["x-ratelimit-remaining-requests"] == "2"
    other = meter.begin()
    with pytest.raises(ApiError, match=r"10 requests per minute, and this call brings 3: .* 6 s"):
        other.grow(3)
    with pytest.raises(ApiError, match=r"10 requests per minute, and this call brings 11: .*never"):
        other.grow(11)
    assert meter.headers()["x-ratelimit-remaining-requests"] == "1"
    use.give_back()
    assert meter.headers()["x-ratelimit-remaining-requests"] == "9"
    use.end()
    other.end()
    assert meter.num_running == 0


def test_resets_are_written_as_openai_does() -> None:
    clock = Clock()
    meter = TenantMeter("", Limits(requests_per_minute=100, tokens_per_minute=10), clock)
    assert meter.headers()["x-ratelimit-reset-requests"] == "0ms"
    meter.begin()
    meter.take_output(3)
    told = meter.headers()
    assert told["x-ratelimit-reset-requests"] == "600ms"
    assert told["x-ratelimit-reset-tokens"] == "18s"
    meter.take_output(9)
    assert meter.headers()["x-ratelimit-reset-tokens"] == "1m12s"
    assert meter.headers()["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ("", Limits(requests_per_minute=5, concurrency=3)),
        ("requests-per-minute=7", Limits(requests_per_minute=7, concurrency=3)),
        (
            "requests-per-minute=none  tokens-per-minute=9 concurrency=1",
            Limits(tokens_per_minute=9, concurrency=1),
        ),
    ],
)
def test_limits_of_a_key(words: str, limits: Limits) -> None:
    default = Limits(requests_per_minute=5, concurrency=3)
    key = parse_key(f"alice:{ALICE} {words}", place="test", limits=default)
    assert key.limits == limits


@pytest.mark.parametrize(
    "words", ["rpm=5", "concurrency=0", "concurrency=-1", "concurrency", "x y"]
)
def test_bad_limits_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="line 7"):
        parse_key(f"alice:{ALICE} {words}", place="line 7")


# --- over HTTP --------------------------------------------------------------------------------


def access(**limits: int) -> Access:
    given = Limits(**limits)
    return Access(
        ring=KeyRing(
            [
                parse_key(f"alice:{ALICE}", place="", limits=given),
                parse_key(f"bob:{BOB}", place="", limits=given),
            ]
        ),
        clock=Clock(),
    )


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


def talk(
    engine: FakeEngine, settled: Access, *calls: tuple[str, str, dict[str, Any] | None]
) -> list[httpx.Response]:
    """Requests to one app, one after another; (key, path, body or None to GET)."""
    app = create_app(ServedModel([NAME], engine), settled)

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.request(
                    "GET" if body is None else "POST",
                    path,
                    json=body,
                    headers={"Authorization": f"Bearer {key}"},
                )
                for key, path, body in calls
            ]

    return asyncio.run(send())


def test_requests_per_minute(engine: FakeEngine) -> None:
    chat = "/v1/chat/completions"
    first, models, second, refused, other = talk(
        engine,
        access(requests_per_minute=2),
        (ALICE, chat, CHAT),
        (ALICE, "/v1/models", None),
        (ALICE, chat, {**CHAT, "stream": True}),
        (ALICE, chat, CHAT),
        (BOB, chat, CHAT),
    )
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert "x-ratelimit-limit-requests" not in models.headers
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert events(second)[-1] == "[DONE]"
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "30"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "'alice' has used its 2 requests per minute" in error["message"]
    assert other.status_code == 200
    assert len(engine.submissions) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_per_minute(engine: FakeEngine, stream: bool) -> None:
    body = {**TEXT, "stream": stream}
    limited = access(tokens_per_minute=10)
    first, second, third = talk(
        engine,
        limited,
        (ALICE, "/v1/completions", {**body, "prompt": "hello th"}),
        (ALICE, "/v1/completions", body),
        (BOB, "/v1/completions", {**body, "prompt": "eleven toke"}),
    )
    assert first.status_code == 200
    # 8 of the prompt when the answer began; its 4 output tokens leave a debt.
    assert first.headers["x-ratelimit-remaining-tokens"] in (("2",) if stream else ("0",))
    assert second.status_code == 429
    assert "10 tokens per minute" in second.json()["error"]["message"]
    # The status is still free to tell it, streamed or not.
    assert third.status_code == 429
    assert "11 tokens" in third.json()["error"]["message"]
    assert len(engine.submissions) == 1


def test_concurrency_counts_streams_until_they_end(engine: FakeEngine) -> None:
    async def test() -> None:
        engine.pause = asyncio.Event()
        settled = Access(limits=Limits(concurrency=1))
        connection = Connection(engine, "/v1/chat/completions", {**CHAT, "stream": True})
        app = connection.app = create_app(ServedModel([NAME], engine), settled)
        running = asyncio.create_task(connection.run())
        await connection.wrote.wait()
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            refused = await client.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 429
            assert (
                "this server may have 1 sequences at a time" in refused.json()["error"]["message"]
            )
            assert refused.headers["retry-after"] == "1"
            connection.gone.set()
            await running
            engine.pause.set()
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert (await client.post("/v1/chat/completions", json={})).status_code == 400
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    run(test)


def test_what_the_server_cannot_take_costs_no_request(engine: FakeEngine) -> None:
    served = ServedModel([NAME], engine, Admission(ServerLimits(max_queued_requests=2)))
    app = create_app(served, Access(limits=Limits(requests_per_minute=3), clock=Clock()))

    async def test() -> None:
        engine.gate = asyncio.Event()
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def post(*prompts: str) -> httpx.Response:
                body = {"model": NAME, "prompt": prompts, "max_tokens": 1}
                return await client.post("/v1/completions", json=body)

            waiting = asyncio.create_task(post("x"))
            await engine.began.wait()
            for _ in range(5):  # found full once the body is understood
                refused = await post("x", "y")
                assert refused.json()["error"]["code"] == "queue_full"
                assert refused.headers["x-ratelimit-remaining-requests"] == "2"
            also = asyncio.create_task(post("x"))
            while len(engine.running) < 2:
                await asyncio.sleep(0.001)
            for _ in range(5):  # found full before the body is read
                refused = await post("x")
                assert refused.json()["error"]["code"] == "queue_full"
                assert refused.headers["x-ratelimit-remaining-requests"] == "1"
            served.draining = True
            assert (await post("x")).json()["error"]["code"] == "draining"
            served.draining = False
            engine.gate.set()
            assert [(await answer).status_code for answer in (waiting, also)] == [200, 200]
            engine.gate = None
            assert (await post("x")).status_code == 200
            assert (await post("x")).json()["error"]["code"] == "rate_limit_exceeded"

    run(test)


def test_the_limits_count_sequences(engine: FakeEngine) -> None:
    settled = access(concurrency=4, requests_per_minute=9)
    path = "/v1/completions"
    answers = talk(
        engine,
        settled,
        (ALICE, path, {**TEXT, "n": 5}),
        (ALICE, path, {**TEXT, "prompt": ["a", "b", "c"], "n": 2}),
        (ALICE, path, {**TEXT, "n": 4}),
        (ALICE, path, {**TEXT, "n": 3}),
        (ALICE, path, {**TEXT, "n": 2}),
        (BOB, path, {**TEXT, "n": 4}),
    )
    assert [answer.status_code for answer in answers] == [429, 429, 200, 200, 429, 200]
    assert "5: it can never be admitted" in answers[0].json()["error"]["message"]
    # The refused ones have taken the one request with which they came.
    assert answers[2].headers["x-ratelimit-remaining-requests"] == "3"
    assert answers[5].headers["x-ratelimit-remaining-requests"] == "5"
