"""llama.cpp's server, started and asked."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

START_LIMIT_S = 180.0


class LlamaServer:
    """A running server of one GGUF file; close() ends it."""

    def __init__(
        self, binaries: Path, model: str, *, threads: int, slots: int, length: int, options: str
    ) -> None:
        """binaries: directory of llama-server. slots: requests at a time, of so many tokens each.
        options: further ones, as on a command line. Raises RuntimeError if it does not start."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            binaries / "llama-server", "--model", model, "--host", "127.0.0.1",
            "--port", port, "--threads", threads, "--threads-batch", threads,
            "--parallel", slots, "--ctx-size", slots * length, *options.split(),
        ]  # fmt: skip
        self._server = subprocess.Popen([str(part) for part in command], stdout=sys.stderr)
        self._url = f"http://127.0.0.1:{port}"
        self._wait_until_ready()

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of /completion."""
        call = urllib.request.Request(
            f"{self._url}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call) as answer:
            parsed: dict[str, Any] = json.load(answer)
            return parsed

    def close(self) -> None:
        """End it."""
        self._server.terminate()
        self._server.wait()

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        while time.monotonic() - started < START_LIMIT_S:
            if self._server.poll() is not None:
                raise RuntimeError(f"llama-server ended with status {self._server.returncode}")
            try:
                with urllib.request.urlopen(f"{self._url}/health"):
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise RuntimeError(f"llama-server was not ready after {START_LIMIT_S:.0f} s")
