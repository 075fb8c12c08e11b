"""A real server process: started, waited for, and asked."""

import atexit
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

START_S = 120
"""Most seconds for anything that a busy machine may delay."""


@dataclass
class Server:
    """A server process: its address, what it logged, and what /health said while it loaded."""

    process: "subprocess.Popen[str]"
    url: str
    log: list[str]
    loading: httpx.Response

    @property
    def client(self) -> openai.OpenAI:
        """A new client, to be closed: its connections would be found open at any later time."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def num_requests(self) -> int:
        return int(httpx.get(f"{self.url}/health", timeout=START_S).json()["num_requests"])


def start(
    model: Path, *flags: str, within_s: float = START_S, folder: Path | None = None
) -> Server:
    """Start `loire serve` on a free port and wait until it listens. folder: to start it in."""
    data = tempfile.mkdtemp(prefix="loire-data-")
    atexit.register(shutil.rmtree, data, ignore_errors=True)
    own = ["--port", "0", "--data-dir", data]
    command = [sys.executable, "-m", "loire", "serve", str(model), *own, *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    log: list[str] = []

    def read() -> None:
        assert process.stderr is not None
        log.extend(iter(process.stderr.readline, ""))
        process.stderr.close()

    # The pipe is drained to the end, so that the server never waits for its reader.
    threading.Thread(target=read, daemon=True).start()

    def listening() -> "re.Match[str] | None":
        assert process.poll() is None, "".join(log)
        return re.search(r"listening on (http://\S+),", "".join(log))

    try:
        url = wait_for(listening, within_s)[1]
        return Server(process, url, log, httpx.get(f"{url}/health", timeout=within_s))
    except BaseException:
        process.kill()
        process.wait()
        raise


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """The condition's value once it is true. One that times out is not true yet."""
    end = time.monotonic() + seconds
    while True:
        value = None
        with contextlib.suppress(httpx.TimeoutException):
            value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.02)
