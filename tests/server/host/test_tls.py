"""HTTPS: a real server with certificates made by openssl, which change while it runs."""

import os
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from loire.base.errors import ConfigError
from loire.cli.main import main
from loire.server.host.app import create_app
from loire.server.host.connections import GuardedProtocol
from loire.server.host.run import bind
from loire.server.host.tls import ServerTls, TlsFiles
from loire.server.serving.served import ServedModel
from support.fake_engine import NAME, FakeEngine


def make(folder: Path, name: str, *more: str) -> TlsFiles:
    """A certificate for localhost and its key."""
    files = TlsFiles(folder / f"{name}.pem", folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(files.key), "-out", str(files.certificate), *more],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    return make(tmp_path, "first")


@contextmanager
def serving(engine: FakeEngine, tls: ServerTls) -> Iterator[int]:
    """The port of the app behind TLS."""
    listener = bind("127.0.0.1", 0)
    app = create_app(ServedModel([NAME], engine))
    config = uvicorn.Config(app, log_config=None, lifespan="on", http=GuardedProtocol, ws="none")
    config.load()
    config.ssl = tls.context
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def certificate(port: int, name: str | None = "localhost") -> bytes:
    """What a client sees, as DER. name: that it asks for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as link,
        context.wrap_socket(link, server_hostname=name) as wrapped,
    ):
        found = wrapped.getpeercert(binary_form=True)
    assert found is not None
    return found


def shown(port: int, name: str | None = "localhost") -> str:
    """The subject of the certificate that a client sees."""
    found = certificate(port, name)
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-subject", "-nameopt", "multiline"],
        input=found, check=True, capture_output=True,
    )  # fmt: skip
    return done.stdout.decode().rpartition("= ")[2].strip()


def replace(files: TlsFiles, other: TlsFiles, *, key: bool = True) -> None:
    assert files.key is not None
    assert other.key is not None
    files.certificate.write_bytes(other.certificate.read_bytes())
    if key:
        files.key.write_bytes(other.key.read_bytes())


def test_a_renewed_certificate_is_shown_without_a_restart(
    files: TlsFiles, tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = ServerTls(files)
    trusted = ssl.create_default_context(cafile=str(files.certificate))
    with serving(FakeEngine(tiny_llama), tls) as port:
        with httpx.Client(verify=trusted, base_url=f"https://localhost:{port}") as client:
            body = {"model": NAME, "prompt": "a"}
            assert client.post("/v1/completions", json=body).status_code == 200
            replace(files, make(tmp_path, "second"))
            tls.watch.check()
            assert (shown(port), shown(port, None)) == ("second", "second")
            assert client.post("/v1/completions", json=body).status_code == 200, "was cut off"
        replace(files, make(tmp_path, "third"), key=False)
        for _ in range(3):
            tls.watch.check()
        assert len([r for r in caplog.records if "cannot be used" in r.getMessage()]) == 1
        assert shown(port) == "second"
        replace(files, make(tmp_path, "third"))
        tls.watch.check()
        assert shown(port) == "third"


def spoiled(path: Path, other: bytes) -> Iterator[str]:
    """Puts one wrong thing after the other where a certificate or a key was, and (nameless) the
    right one back each time."""
    right = path.read_bytes()
    wrong: dict[str, Callable[[], object]] = {
        "garbage": lambda: path.write_bytes(b"\xff\x00" * 5_000),
        "nothing": lambda: path.write_bytes(b""),
        "half of it": lambda: path.write_bytes(right[: len(right) // 2]),
        "another's": lambda: path.write_bytes(other),
        "16 GB": lambda: (path.touch(), os.truncate(path, 2**34)),
        "no file": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a device": lambda: path.symlink_to("/dev/zero"),
        "a link to itself": lambda: path.symlink_to(path),
    }
    for name, put in wrong.items():
        path.unlink()
        put()
        yield name
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(right)
        yield ""


def test_whatever_takes_their_place_the_right_files_stay_in_force(
    files: TlsFiles, tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make(tmp_path, "other")
    assert files.key is not None
    assert other.key is not None
    certificates = [files.certificate.read_bytes(), other.certificate.read_bytes()]
    keys = [files.key.read_bytes(), other.key.read_bytes()]
    ders = [ssl.PEM_cert_to_DER_cert(text.decode()) for text in certificates]
    tls = ServerTls(files)
    trusted = ssl.create_default_context(cadata=b"".join(certificates).decode())
    with (
        serving(FakeEngine(tiny_llama), tls) as port,
        httpx.Client(verify=trusted, base_url=f"https://localhost:{port}") as client,
    ):
        assert client.get("/health/live").status_code == 200
        for turn, path, others in (
            (0, files.certificate, certificates[1]),
            (1, files.key, keys[0]),
        ):
            for name in spoiled(path, others):
                if not name:
                    tls.watch.check()
                    caplog.clear()
                    continue
                for _ in range(3):
                    tls.watch.check()
                [line] = [r.getMessage() for r in caplog.records if r.name == "loire.server"]
                assert "the certificate read before stays" in line, name
                assert len(line) < 500, name
                assert client.get("/health/live").status_code == 200, "an open connection goes on"
                assert certificate(port) == ders[turn], name
            files.certificate.write_bytes(certificates[1 - turn])
            files.key.write_bytes(keys[1 - turn])
            tls.watch.check()
            assert certificate(port) == ders[1 - turn]


def test_a_client_that_leaves_in_the_middle_of_an_answer(
    files: TlsFiles, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusted = ssl.create_default_context(cafile=str(files.certificate))
    body = {"model": NAME, "prompt": "a", "stream": True}
    with (
        serving(FakeEngine(tiny_llama), ServerTls(files)) as port,
        httpx.Client(verify=trusted, base_url=f"https://localhost:{port}") as client,
    ):
        with client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
        assert client.get("/health/live").status_code == 200
    assert "eof_received" not in caplog.text


def test_files_that_cannot_be_used_are_refused(files: TlsFiles, tmp_path: Path) -> None:
    other = make(tmp_path, "other")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", str(files.key), "-passout", "pass:secret",
         "-out", str(locked)],
        check=True, capture_output=True,
    )  # fmt: skip
    text = tmp_path / "text"
    text.write_text("no certificate")
    for certificate, key, words in (
        (tmp_path / "missing", files.key, "missing"),
        (text, files.key, "text"),
        (files.certificate, other.key, "other.key"),
        (files.certificate, None, "first.pem"),
        (files.certificate, locked, "password"),
    ):
        with pytest.raises(ConfigError, match=words):
            ServerTls(TlsFiles(certificate, key))


def test_one_file_may_hold_both(files: TlsFiles) -> None:
    assert files.key is not None
    with files.certificate.open("ab") as file:
        file.write(files.key.read_bytes())
    ServerTls(TlsFiles(files.certificate))


def test_a_client_that_is_still_sending_gets_its_answer(files: TlsFiles, tiny_llama: Path) -> None:
    trusted = ssl.create_default_context(cafile=str(files.certificate))
    with serving(FakeEngine(tiny_llama), ServerTls(files)) as port:
        url = f"https://localhost:{port}/v1/completions"
        # (urllib asks for the connection to be closed.)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url, data=bytes(20 * 2**20), context=trusted)
        assert (caught.value.code, b"at most 16,777,216" in caught.value.read()) == (413, True)
        caught.value.close()


def test_a_key_alone_is_refused(files: TlsFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--tls-key", str(files.key)]) == 1
    assert "--tls-cert" in capsys.readouterr().err
