"""An idle server: how much processor time do its processes take in a minute?

    python benchmarks/idle.py [MODEL] --seconds 60

One request is answered first, so that everything has been in use. Then nothing is asked, and the
time that the server and its engine have computed (/proc/PID/stat: user and system) is taken before
and after. Ends with one line of JSON; exit status 1 if it was more than 0.2% of a core.
"""

import argparse
import json
import sys
import time

import httpx
from server_process import NAME, ServerProcess, processor_s

MOST_SHARE = 0.002


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    server = ServerProcess(args.model, ["--kv-cache-memory=500MB"])
    try:
        body = {"model": NAME, "prompt": "Once upon a time", "max_tokens": 8}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status()
        time.sleep(2)
        assert server.engine_pid is not None
        pids = {"server": server.process.pid, "engine": server.engine_pid}
        before = {name: processor_s(pid) for name, pid in pids.items()}
        time.sleep(args.seconds)
        took = {name: processor_s(pid) - before[name] for name, pid in pids.items()}
    finally:
        server.stop()
    share = sum(took.values()) / args.seconds
    print(json.dumps({"good": share <= MOST_SHARE, "share": share, "processor_s": took}))
    return 0 if share <= MOST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
