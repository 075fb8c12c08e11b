"""How a child process takes its orders: a JSON line in, a JSON line out, both behind a marker."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "@peer "
Requests = list[dict[str, Any]]
"""[{"prompt": token ids, "out": tokens to generate}]"""


def answer_forever(
    run: Callable[[Requests], dict[str, float]], engine: str, weight_bytes: int = 0
) -> None:
    """Say that the engine is ready and which it is, then run what is asked for until the end.

    An order names a workload file, one of its variants and the most tokens of a request.
    weight_bytes is what a step reads of the weights, if the engine can say so.
    """
    ready = {"engine": engine, "weight_bytes": weight_bytes}
    print(MARKER + json.dumps(ready), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        workload = json.loads(Path(order["workload"]).read_text())
        requests = workload["variants"][order["variant"]]
        for request in requests:
            request["out"] = min(request["out"], order["most_out"])
        result = run(requests)
        print(MARKER + json.dumps(result), flush=True)
