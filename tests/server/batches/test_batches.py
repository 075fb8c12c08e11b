"""/v1/batches over an engine that replies what it was told to: states, files, refusals."""

import asyncio
import errno
import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from loire.server.access.keys import KeyRing
from loire.server.batches import queue
from loire.server.batches import run as batch_run
from loire.server.batches.data_folder import DATABASE
from loire.server.batches.in_process import BATCH_PRIORITY
from loire.server.batches.input import MAX_ERRORS, read_input
from loire.server.batches.queue import WINDOW_S
from loire.server.batches.record import BatchStore
from loire.server.batches.results import BatchResults
from loire.server.host.app import create_app
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine, run

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
BODY: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "hi"}]}
WINDOW: dict[str, Any] = {"completion_window": "24h"}


def line(custom_id: Any, body: dict[str, Any] | None = None, url: str = CHAT, **other: Any) -> str:
    fields = {"custom_id": custom_id, "method": "POST", "url": url, "body": body or BODY}
    return json.dumps(fields | other)


def num_results(folder: Path) -> int:
    """Of batches that have not ended."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        [(count,)] = database.execute("SELECT count(*) FROM results").fetchall()
    return int(count)


MOVING = ("validating", "in_progress", "finalizing", "cancelling")


class Server:
    """A running app and what a client does with it."""

    def __init__(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        self.client = client
        self.engine = engine

    async def upload(self, *lines: str) -> str:
        files = {"file": ("in.jsonl", "\n".join(lines).encode())}
        response = await self.client.post("/v1/files", data={"purpose": "batch"}, files=files)
        assert response.status_code == 200, response.text
        return str(response.json()["id"])

    async def create(self, file_id: str, endpoint: str = CHAT, **fields: Any) -> Any:
        body = {"input_file_id": file_id, "endpoint": endpoint, **WINDOW, **fields}
        response = await self.client.post("/v1/batches", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def get(self, path: str) -> Any:
        return (await self.client.get(path)).json()

    async def wait(self, batch: Any, *states: str) -> Any:
        while batch["status"] not in states:
            await asyncio.sleep(0.005)
            batch = await self.get(f"/v1/batches/{batch['id']}")
            assert batch["status"] in (*states, *MOVING), batch["errors"]
        return batch

    async def lines(self, file_id: str) -> list[Any]:
        response = await self.client.get(f"/v1/files/{file_id}/content")
        assert response.status_code == 200, response.text
        return [json.loads(text) for text in response.text.splitlines()]


@pytest.fixture
def engine(tiny_llama: Path) -> FakeEngine:
    return FakeEngine(tiny_llama, "Hello")


@asynccontextmanager
async def serving(engine: FakeEngine, folder: Path) -> AsyncIterator[Server]:
    app = create_app(ServedModel([NAME], engine), data_dir=folder)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Server(client, engine)


Check = Callable[[Server], Coroutine[Any, Any, None]]


def served(engine: FakeEngine, folder: Path, check: Check) -> None:
    async def test() -> None:
        async with serving(engine, folder) as server:
            await check(server)

    run(test)


def test_a_batch_gives_one_answer_per_request(engine: FakeEngine, tmp_path: Path) -> None:
    async def check(server: Server) -> None:
        texts = [line(f"id-{i}") for i in range(20)]
        file_id = await server.upload(*texts[:7], "", *texts[7:], "")
        batch = await server.create(file_id, metadata={"night": "1"})
        assert batch["object"] == "batch"
        batch = await server.wait(batch, "completed")
        assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        assert batch["metadata"] == {"night": "1"}
        assert batch["error_file_id"] is None
        assert batch["errors"] is None
        assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"]
        assert batch["finalizing_at"] <= batch["completed_at"] < batch["expires_at"]
        lines = await server.lines(batch["output_file_id"])
        assert [entry["custom_id"] for entry in lines] == [f"id-{i}" for i in range(20)]
        assert len({entry["id"] for entry in lines}) == 20
        for entry in lines:
            assert entry["error"] is None
            assert entry["response"]["status_code"] == 200
            answer = entry["response"]["body"]["choices"][0]["message"]["content"]
            assert answer == "Hello"
        file = await server.get(f"/v1/files/{batch['output_file_id']}")
        assert file["purpose"] == "batch_output"
        assert {s.request.priority for s in engine.submissions} == {BATCH_PRIORITY}
        while num_results(tmp_path):
            await asyncio.sleep(0.005)  # they go once the batch is known to have ended
        metrics = (await server.client.get("/metrics")).text
        assert 'loire_requests_total{outcome="completed",tenant=""} 20.0' in metrics
        for name in ("time_to_first_token", "queue_time", "request_duration"):
            assert f"loire_{name}_seconds_count 0.0" in metrics, "nobody waited for them"
        assert "loire_inter_token_latency_seconds_count 0.0" in metrics

    served(engine, tmp_path, check)


def test_requests_that_are_refused_are_in_the_error_file(
    engine: FakeEngine, tmp_path: Path
) -> None:
    async def check(server: Server) -> None:
        text = {"model": NAME, "prompt": "hi"}
        file_id = await server.upload(
            line("good", text, TEXT),
            line("no such field", {**text, "wrong": 1}, TEXT),
            line("no such model", {**text, "model": "other"}, TEXT),
            line("own priority", {**text, "priority": 500}, TEXT),
            line("asks for more", {**text, "priority": -500}, TEXT),
        )
        batch = await server.wait(await server.create(file_id, TEXT), "completed")
        assert batch["request_counts"] == {"total": 5, "completed": 3, "failed": 2}
        lines = await server.lines(batch["output_file_id"])
        good = ["good", "own priority", "asks for more"]
        assert [entry["custom_id"] for entry in lines] == good
        assert {s.request.priority for s in engine.submissions} == {BATCH_PRIORITY, 500}
        errors = await server.lines(batch["error_file_id"])
        told = {e["custom_id"]: (e["response"]["status_code"], e["response"]) for e in errors}
        assert {custom_id: status for custom_id, (status, _) in told.items()} == {
            "no such field": 400,
            "no such model": 404,
        }
        assert told["no such field"][1]["body"]["error"]["param"] == "wrong"

    served(engine, tmp_path, check)


def test_responses_run_as_batches(engine: FakeEngine, tmp_path: Path) -> None:
    async def check(server: Server) -> None:
        path = "/v1/responses"
        body = {"model": NAME, "input": "hi"}
        file_id = await server.upload(
            line("good", body, path),
            line("goes on", {**body, "previous_response_id": "resp_none"}, path),
        )
        batch = await server.wait(await server.create(file_id, path), "completed")
        [good] = await server.lines(batch["output_file_id"])
        answer = good["response"]["body"]
        assert answer["output"][0]["content"][0]["text"] == "Hello"
        assert (await server.client.get(f"{path}/{answer['id']}")).status_code == 404
        [refused] = await server.lines(batch["error_file_id"])
        assert refused["response"]["body"]["error"]["param"] == "previous_response_id"
        assert {s.request.priority for s in engine.submissions} == {BATCH_PRIORITY}

    served(engine, tmp_path, check)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_json_line"),
        ("[]", "invalid_json_line"),
        (line(""), "invalid_json_line"),
        (line("x" * 513), "invalid_json_line"),
        (line("a", method="GET"), "invalid_json_line"),
        (line("a", other=1), "invalid_json_line"),
        (line("a", body=[1]), "invalid_json_line"),  # type: ignore[arg-type]
        (line("a", url=TEXT), "mismatched_url"),
        (line("a", {**BODY, "stream": True}), "unsupported_stream"),
        (line("a", {**BODY, "user": "half of \ud800"}), "invalid_json_line"),
        (line("first"), "duplicate_custom_id"),
        (line(1.5), "invalid_json_line"),
        (line(None), "invalid_json_line"),
        (line(True), "invalid_json_line"),
        (line(2**63), "invalid_json_line"),
        (line(["a"]), "invalid_json_line"),
        (line("2") + "\n" + line(2), "duplicate_custom_id"),
        (line("a").replace('"body": {', '"body": {"x": ' + "[" * 100_000), "invalid_json_line"),
    ],
)
def test_a_wrong_line_fails_the_batch_by_its_number(
    engine: FakeEngine, tmp_path: Path, text: str, code: str
) -> None:
    async def check(server: Server) -> None:
        file_id = await server.upload(line("first"), "", text)
        batch = await server.wait(await server.create(file_id), "failed")
        [error] = batch["errors"]["data"]
        assert (error["code"], error["line"]) == (code, 3 + text.count("\n"))
        assert error["message"]
        assert batch["failed_at"] >= batch["created_at"]
        assert engine.submissions == []

    served(engine, tmp_path, check)


def test_inputs_have_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loire.server.batches.input.MAX_LINES", 3)
    monkeypatch.setattr("loire.server.batches.input.MAX_LINE_BYTES", 300)
    path = tmp_path / "in"

    def codes(*lines: str) -> list[tuple[str, int | None]]:
        path.write_text("\n".join(lines))
        return [(error.code, error.line) for error in read_input(path, CHAT)[1]]

    assert codes(*(line(str(i)) for i in range(3))) == []
    assert codes(*(line(str(i)) for i in range(4))) == [("too_many_requests", None)]
    assert codes(line("1"), line("2" * 300)) == [("line_too_long", 2)]
    assert codes("\n\n") == [("empty_file", None)]
    path.write_text(line("1"), encoding="utf-16")
    assert [error.code for error in read_input(path, CHAT)[1]] == ["invalid_encoding"]
    monkeypatch.setattr("loire.server.batches.input.MAX_ALL_LINES", 5)
    assert codes(*[""] * 5, line("1")) == [("too_many_requests", None)]
    monkeypatch.undo()
    assert codes(*["{"] * 100) == [("invalid_json_line", i + 1) for i in range(MAX_ERRORS)]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input_file_id": "file-unknown"}, 404, "file_id"),
        ({"endpoint": "/v1/models"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"metadata": {"k" * 65: "v"}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, 400, "output"),
        ({"other": 1}, 400, "other"),
    ],
)
def test_wrong_batches_are_refused(
    engine: FakeEngine, tmp_path: Path, fields: dict[str, Any], status: int, param: str
) -> None:
    async def check(server: Server) -> None:
        body = {"input_file_id": await server.upload(line("a")), "endpoint": CHAT, **WINDOW}
        response = await server.client.post("/v1/batches", json=body | fields)
        assert response.status_code == status, response.text
        assert response.json()["error"]["param"].startswith(param)
        assert (await server.get("/v1/batches"))["data"] == []

    served(engine, tmp_path, check)


def test_batches_are_listed_in_pages(engine: FakeEngine, tmp_path: Path) -> None:
    async def check(server: Server) -> None:
        file_id = await server.upload(line("a"))
        made = [(await server.create(file_id))["id"] for _ in range(5)]
        first = await server.get("/v1/batches?limit=2")
        rest = await server.get(f"/v1/batches?after={first['last_id']}")
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert {batch["id"] for batch in first["data"] + rest["data"]} == set(made)
        assert (await server.client.get("/v1/batches/batch_none")).status_code == 404

    served(engine, tmp_path, check)


def test_a_cancelled_batch_keeps_what_it_has(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that are on their way to the disk when it is cancelled count as well."""
    num_writes, go_on = 0, threading.Event()
    insert = BatchResults._insert

    def slow_insert(results: BatchResults, number: int, ok: bool, line: bytes) -> None:
        nonlocal num_writes
        num_writes += 1
        if num_writes > 1:
            assert go_on.wait(30)
        insert(results, number, ok, line)

    monkeypatch.setattr(BatchResults, "_insert", slow_insert)

    async def check(server: Server) -> None:
        file_id = await server.upload(*(line(f"id-{i}") for i in range(30)))
        batch = await server.create(file_id)
        while not (counts := batch["request_counts"])["completed"]:
            batch = await server.get(f"/v1/batches/{batch['id']}")
        while num_writes < 2:
            await asyncio.sleep(0.005)
        assert (await server.client.delete(f"/v1/files/{file_id}")).status_code == 409
        assert counts["completed"] < 30
        response = await server.client.post(f"/v1/batches/{batch['id']}/cancel")
        assert response.json()["status"] == "cancelling"
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        batch = await server.wait(response.json(), "cancelled")
        assert engine.running == []
        output = await server.lines(batch["output_file_id"])
        errors = await server.lines(batch["error_file_id"])
        assert len(output) == batch["request_counts"]["completed"] > counts["completed"]
        assert {entry["error"]["code"] for entry in errors} == {"batch_cancelled"}
        ids = sorted(entry["custom_id"] for entry in output + errors)
        assert ids == sorted(f"id-{i}" for i in range(30))
        again = await server.client.post(f"/v1/batches/{batch['id']}/cancel")
        assert (again.status_code, again.json()["error"]["code"]) == (409, "batch_not_cancellable")
        assert (await server.client.delete(f"/v1/files/{file_id}")).status_code == 200

    served(engine, tmp_path, check)


def test_a_batch_expires(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loire.server.batches.queue.WINDOW_S", 1)
    engine.gate = asyncio.Event()

    async def check(server: Server) -> None:
        file_id = await server.upload(line("a"), line("b"))
        batch = await server.wait(await server.create(file_id), "expired")
        assert batch["expired_at"] >= batch["expires_at"]
        assert batch["output_file_id"] is None
        errors = await server.lines(batch["error_file_id"])
        assert [entry["error"]["code"] for entry in errors] == ["batch_expired"] * 2
        assert engine.running == []

    served(engine, tmp_path, check)
    assert WINDOW_S == 24 * 3600


def test_no_more_lines_are_in_the_engine_than_fill_it(engine: FakeEngine, tmp_path: Path) -> None:
    engine.gate = asyncio.Event()

    async def check(server: Server) -> None:
        file_id = await server.upload(*(line(f"id-{i}") for i in range(30)))
        other = await server.upload(*(line(f"id-{i}") for i in range(30)))
        batches = [await server.create(file_id), await server.create(other)]
        while len(engine.running) < 4:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        # Three quarters of the 8 sequences; all of these wait here, and more would not help.
        assert len(engine.running) <= 6
        assert engine.gate is not None
        engine.gate.set()
        for batch in batches:
            batch = await server.wait(batch, "completed")
            assert batch["request_counts"]["completed"] == 30

    served(engine, tmp_path, check)


def test_of_a_thousand_batches_few_are_under_way(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_OPEN_OF_TENANT", 2)
    reading = most_reading = 0
    read = batch_run.read_input

    def counted(path: Path, endpoint: str) -> Any:
        nonlocal reading, most_reading
        reading += 1
        most_reading = max(reading, most_reading)
        time.sleep(0.01)
        found = read(path, endpoint)
        reading -= 1
        return found

    monkeypatch.setattr(batch_run, "read_input", counted)

    async def test() -> None:
        async with serving(engine, tmp_path) as server:
            file_id = await server.upload(line("1"))
            engine.gate = asyncio.Event()
            batches = [await server.create(file_id) for _ in range(6)]
            for batch in batches[:2]:
                await server.wait(batch, "in_progress")
            states = [(await server.get(f"/v1/batches/{b['id']}"))["status"] for b in batches]
            assert states == ["in_progress"] * 2 + ["validating"] * 4
            # Who waits for a place can be cancelled, and expires.
            response = await server.client.post(f"/v1/batches/{batches[3]['id']}/cancel")
            assert response.status_code == 200
            await server.wait(batches[3], "cancelled")
            engine.gate.set()
            engine.gate = None
            for batch in (*batches[:3], *batches[4:]):
                await server.wait(batch, "completed")

    run(test)
    assert most_reading == 1


def test_tenants_have_their_lines_run_in_turn(engine: FakeEngine, tmp_path: Path) -> None:
    lines = queue.EngineLines(ServedModel([NAME], engine), FastAPI(), KeyRing(()))
    order: list[str] = []

    async def take(tenant: str) -> None:
        await lines.begin(tenant)
        order.append(tenant)

    async def test() -> None:
        num_places = 0
        while lines._pause_s() == 0:
            await lines.begin("first")
            num_places += 1
        waiting = [asyncio.create_task(take(tenant)) for tenant in "aaaab"]
        await asyncio.sleep(0)
        for _ in waiting:
            lines.leave()
        await asyncio.gather(*waiting)

    run(test)
    assert order.index("b") <= 1


def test_the_next_server_goes_on(engine: FakeEngine, tmp_path: Path) -> None:
    made: list[Any] = []

    async def first(server: Server) -> None:
        file_id = await server.upload(*(line(f"id-{i}") for i in range(40)))
        batch = await server.create(file_id)
        while batch["request_counts"]["completed"] < 5:
            batch = await server.get(f"/v1/batches/{batch['id']}")
        engine.gate = asyncio.Event()
        made.append(batch)

    async def second(server: Server) -> None:
        batch = await server.wait(await server.get(f"/v1/batches/{made[0]['id']}"), "completed")
        lines = await server.lines(batch["output_file_id"])
        assert [entry["custom_id"] for entry in lines] == [f"id-{i}" for i in range(40)]

    served(engine, tmp_path, first)
    num_done = num_results(tmp_path)
    assert 5 <= num_done < 40
    engine.gate = None
    engine.submissions.clear()
    served(engine, tmp_path, second)
    assert len(engine.submissions) == 40 - num_done, "nothing is done twice"


def test_a_full_disk_is_told_and_waited_for(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "DISK_RETRY_S", 0.02)
    full = False
    insert = BatchResults._insert

    def insert_if_room(results: BatchResults, number: int, ok: bool, line: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        insert(results, number, ok, line)

    monkeypatch.setattr(BatchResults, "_insert", insert_if_room)

    async def check(server: Server) -> None:
        nonlocal full
        file_id = await server.upload(*(line(f"id-{i}") for i in range(10)))
        full = True
        batch = await server.create(file_id)
        while batch["errors"] is None:
            await asyncio.sleep(0.005)
            batch = await server.get(f"/v1/batches/{batch['id']}")
        assert batch["status"] == "in_progress"
        assert batch["errors"]["data"][0]["code"] == "disk_full"
        full = False
        batch = await server.wait(batch, "completed")
        assert batch["errors"] is None
        assert batch["request_counts"]["completed"] == 10
        assert len(engine.submissions) == 10, "answers are kept while there is no room"

    served(engine, tmp_path, check)


def test_a_file_is_not_deleted_while_a_batch_of_it_is_made(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go_on = threading.Event(), threading.Event()
    make_room = BatchStore.make_room

    def slow_make_room(store: BatchStore, tenant: str) -> None:
        making.set()
        assert go_on.wait(20)
        make_room(store, tenant)

    monkeypatch.setattr(BatchStore, "make_room", slow_make_room)

    async def check(server: Server) -> None:
        file_id = await server.upload(line("a"))
        engine.gate = asyncio.Event()
        creating = asyncio.create_task(server.create(file_id))
        await asyncio.to_thread(making.wait, 20)
        deleting = asyncio.create_task(server.client.delete(f"/v1/files/{file_id}"))
        await asyncio.wait({deleting}, timeout=0.1)
        go_on.set()
        batch = await creating
        assert (await deleting).json()["error"]["code"] == "file_in_use"
        engine.gate.set()
        await server.wait(batch, "completed")

    served(engine, tmp_path, check)


def test_files_as_peoples_tools_write_them(tiny_llama: Path, tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, blank lines, ids of any alphabet; and answers that
    hold what some readers take for line ends."""
    engine = FakeEngine(tiny_llama, "one\u2028two\u2029three\x85four")
    ids = ["a\u2028b", "été ☕", "x\r\ny", '"quoted"', "\u0085", " ", 7, -(2**63), "x" * 512]
    texts = [line(custom_id) for custom_id in ids]
    data = b"\xef\xbb\xbf\r\n" + "\r\n\r\n \t\r\n".join(texts).encode() + b"\r\n\r\n"

    async def check(server: Server) -> None:
        files = {"file": ("in.jsonl", data)}
        response = await server.client.post("/v1/files", data={"purpose": "batch"}, files=files)
        batch = await server.create(response.json()["id"])
        done = await server.wait(batch, "completed", "failed")
        assert done["errors"] is None
        assert done["request_counts"] == {"total": 9, "completed": 9, "failed": 0}
        output = await server.lines(done["output_file_id"])  # by str.splitlines()
        assert [entry["custom_id"] for entry in output] == ids
        for entry in output:
            [choice] = entry["response"]["body"]["choices"]
            assert choice["message"]["content"] == engine.reply

    served(engine, tmp_path, check)
