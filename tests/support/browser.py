"""A headless Chromium, and an app on a port of its own for it to look at."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, expect, sync_playwright

START_S = 120


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, or the one that `playwright install chromium` has brought.

    Skips if there is none: it is no Python package, so the test extra cannot bring it; continuous
    integration (CI is set) installs it and fails without. As long as it is open, its thread cannot
    run another event loop.
    """
    with sync_playwright() as started:
        path = shutil.which("chromium") or started.chromium.executable_path
        if shutil.which(path) is None:
            missing = pytest.fail if os.environ.get("CI") else pytest.skip
            missing("there is no Chromium: apt-get install chromium")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        expect.set_options(timeout=1000 * START_S)  # a busy machine draws late
        yield browser
        browser.close()


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve an app on a thread of its own; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        limit = time.monotonic() + START_S
        while not server.started:
            assert thread.is_alive(), "the server ended at once"
            assert time.monotonic() < limit, f"the server did not start in {START_S} s"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
