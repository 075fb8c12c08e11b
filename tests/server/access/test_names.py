"""A server answers to its own names, and lets only its own pages ask it."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loire.base.errors import ConfigError
from loire.cli.access_options import access_options
from loire.cli.main import _parser
from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.names import KnownNames, host_of, known_names
from loire.server.access.options import Access, AccessOptions
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from loire.server.web.routes import ROUTES
from support.fake_engine import NAME, FakeEngine

KEY = "alice-key-0123456789"
MACHINE = socket.gethostname()


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


def ask(
    engine: FakeEngine,
    method: str,
    path: str,
    names: KnownNames | None = None,
    *,
    keys: bool = False,
    body: dict[str, object] | None = None,
    **headers: str,
) -> httpx.Response:
    """One request that arrives at 10.1.2.3."""
    ring = KeyRing([parse_key(f"alice:{KEY}", place="test", admin=True)] if keys else [])
    names = names or known_names((), (), has_keys=keys)
    app = create_app(ServedModel([NAME], engine), Access(ring=ring, names=names))

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://10.1.2.3") as client:
            return await client.request(method, path, headers=headers, json=body)

    return asyncio.run(send())


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LOCALHOST", "localhost.", "app.localhost:80", MACHINE),
        *("127.0.0.1", "127.0.0.1:8000", "127.9.9.9", "[::1]", "[::1]:8000", f"{MACHINE}:8000"),
        *("10.1.2.3", "10.1.2.3:8000", "[::ffff:10.1.2.3]:8000"),
    ],
)
def test_names_of_this_machine(engine: FakeEngine, host: str) -> None:
    assert ask(engine, "GET", "/admin/requests", host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "10.1.2.4", "127.0.0.1.x"),
        *("", "localhost:x", "a@localhost", "localhost/x", "[::2]", "[::1"),
    ],
)
def test_foreign_names_are_refused(engine: FakeEngine, host: str) -> None:
    refused = ask(engine, "GET", "/admin/requests", host=host)
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert error["code"] == "host_not_allowed"
    assert "--allowed-host" in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (
            "POST" if route.generates or path.endswith(("tokenize", "files", "cancel")) else "GET",
            path,
        )
        for path, route in ROUTES.items()
        if route.open_to != "everybody"
    ],
)
def test_no_route_is_left_out(engine: FakeEngine, method: str, path: str) -> None:
    path = path.replace("{", "").replace("}", "").replace(":path", "")
    assert ask(engine, method, path, host="evil.example").status_code == 403
    assert ask(engine, method, path, origin="https://evil.example").status_code == 403
    assert engine.submissions == []


def test_probes_ask_by_any_name(engine: FakeEngine) -> None:
    assert ask(engine, "GET", "/health", host="balancer.example").status_code == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", "http://localhost:8000", 200),
        ("localhost:8000", "https://localhost:8000", 200),  # a proxy ends TLS
        ("localhost:8000", "http://localhost:3000", 403),
        ("localhost:8000", "http://localhost", 403),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "null", 403),
        ("localhost:8000", "file://localhost:8000", 403),
    ],
)
def test_pages_of_others_may_not_ask(
    engine: FakeEngine, host: str, origin: str, status: int
) -> None:
    body = {"model": NAME, "prompt": "x", "max_tokens": 1}
    answer = ask(engine, "POST", "/v1/completions", host=host, origin=origin, body=body)
    assert answer.status_code == status
    if status == 403:
        error = answer.json()["error"]
        assert error["code"] == "origin_not_allowed"
        assert "--allowed-origin" in error["message"]


def test_a_foreign_page_cannot_upload(engine: FakeEngine, tmp_path: Path) -> None:
    app = create_app(ServedModel([NAME], engine), data_dir=tmp_path / "data")

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(
                "/v1/files",
                headers={"origin": "https://evil.example"},
                files={"file": ("a.jsonl", b"{}")},
                data={"purpose": "batch"},
            )

    assert asyncio.run(send()).status_code == 403
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("keys", [False, True])
def test_what_is_allowed_is_answered(engine: FakeEngine, keys: bool) -> None:
    names = known_names(["loire.example"], ["https://chat.example"], has_keys=keys)
    headers = {"authorization": f"Bearer {KEY}"} if keys else {}

    def get(**more: str) -> httpx.Response:
        return ask(engine, "GET", "/v1/models", names, keys=keys, **headers, **more)

    assert get(host="loire.example:8000").status_code == 200
    assert get(host="other.example").status_code == 403
    allowed = get(host="loire.example", origin="https://chat.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
    assert get(host="loire.example", origin="https://other.example").status_code == 403
    # Browsers ask first, and without the key.
    preflight = ask(
        engine,
        "OPTIONS",
        "/v1/chat/completions",
        names,
        keys=keys,
        origin="https://chat.example",
        **{
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        },
    )
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()


def test_with_keys_nothing_is_restricted_that_was_not_named(engine: FakeEngine) -> None:
    more = {"authorization": f"Bearer {KEY}", "host": "any.example", "origin": "https://b.example"}
    answer = ask(engine, "GET", "/v1/models", keys=True, **more)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_stars_allow_all(engine: FakeEngine) -> None:
    names = known_names(["*"], ["*"], has_keys=False)
    more = {"host": "any.example", "origin": "https://b.example"}
    answer = ask(engine, "GET", "/v1/models", names, **more)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


def test_the_flags() -> None:
    flags = ["--allowed-host", "a.example", "--allowed-host", "b", "--allowed-origin", "http://c"]
    options = access_options(_parser("serve")[0].parse_args(["serve", *flags]))
    names = options.settle("127.0.0.1", {}).names
    assert names.hosts == {"127.0.0.1", "a.example", "b"}
    assert names.origins == {"http://c"}


@pytest.mark.parametrize(
    "options",
    [
        *({"allowed_hosts": [name]} for name in ("", "a:80", "http://a", "a/b", "a b@c")),
        *({"allowed_origins": [name]} for name in ("", "a", "http://a/", "//a", "null", "http://")),
    ],
)
def test_what_is_no_name_is_refused(options: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError, match="--allowed-"):
        AccessOptions(**options).settle("127.0.0.1", {})  # type: ignore[arg-type]


@given(st.text(max_size=30))
def test_any_host_header_is_understood_or_not(authority: str) -> None:
    host = host_of(authority)
    assert host is None or host
