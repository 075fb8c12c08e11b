"""An engine in a process of its own, stopped while it is another's turn."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from peers.protocol import MARKER

HERE = Path(__file__).parent


class Peer:
    """Starts an engine and waits until it is ready; `run` gives it work.

    Between its runs the engine and all its processes are stopped (SIGSTOP): threads that spin
    for a while after their work would slow the next engine down.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self._log = log
        started = time.perf_counter()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        ready = self._answer()
        self.engine = str(ready["engine"]) + (" (before)" if name == "before" else "")
        """Name, version and format, as it says itself."""
        self.weight_bytes = int(ready["weight_bytes"])
        """Of Loire, what a step reads of the weights; 0 of others."""
        self.start_s = time.perf_counter() - started
        """From the start of the process, imports included, until it is ready."""
        self._signal(signal.SIGSTOP)

    def run(self, workload: Path, variant: int, most_out: int = 2**20) -> dict[str, float]:
        """One variant of a workload file, at most `most_out` tokens generated per request.

        Gives `wall_s`, `output_tokens`, and of the first request `ttft_s` and `tpot_s` (seconds
        per output token after the first).
        """
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        order = {"workload": str(workload.resolve()), "variant": variant, "most_out": most_out}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = {key: float(value) for key, value in self._answer().items()}
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End it and its processes."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _answer(self) -> dict[str, float | str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARKER):
                answer: dict[str, float | str] = json.loads(line.removeprefix(MARKER))
                return answer
        status = self._process.wait()
        raise RuntimeError(f"{self.name} ended with status {status}; its last words: {self._log}")

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)
