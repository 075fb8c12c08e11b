"""What verbs that ask a server say where another one answers, or none."""

import socketserver
from threading import Thread

import pytest

from loire.cli.main import main


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-Other\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1 404 No\r\n\r\n\xff", b""],
)
def test_what_answers_is_no_loire(answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for arguments in ("list", "load name path", "unload name"):
            if answer.startswith(b"HTTP/1.1 200") and arguments != "list":
                continue  # (A success in words, whosever they are.)
            assert main(["adapters", *arguments.split(), "--url", url]) == 1
            says = capsys.readouterr().err
            assert ("is no Loire: give another --url" if answer else "nothing answers at") in says
        server.shutdown()


def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["adapters"], ["launch", "codex"]):
        assert main([*verb, "--url", "nonsense"]) == 1
        assert "what answers at nonsense" in capsys.readouterr().err
