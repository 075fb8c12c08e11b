"""Who may ask: keys, where they come from, and what they open."""

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from loire.base.errors import ConfigError
from loire.cli.main import _parser, main
from loire.server.access.key_sources import KeySources
from loire.server.access.keys import ApiKey, KeyRing, parse_key
from loire.server.access.options import Access, AccessOptions, is_loopback
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, Connection, FakeEngine, endpoints, run

ALICE, BOB, ROOT = "alice-key-0123456789", "bob-key-0123456789ab", "root-key-0123456789a"
HASHED = f"bob:sha256:{hashlib.sha256(BOB.encode()).hexdigest()}"
CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}


def ring() -> KeyRing:
    return KeyRing(
        [
            parse_key(f"alice:{ALICE}", place="test"),
            parse_key(HASHED, place="test"),
            parse_key(f"root:{ROOT}", place="test", admin=True),
        ]
    )


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


def ask(
    engine: FakeEngine, method: str, path: str, *, key: str | None = None, **more: Any
) -> httpx.Response:
    """One request to an app with keys."""
    public_metrics = more.pop("public_metrics", False)
    access = Access(ring=ring(), public_metrics=public_metrics)
    app = create_app(ServedModel([NAME], engine), access)
    if key is not None:
        more["headers"] = {"Authorization": f"Bearer {key}"}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **more)

    return asyncio.run(send())


# --- what a key opens -------------------------------------------------------------------------


def test_every_route_needs_a_key_but_health_and_the_pages_files(engine: FakeEngine) -> None:
    found = sorted(endpoints(create_app(ServedModel([NAME], engine), Access(ring=ring()))))
    for known in ("/v1/chat/completions", "/v1/completions"):
        assert ("POST", known) in found
    assert ("GET", "/openapi.json") in found
    may_be_open = {"/health", "/health/live", "/health/ready", "/", "/static/{name}"}
    for method, path in found:
        response = ask(engine, method, path.replace("{", "").replace("}", ""))
        assert response.status_code == 401 or path in may_be_open, (method, path)


@pytest.mark.parametrize("path", ["/v1/nothing", "//health", "/healthy", "/HEALTH", "/metrics/x"])
def test_paths_that_are_no_routes_need_a_key_too(engine: FakeEngine, path: str) -> None:
    assert ask(engine, "GET", f"http://test{path}").status_code == 401


def test_an_open_path_leads_nowhere_else(engine: FakeEngine) -> None:
    assert ask(engine, "GET", "/static/../v1/models").status_code in (401, 404)
    assert ask(engine, "GET", "/health/../v1/models").status_code in (401, 404)
    assert ask(engine, "GET", "/static/%2e%2e/v1/models").status_code in (401, 404)


def test_known_keys_open_and_others_do_not(engine: FakeEngine) -> None:
    for key in (ALICE, BOB, ROOT):
        response = ask(engine, "POST", "/v1/chat/completions", key=key, json=CHAT)
        assert response.status_code == 200, response.text
    for wrong in ("", "x", ALICE[:-1], ALICE + "x", "alice", HASHED, f"alice:{ALICE}"):
        response = ask(engine, "POST", "/v1/chat/completions", key=wrong, json=CHAT)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert error["code"] == "invalid_api_key"
        assert error["type"] == "invalid_request_error"
        assert wrong == "" or wrong not in error["message"].split()
    assert len(engine.submissions) == 3


def test_anthropics_header_and_errors(engine: FakeEngine) -> None:
    response = ask(engine, "GET", "/v1/models", headers={"x-api-key": BOB})
    assert response.status_code == 200
    response = ask(engine, "POST", "/v1/messages", headers={"x-api-key": "wrong"}, json={})
    assert response.status_code == 401
    body = response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "authentication_error"


def test_a_wrong_bearer_key_is_not_mended_by_the_other_header(engine: FakeEngine) -> None:
    headers = {"Authorization": "Bearer wrong", "x-api-key": BOB}
    assert ask(engine, "GET", "/v1/models", headers=headers).status_code == 401
    headers = {"Authorization": f"Basic {ALICE}"}
    assert ask(engine, "GET", "/v1/models", headers=headers).status_code == 401


def test_admin_routes_need_an_admin_key(engine: FakeEngine) -> None:
    assert ask(engine, "GET", "/admin/requests/nothing").status_code == 401
    assert ask(engine, "GET", "/admin/requests/nothing", key=ALICE).status_code == 403
    assert ask(engine, "GET", "/admin/requests/nothing", key=ROOT).status_code == 404


def test_metrics_need_a_key_unless_public(engine: FakeEngine) -> None:
    assert ask(engine, "GET", "/metrics").status_code == 401
    assert ask(engine, "GET", "/metrics", public_metrics=True).status_code != 401
    assert ask(engine, "GET", "/v1/models", public_metrics=True).status_code == 401


def test_a_client_without_a_key_cannot_make_the_server_read_its_body(engine: FakeEngine) -> None:
    async def test() -> None:
        connection = Connection(engine, "/v1/chat/completions", CHAT)
        connection.app = create_app(ServedModel([NAME], engine), Access(ring=ring()))
        await connection.run()
        assert connection.sent[0]["status"] == 401
        assert connection._body is not None

    run(test)


# --- where keys come from ---------------------------------------------------------------------


def test_keys_from_files_environment_and_flags(tmp_path: Path) -> None:
    keys, admins = tmp_path / "keys", tmp_path / "admins"
    keys.write_text(f"# who\n\n  alice:{ALICE}  \n{HASHED}\n")
    admins.write_text(f"root:{ROOT}\n")
    environment = {
        "LOIRE_API_KEY": "env-key-0123456789, carol:carol-key-0123456789",
        "LOIRE_ADMIN_KEY": "boss-key-0123456789",
    }
    sources = KeySources([keys], [admins], ["flag-key-0123456789"])
    found = KeyRing(sources.read(environment))
    assert [(key.name, key.admin) for key in found.keys] == [
        ("alice", False),
        ("bob", False),
        ("root", True),
        ("key-98efd5ea", False),
        ("carol", False),
        ("key-99a19432", True),
        ("key-14d72852", False),
    ]
    bob = found.find(BOB.encode())
    assert bob is not None
    assert bob.name == "bob"
    assert found.find(b"") is None
    assert ALICE not in repr(found.keys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("short", ["5 characters", "at least 16", "openssl"]),
        ("alice:", ["'alice'", "has 0"]),
        (":0123456789abcdef", ["name", "colon"]),
        ("é:0123456789abcdef", ["name"]),
        ("alice:0123456789 abcdef", ["no spaces", "limits"]),
        ("alice:0123456789é-abcdef", ["ASCII"]),
        ("alice:md5:0123456789abcdef0123456789abcdef", ["sha256:", "64"]),
        ("alice:sha256:0123", ["64"]),
        ("sha256:" + "0123456789abcdef" * 4, ["NAME:sha256:HEX"]),
        ("SHA256:" + "0123456789abcdef" * 4, ["NAME:sha256:HEX"]),
    ],
)
def test_bad_key_is_refused_without_repeating_it(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_key(text, place="keys.txt, line 3")
    message = str(caught.value)
    assert "keys.txt, line 3" in message
    for word in words:
        assert word in message
    secret = text.rpartition(":")[2]
    assert len(secret) < 5 or secret == "short" or secret not in message


def test_two_keys_must_differ() -> None:
    with pytest.raises(ConfigError, match=r"'a'.*'b'"):
        KeyRing([parse_key(f"a:{ALICE}", place="1"), parse_key(f"b:{ALICE}", place="2")])
    with pytest.raises(ConfigError, match="'a'"):
        KeyRing([ApiKey("a", b"1"), ApiKey("a", b"2")])


def test_bad_key_files_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match="missing"):
        KeySources([missing]).read({})
    empty = tmp_path / "empty"
    empty.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no keys"):
        KeySources([empty]).read({})
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        KeySources([binary]).read({})
    shared = tmp_path / "shared"
    shared.write_text(f"alice:{ALICE}\n")
    shared.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod 600"):
        KeySources([shared]).read({})


# --- where it listens -------------------------------------------------------------------------


def test_loopback() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.9.10")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("::")
    assert not is_loopback("192.0.2.1")
    with pytest.raises(ConfigError, match="no host"):
        is_loopback("no such host")


def test_other_machines_are_not_let_in_without_a_key(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        AccessOptions().settle("0.0.0.0", {})
    for word in ("0.0.0.0", "--api-key-file", "LOIRE_API_KEY", "--allow-no-key", "127.0.0.1"):
        assert word in str(caught.value)
    with caplog.at_level(logging.INFO, "loire.server"):
        assert not AccessOptions(allow_no_key=True).settle("0.0.0.0", {}).ring
        assert "whoever can reach 0.0.0.0" in caplog.text
        assert AccessOptions().settle("0.0.0.0", {"LOIRE_API_KEY": ALICE}).ring
        assert "1 API keys" in caplog.text
        assert not AccessOptions().settle("127.0.0.1", {}).ring
        assert "only this machine" in caplog.text
    assert ALICE not in caplog.text


def test_the_flags(tmp_path: Path) -> None:
    from loire.cli.access_options import access_options

    file = tmp_path / "keys"
    arguments = ["serve", "--api-key-file", str(file), "--api-key", ALICE, "--public-metrics"]
    options = access_options(_parser("serve")[0].parse_args(arguments))
    assert options.keys.key_files == [file]
    assert options.keys.keys == [ALICE]
    assert options.public_metrics
    assert not options.allow_no_key
    assert access_options(_parser("serve")[0].parse_args(["serve"])).keys.read({}) == ()


def test_adapters_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = parse_key(f"bob:{BOB} adapters=b,a/c concurrency=2", place="test")
    assert one.adapters == {"b", "a/c"}
    assert one.limits.concurrency == 2
    assert parse_key(f"bob:{BOB} adapters=", place="test").adapters == frozenset()
    assert parse_key(f"bob:{BOB}", place="test").adapters is None
    with pytest.raises(ConfigError, match="adapters= is given twice"):
        parse_key(f"bob:{BOB} adapters=a adapters=b", place="test")
    closed = KeyRing([one])
    assert closed.adapters_of("bob") == {"b", "a/c"}
    assert closed.adapters_of("gone") == frozenset()
    assert KeyRing().adapters_of("") is None
    file = tmp_path / "keys"
    for name, adapters in (("x", "b,a/c"), ("y", ""), ("z", None)):
        more = [] if adapters is None else ["--adapters", adapters]
        assert main(["keys", "add", name, "--file", str(file), *more]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--file", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == ["x  adapters=a/c,b", "y  adapters=", "z"]
