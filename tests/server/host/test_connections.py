"""Connections that are slow, many, half closed or abandoned."""

import asyncio
import logging
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loire.server.host import connections, linger
from loire.server.host.connections import FREE_PIECES, GuardedProtocol
from loire.server.host.linger import Pace
from loire.server.observe.rare_log import FewOfMany, RareLines, RareLog
from loire.server.web import body_limit
from support.fake_engine import NAME, FakeEngine, serving

BODY = f'{{"model": "{NAME}", "prompt": "a"}}'.encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
ASK = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
LONG_S = 20.0


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LONG_S) as link:
        yield link


def until_closed(link: socket.socket) -> bytes:
    received = b""
    while piece := link.recv(65536):
        received += piece
    return received


def asked(link: socket.socket) -> bytes:
    """A whole answer, so that the next one can follow."""
    link.sendall(ASK)
    received = b""
    while b'"system_fingerprint"' not in received:
        received += link.recv(65536)
    return received


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama)


@pytest.mark.parametrize("beginning", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: "])
def test_a_head_that_does_not_come_ends_the_connection(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(GuardedProtocol, "head_s", 0.2)
    with serving(engine) as url, connected(url) as link:
        link.sendall(beginning)
        assert until_closed(link) == b""


def test_an_answer_may_take_longer_than_a_head(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "head_s", 0.2)
    engine.delay_s = 0.6
    with serving(engine) as url, connected(url) as link:
        link.sendall(ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        assert b" 200 " in until_closed(link)


def test_a_body_that_does_not_come_is_a_408(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limit, "FIRST_S", 0.2)
    with serving(engine) as url, connected(url) as link:
        link.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
        assert b" 408 " in link.recv(65536)


def test_bodies_have_a_bound_together(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "MAX_HELD_BYTES", 1_000)
    with serving(engine) as url, connected(url) as first, connected(url) as second:
        first.sendall(POST + b"Content-Length: 900\r\n\r\n" + b" " * 800)
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            second.sendall(POST + b"Content-Length: 300\r\n\r\n" + b" " * 300)
            answer = second.recv(65536)
            if b" 503 " in answer:
                break
            time.sleep(0.05)  # the first one's bytes have not been seen yet
        assert b" 503 " in answer
        first.close()
        deadline = time.monotonic() + LONG_S
        while b" 503 " in answer and time.monotonic() < deadline:
            with connected(url) as third:
                third.sendall(ASK)
                answer = third.recv(65536)
        assert b" 200 " in answer


def test_more_connections_than_allowed_are_told(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "max_connections", 2)
    with serving(engine) as url, connected(url) as first, connected(url):
        assert b" 200 " in asked(first)
        with connected(url) as third:
            assert b" 503 " in until_closed(third)
        assert b" 200 " in asked(first)


def test_a_client_that_leaves_within_its_body_is_no_error_of_ours(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(engine) as url:
        with connected(url) as link:
            link.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
        deadline = time.monotonic() + LONG_S
        while "/v1/completions" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "POST /v1/completions 499" in caplog.text
    assert "Traceback" not in caplog.text


HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (HEAD + b"a: b\r\n" * 40_000 + b"\r\n", [400]),
        (HEAD + b"\r\n" + HEAD + b"a: b\r\n" * 40_000 + b"\r\n", [200, 400]),
        (HEAD + b"A: " + b"x" * 40_000 + b"\r\n\r\n", [400]),
        (CHUNKED + b"1\r\n \r\n" * (FREE_PIECES + 1), [400]),
        (b"what is this\r\n\r\n", [400]),
        ((HEAD + b"\r\n") * 3 + HEAD + b"Connection: close\r\n\r\n", [200] * 4),
    ],
    ids=["many headers", "behind another", "a long one", "crumbs", "no request", "several"],
)
def test_what_is_too_much_to_read_is_refused(
    engine: FakeEngine, data: bytes, answers: list[int]
) -> None:
    with serving(engine) as url, connected(url) as link:
        link.sendall(data)
        received = until_closed(link)
    assert [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", received)] == answers


MANY = 20 * 2**20
LONG = POST + b"Content-Length: %d\r\n" % MANY
LAST = b"Connection: close\r\n\r\n"
CHUNK = b"100000\r\n" + bytes(2**20) + b"\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "status"),
    [
        (LONG + b"\r\n", bytes(2**20), 413),
        (LONG + LAST, bytes(2**20), 413),
        (LONG.replace(b"/v1/completions", b"/nowhere") + LAST, bytes(2**20), 413),
        (LONG.replace(b"/v1/completions", b"/v1/files") + LAST, bytes(2**20), 400),
        (POST + b"Transfer-Encoding: chunked\r\n" + LAST, CHUNK, 413),
        (b"no request\r\n\r\n", bytes(2**20), 400),
    ],
    ids=["goes on", "closes", "unknown route", "no form", "chunks", "no request"],
)
def test_a_client_that_is_still_sending_gets_its_answer(
    engine: FakeEngine, head: bytes, piece: bytes, status: int
) -> None:
    with serving(engine) as url, connected(url) as link:
        link.sendall(head)
        for _ in range(MANY // 2**20):
            link.sendall(piece)
        if LAST in head or status == 400:
            answer = until_closed(link)
        else:
            answer = link.recv(65536)
            assert b" 200 " in asked(link), "the connection is as good as new"
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.endswith(b"}"), "JSON that says why"


def send_for_ever(link: socket.socket, head: bytes) -> None:
    link.sendall(head)
    while True:
        link.sendall(bytes(2**20))


@pytest.mark.parametrize("end", [b"\r\n", LAST])
def test_a_client_that_sends_for_ever_is_cut(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(linger, "LINGER_BYTES", 2**20)
    endless = POST + b"Content-Length: %d\r\n" % 2**50 + end
    with serving(engine) as url, connected(url) as link, pytest.raises(ConnectionError):
        send_for_ever(link, endless)


def test_a_client_that_stops_within_its_body_is_cut(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "LINGER_IDLE_S", 0.1)
    with serving(engine) as url, connected(url) as link:
        link.sendall(LONG + b"\r\n")
        assert b" 413 " in until_closed(link)


def test_those_who_send_for_nothing_share_a_pace() -> None:
    pace = Pace(100.0)
    assert pace.wait_s(50, now_s=0.0) == pytest.approx(0.5)
    assert pace.wait_s(50, now_s=0.1) == pytest.approx(0.9)
    assert pace.wait_s(10, now_s=5.0) == pytest.approx(0.1)


def test_a_client_that_closes_its_side_gets_its_answer(engine: FakeEngine) -> None:
    engine.delay_s = 0.3
    with serving(engine) as url, connected(url) as link:
        link.sendall(ASK)
        link.shutdown(socket.SHUT_WR)
        answer = until_closed(link)
    assert answer.startswith(b"HTTP/1.1 102 ")
    assert b"HTTP/1.1 200 " in answer
    assert answer.rstrip().endswith(b"}")


def test_a_client_that_reads_nothing_is_left(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuardedProtocol, "send_s", 0.2)
    with serving(engine) as url, connected(url) as link:
        link.sendall(b"GET /static/main.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 1_500)
        waiting = select.poll()
        waiting.register(link, select.POLLHUP)
        assert waiting.poll(LONG_S * 1000)


def test_a_client_that_has_gone_ends_its_request(engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.gate = gate
    with serving(engine) as url:
        with connected(url) as link:
            link.sendall(ASK)
            deadline = time.monotonic() + LONG_S
            while not engine.running and time.monotonic() < deadline:
                time.sleep(0.02)
            assert engine.running
        while engine.running and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not engine.running


def test_what_happens_often_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("loire.server.connections")
    rare, lines = RareLog(log, every_s=3600.0), RareLines(every_s=3600.0)
    log.addFilter(lines)
    try:
        for _ in range(1_000):
            rare.warn("no descriptors")
            rare.warn("something else")
            log.warning("no request")
        for _ in range(3):
            log.error("what is no warning")
    finally:
        log.removeFilter(lines)
    assert len(caplog.records) == 6


def test_of_strangers_some_are_noted_and_the_others_counted() -> None:
    now = 0.0
    few = FewOfMany(2, lambda: now)
    assert [few.take() for _ in range(5)] == [0, 0, None, None, None]
    now = 61.0
    assert [few.take() for _ in range(3)] == [3, 0, None]


def test_descriptors_that_run_out_are_no_flood_of_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_rare", RareLog(connections.log))
    loop = asyncio.new_event_loop()
    error = OSError(24, "Too many open files")
    for _ in range(100):
        context = {"message": "socket.accept() out of system resource", "exception": error}
        connections.note_loop_trouble(loop, context)
    assert [record.getMessage() for record in caplog.records] == [
        "a connection could not be accepted: Too many open files"
    ]
    connections.note_loop_trouble(loop, {"message": "another thing"})
    assert "another thing" in caplog.text
    loop.close()
