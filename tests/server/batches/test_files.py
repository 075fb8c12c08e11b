"""/v1/files: what is uploaded comes back as it was, for its tenant alone, and nothing half."""

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.server.access.keys import KeyRing, parse_key
from loire.server.access.options import Access
from loire.server.batches import file_store
from loire.server.batches.file_store import FileStore
from loire.server.batches.multipart import FormParser, PartBegan, PartData, PartEnded, read_form
from loire.server.host.app import create_app
from loire.server.openai.responses.store import StoredResponse
from loire.server.serving.served import ServedModel
from loire.server.storage.database import Database
from loire.server.web.errors import ApiError
from support.fake_engine import NAME, FakeEngine, ask

LINES = b'{"custom_id": "1"}\n'
FORM = {"purpose": "batch"}


@pytest.fixture
def app(tiny_llama: Path, tmp_path: Path) -> FastAPI:
    return create_app(ServedModel([NAME], FakeEngine(tiny_llama)), data_dir=tmp_path / "data")


def upload(app: FastAPI, content: bytes = LINES, name: str = "in.jsonl") -> Any:
    response = ask(app, "POST", "/v1/files", data=FORM, files={"file": (name, content)})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_file_comes_back_as_it_was(app: FastAPI) -> None:
    content = bytes(range(256)) * 20_000
    file = upload(app, content, 'naïve "€".jsonl')
    assert file["bytes"] == len(content)
    assert (file["object"], file["purpose"], file["status"]) == ("file", "batch", "processed")
    assert ask(app, "GET", f"/v1/files/{file['id']}").json() == file
    response = ask(app, "GET", f"/v1/files/{file['id']}/content")
    assert response.content == content
    assert response.headers["content-disposition"].startswith("attachment")
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("filename*=utf-8''na%C3%AFve%0D%0AX", "na\u00efve\r\nX"),
        ("filename=a.jsonl", "a.jsonl"),
        ('FileName="a\\"b\\\\;"; filename="c"', 'a"b\\;'),
        ("filename*=unicode_escape''%5Cud800", "file"),
        ("filename*=idna''a%ff; filename=\"b\"", "b"),
        ("filename*=undefined''a", "file"),
    ],
)
def test_names_of_files_are_read_in_few_ways(app: FastAPI, disposition: str, name: str) -> None:
    """Python's own reader lets the client choose among all codecs, some of which raise."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
        b'Content-Disposition: form-data; name="file"; %s\r\n\r\nx\r\n--b--' % disposition.encode()
    )
    headers = {"Content-Type": 'Multipart/Form-Data; charset=utf-7; Boundary="b"'}
    file = ask(app, "POST", "/v1/files", content=body, headers=headers).json()
    assert file["filename"] == name
    assert ask(app, "GET", f"/v1/files/{file['id']}/content").content == b"x"


def test_files_are_listed_in_pages(app: FastAPI) -> None:
    ids = {upload(app)["id"] for _ in range(5)}
    newest_first = [file["id"] for file in ask(app, "GET", "/v1/files").json()["data"]]
    assert set(newest_first) == ids
    first = ask(app, "GET", "/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in first["data"]] == newest_first[:2]
    assert first["has_more"] is True
    rest = ask(app, "GET", "/v1/files", params={"after": first["last_id"]}).json()
    assert [file["id"] for file in rest["data"]] == newest_first[2:]
    assert rest["has_more"] is False
    oldest_first = ask(app, "GET", "/v1/files", params={"order": "asc"}).json()["data"]
    assert [file["id"] for file in oldest_first] == newest_first[::-1]
    assert ask(app, "GET", "/v1/files", params={"purpose": "batch_output"}).json()["data"] == []


def test_files_are_their_owners_alone_in_a_folder_of_any_mode(
    tiny_llama: Path, tmp_path: Path
) -> None:
    data = tmp_path / "shared"

    def serving() -> FastAPI:
        return create_app(ServedModel([NAME], FakeEngine(tiny_llama)), data_dir=data)

    (data / "files").mkdir(parents=True)
    for folder in (data, data / "files"):
        folder.chmod(0o777)
    precious = [
        data / "files" / name for name in ("README", "Makefile", "file-notes", "file-a.part")
    ]
    for path in precious:
        path.write_text("precious")
    mask = os.umask(0)
    try:
        app = serving()
        file = upload(app)
        part = app.state.data.files.begin("")
        app.state.responses.put("resp_1", StoredResponse("", "{}", ()))
    finally:
        os.umask(mask)
    written = [path for path in data.rglob("*") if path.is_file() and path not in precious]
    assert {path.name for path in written} >= {file["id"], "batches.sqlite", "responses.sqlite"}
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    (data / "files" / file["id"]).chmod(0o644)
    (data / "batches.sqlite").chmod(0o644)
    app.state.data.close()
    ask(serving(), "GET", "/v1/files")
    assert not part._part.exists(), "what was received when it ended is gone"
    part.close()
    for path in (data / "files" / file["id"], data / "batches.sqlite"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert [path.read_text() for path in precious] == ["precious"] * 4


def test_a_deleted_file_is_gone(app: FastAPI, tmp_path: Path) -> None:
    file = upload(app)
    answer = ask(app, "DELETE", f"/v1/files/{file['id']}").json()
    assert answer == {"id": file["id"], "object": "file", "deleted": True}
    assert list((tmp_path / "data" / "files").iterdir()) == []
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        response = ask(app, method, f"/v1/files/{file['id']}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")


@pytest.mark.parametrize(
    ("data", "files", "status", "param"),
    [
        ({}, {"file": ("a", LINES)}, 400, "purpose"),
        (FORM, {"other": ("a", LINES)}, 400, "other"),
        ({"purpose": "fine-tune"}, {"file": ("a", LINES)}, 400, "purpose"),
        ({"purpose": "batch" * 100}, {"file": ("a", LINES)}, 400, "purpose"),
        ({**FORM, "expires_after[seconds]": "3600"}, {"file": ("a", LINES)}, 400, "expires_after"),
        (FORM, {"file": ("a", b"")}, 400, "file"),
        (FORM, {"file": ("a" * 600, LINES)}, 400, "file"),
        (FORM, [("file", ("a", LINES)), ("file", ("b", LINES))], 400, "file"),
    ],
)
def test_wrong_forms_are_refused(
    app: FastAPI, tmp_path: Path, data: Any, files: Any, status: int, param: str
) -> None:
    response = ask(app, "POST", "/v1/files", data=data, files=files)
    assert response.status_code == status
    assert response.json()["error"]["param"].startswith(param)
    assert list((tmp_path / "data" / "files").iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("", b""),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--"),
        ("multipart/form-data; boundary=b", b"--b text\r\n\r\n--b--"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 9000),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nabc\r\n--b--',
        ),
        ("multipart/form-data; boundary*=idna''b", b"--b--"),
        ("multipart/form-data; boundary*=unicode_escape''%5Cud800", b"--b--"),
    ],
)
def test_what_is_no_form_is_refused(app: FastAPI, content_type: str, body: bytes) -> None:
    response = ask(app, "POST", "/v1/files", content=body, headers={"Content-Type": content_type})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_form")


def test_a_file_that_is_too_large_is_refused_on_the_way(
    app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "MAX_FILE_BYTES", 3 * 2**20)
    response = ask(app, "POST", "/v1/files", data=FORM, files={"file": ("a", bytes(3 * 2**20 + 1))})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "file_too_large")
    assert list((tmp_path / "data" / "files").iterdir()) == []


def test_too_many_files_are_refused(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_store, "MAX_TENANT_FILES", 2)
    upload(app)
    upload(app)
    response = ask(app, "POST", "/v1/files", data=FORM, files={"file": ("a", LINES)})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_files")


def test_what_a_tenant_keeps_is_bounded_also_while_it_arrives(
    tiny_llama: Path, tmp_path: Path
) -> None:
    keys = ("alice-key-0123456789", "bob-key-0123456789ab")
    ring = KeyRing(
        [
            parse_key(f"alice:{keys[0]} storage-bytes=1000", place=""),
            parse_key(f"bob:{keys[1]}", place=""),
        ]
    )
    served = ServedModel([NAME], FakeEngine(tiny_llama))
    app = create_app(served, Access(ring=ring), tmp_path / "data")

    def send(key: str, size: int) -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        files = {"file": ("a", b"x" * size)}
        return ask(app, "POST", "/v1/files", data=FORM, files=files, headers=headers)

    kept = send(keys[0], 600).json()
    response = send(keys[0], 401)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_files")
    assert "1,001 bytes" in response.json()["error"]["message"]
    store = app.state.data.files
    coming = store.begin("alice", 1000)
    coming.write(b"x" * 300)
    assert send(keys[0], 200).status_code == 413, "beside one that is on its way"
    assert send(keys[1], 5000).status_code == 200, "others have their own"
    coming.close()
    assert send(keys[0], 400).status_code == 200
    batch = {"endpoint": "/v1/completions", "input_file_id": kept["id"], "completion_window": "24h"}
    headers = {"Authorization": f"Bearer {keys[0]}"}
    store.put("file-1-output", "alice", "o", "batch_output", lambda out: out.write(b"x"))
    response = ask(app, "POST", "/v1/batches", json=batch, headers=headers)
    assert response.status_code == 413, "a batch would write more"
    assert not list((tmp_path / "data" / "files").glob("*.part"))


def test_files_are_counted_and_not_walked(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [upload(app)["id"] for _ in range(3)]
    ask(app, "DELETE", f"/v1/files/{ids[1]}")
    store = app.state.data.files
    assert [file.id for file in store.list("")] == [ids[2], ids[0]]
    # An upload looks at the tenant's room with each piece: not at ten thousand files.
    monkeypatch.setattr(store, "list", lambda tenant: pytest.fail("all files were walked"))
    upload(app)
    sizes = [file.num_bytes for file in store._files.values()]
    assert (len(sizes), sum(sizes)) == (3, store._num_bytes[""])
    store.put(ids[0], "", "again", "batch", lambda out: out.write(b"12345"))
    assert sum(sizes) - sizes[0] + 5 == store._num_bytes[""]


def test_uploads_leave_some_of_the_disk(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(app)
    usage = SimpleNamespace(total=20 * 2**30, free=2**30 - 1)
    monkeypatch.setattr(file_store.shutil, "disk_usage", lambda path: usage)
    response = ask(app, "POST", "/v1/files", data=FORM, files={"file": ("a", LINES)})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")
    usage.total = 5 * 2**30
    upload(app)


def test_a_full_disk_is_told(app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    upload(app)
    monkeypatch.setattr("os.fsync", full)
    response = ask(app, "POST", "/v1/files", data=FORM, files={"file": ("a", LINES)})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")
    assert "disk is full" in response.json()["error"]["message"]
    assert len(list((tmp_path / "data" / "files").iterdir())) == 1, "only the first file is there"


def test_tenants_do_not_see_each_others_files(tmp_path: Path) -> None:
    store = FileStore(tmp_path, Database(None))
    store.put("file-1", "ann", "a", "batch", lambda out: out.write(b"x"))
    assert [file.id for file in store.list("ann")] == ["file-1"]
    assert store.list("bob") == []
    with pytest.raises(ApiError, match="no file"):
        store.get("file-1", "bob")


def test_files_outlive_the_server_and_halves_do_not(tmp_path: Path) -> None:
    database = Database(tmp_path / "database")
    store = FileStore(tmp_path / "files", database)
    kept = store.put("file-1", "", "a", "batch", lambda out: out.write(b"x"))
    lost = store.put("file-5", "", "a", "batch", lambda out: out.write(b"x"))
    store.path(lost.id).unlink()
    for ending in ("", "-output", ".part", "-errors.part"):
        store.path(f"file-{'0' * 32}{ending}").write_bytes(b"what nothing is known of, or half")
    store.path("file-4").write_bytes(b"of a version that described files beside them")
    store.path("file-4.json").write_bytes(b"{}")
    database.close()
    again = FileStore(tmp_path / "files", Database(tmp_path / "database"))
    assert again.list("") == [kept]
    names = {path.name for path in again.folder.iterdir()}
    assert names == {"file-1", "file-4", "file-4.json"}


def test_one_server_has_the_folder(app: FastAPI, tiny_llama: Path, tmp_path: Path) -> None:
    upload(app)
    other = create_app(ServedModel([NAME], FakeEngine(tiny_llama)), data_dir=tmp_path / "data")
    response = ask(other, "GET", "/v1/files")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "data_dir_in_use")
    assert "--data-dir" in response.json()["error"]["message"]


def form(fields: list[tuple[str, str | None, bytes]], boundary: str) -> bytes:
    body = b"preamble\r\n" if len(fields) % 2 else b""
    for name, filename, value in fields:
        disposition = f'Content-Disposition: form-data; name="{name}"'
        disposition += "" if filename is None else f'; filename="{filename}"'
        body += f"--{boundary}\r\nX-Other: 1\r\n{disposition}\r\n\r\n".encode() + value + b"\r\n"
    return body + f"--{boundary}--\r\nepilogue".encode()


names = st.text("abcé[]€", min_size=1, max_size=8)
# Values full of what looks like the beginning of a delimiter.
values = st.lists(st.sampled_from([b"\r\n--b", b"\r", b"\n", b"-", b"b", b"\0\xff", b"--"])).map(
    b"".join
)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(names, st.none() | names, values), min_size=1, max_size=4),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_forms_are_read_in_pieces_of_any_size(
    fields: list[tuple[str, str | None, bytes]], sizes: list[int]
) -> None:
    boundary = "b" * 40
    parser, body, read, place = FormParser(boundary), form(fields, boundary), [], 0
    number = 0
    while place < len(body):
        size = sizes[number % len(sizes)]
        for event in parser.feed(body[place : place + size]):
            match event:
                case PartBegan(name, filename):
                    read.append([name, filename, b""])
                case PartData(data):
                    read[-1][2] += data
                case PartEnded():
                    read[-1] = tuple(read[-1])
        place, number = place + size, number + 1
    assert parser.complete
    assert read == fields


def test_a_form_that_ends_early_is_refused() -> None:
    body = form([("file", "a", b"x" * 100)], "b")
    end = body.index(b"--b--") + 4

    async def read(length: int) -> None:
        async def chunks() -> Any:
            yield body[:length]

        async for _ in read_form("multipart/form-data; boundary=b", chunks()):
            pass

    asyncio.run(read(end + 1))
    for length in range(end):
        with pytest.raises(ApiError, match="ends in the middle"):
            asyncio.run(read(length))


def test_the_folder_is_read_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []
    load = FileStore._load

    def noted(store: FileStore) -> None:
        readers.append(threading.current_thread())
        load(store)

    monkeypatch.setattr(FileStore, "_load", noted)
    for method, path in (
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file-1"),
        ("GET", "/v1/files/file-1/content"),
        ("DELETE", "/v1/files/file-1"),
        ("GET", "/v1/batches"),
    ):
        app = create_app(ServedModel([NAME]), data_dir=tmp_path / "data")
        assert ask(app, method, path).status_code in (200, 404)
        app.state.data.close()
    assert len(readers) == 5
    assert threading.current_thread() not in readers
