"""`loire serve` as a process that benchmarks put under load and look into."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

NAME = "model"


def processor_s(pid: int) -> float:
    """Seconds that a process has computed."""
    # The name, in parentheses, may hold spaces; user and system time are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ServerProcess:
    """`loire serve` on a free port."""

    def __init__(self, model: str, flags: list[str]) -> None:
        command = [sys.executable, "-m", "loire", "serve", model, "--port", "0"]
        command += ["--served-model-name", NAME, *flags]
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False)  # noqa: SIM115
        self.process = subprocess.Popen(command, stderr=self.log)
        self.url = self._wait(lambda: re.search(r"listening on (http://\S+),", self.text))[1]
        self._wait(lambda: httpx.get(f"{self.url}/health").status_code == 200)

    @property
    def text(self) -> str:
        return Path(self.log.name).read_text()

    @property
    def engine_pid(self) -> int | None:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    @property
    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    @property
    def num_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, name: str) -> int:
        text = httpx.get(f"{self.url}/metrics").text
        return int(float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0]))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def _wait(self, condition: Any, seconds: float = 120) -> Any:
        end = time.monotonic() + seconds
        while not (value := condition()):
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the server did not start:\n{self.text}")
            time.sleep(0.05)
        return value
