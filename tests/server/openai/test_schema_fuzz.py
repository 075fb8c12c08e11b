"""Random requests by the served schema: no 5xx, no hang. `make test-slow` installs schemathesis.

`pytest -m slow tests/server/openai/test_schema_fuzz.py -s` runs some 3,000 cases in five minutes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from support.server_process import START_S, start, wait_for
from support.tiny_models import save_tiny_llama

LEAST_CASES = 2000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_schema_holds_under_random_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("schemathesis", path=places)
    if program is None:
        pytest.skip("schemathesis is not installed")
    monkeypatch.setenv("LOIRE_HOME", str(tmp_path / "home"))
    model = save_tiny_llama(tmp_path / "tiny", max_positions=1024)
    server = start(model, "--dtype", "float32", "--kv-cache-memory", "8MB")
    try:
        wait_for(lambda: httpx.get(f"{server.url}/health").status_code == 200, START_S)
        command = [program, "run", f"{server.url}/openapi.json", "--phases", "fuzzing"]
        command += ["--checks", "not_a_server_error", "--continue-on-failure", "-n", "150"]
        # /admin/live is a stream without an end.
        command += ["--request-timeout", "30", "--exclude-path", "/admin/live"]
        command += ["--suppress-health-check", "all"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert run.returncode == 0, run.stdout[-4000:]
        found = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
        assert found is not None, run.stdout[-4000:]
        print(f"\nschemathesis: {found.group(0)}")
        assert int(found.group(1)) == int(found.group(2)) >= LEAST_CASES
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(START_S)
