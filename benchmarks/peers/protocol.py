"""How a child process takes its orders: a JSON line in, a JSON line out, both behind a marker."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

MARKER = "@peer "


def answer_forever(run: Callable[[Path, int], dict[str, float]]) -> None:
    """Say that the engine is ready, then run what is asked for until the input ends."""
    print(MARKER + json.dumps({"ready": True, "pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        result = run(Path(order["workload"]), order["variant"])
        print(MARKER + json.dumps(result), flush=True)
