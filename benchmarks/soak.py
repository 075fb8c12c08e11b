"""A soak: mixed traffic for a long time. Do the counters balance, do memory and files stay flat?

    python benchmarks/soak.py [MODEL] --minutes 20

Three tenants with keys of their own keep asking for everything the API has: chats, streamed or
not, constrained answers, tool calls, several choices, long prompts, embeddings; they leave streams
in the middle, and ask for what must be refused; meanwhile files of requests are run as batches. The
pool is small, so sequences are preempted. Both processes are watched. At the end, these must hold:

    every answer was what its request must give: JSON of the schema, arguments that parse, a 4xx
    requests that ended in the server = requests that were sent; refusals likewise
    no request, no KV block and no file descriptor is left that was not there before
    over the second half, neither process grew by more than 8 MB (a line fitted to its memory)

Prints a row every half minute and one line of JSON at the end; exit status 1 if something is wrong.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from server_process import ServerProcess
from soak_traffic import TENANTS, Tally, Traffic

SAMPLE_S = 5
REPORT_S = 30
MOST_GROWTH_MB = 8


@dataclass
class Sample:
    """What one process held at a time."""

    time_s: float
    rss_mb: float
    files: list[str]

    @property
    def num_files(self) -> int:
        return len(self.files)


@dataclass
class Outcome:
    """What came of the soak."""

    minutes: float
    sent: dict[str, int] = field(default_factory=dict)
    completed: int = 0
    aborted: int = 0
    refused: int = 0
    batches: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    growth_mb: dict[str, float] = field(default_factory=dict)
    rss_mb: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


class Watch:
    """Memory and open files of the server and of its engine."""

    def __init__(self, server: ServerProcess) -> None:
        assert server.engine_pid is not None
        self.pids = {"server": server.process.pid, "engine": server.engine_pid}
        self.samples: dict[str, list[Sample]] = {name: [] for name in self.pids}

    def sample(self) -> None:
        for name, pid in self.pids.items():
            status = Path(f"/proc/{pid}/status").read_text()
            rss = int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024
            files = open_files(pid)
            self.samples[name].append(Sample(time.monotonic(), rss, files))

    def growth_mb(self, name: str) -> float:
        """By how much a line through the second half of the samples rises."""
        samples = self.samples[name]
        half = [s for s in samples if s.time_s > (samples[0].time_s + samples[-1].time_s) / 2]
        mean_t = sum(s.time_s for s in half) / len(half)
        mean_m = sum(s.rss_mb for s in half) / len(half)
        spread = sum((s.time_s - mean_t) ** 2 for s in half)
        slope = sum((s.time_s - mean_t) * (s.rss_mb - mean_m) for s in half) / spread
        return slope * (half[-1].time_s - half[0].time_s)


def open_files(pid: int) -> list[str]:
    """What the open files of a process are, such as socket:[123] or a path."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return names


class Metrics:
    """The server's counters, summed over their labels."""

    def __init__(self, url: str) -> None:
        self.text = httpx.get(f"{url}/metrics").text

    def total(self, name: str, **labels: str) -> int:
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", self.text, re.MULTILINE)
        return round(sum(float(v) for given, v in found if all(w in given for w in wanted)))


async def soak(server: ServerProcess, keys: dict[str, str], minutes: float) -> Outcome:
    outcome, tally = Outcome(minutes), Tally()
    traffic = Traffic(server.url, keys, tally)
    await traffic.warm_up()
    await traffic.rest()
    watch = Watch(server)
    watch.sample()
    end = time.monotonic() + 60 * minutes
    running = asyncio.create_task(traffic.run(end))
    reported = time.monotonic()
    while not running.done():
        await asyncio.wait({running}, timeout=SAMPLE_S)
        watch.sample()
        if time.monotonic() - reported > REPORT_S:
            reported = time.monotonic()
            report(watch, tally, Metrics(server.url))
    await running
    await traffic.close()
    await asyncio.sleep(2)
    rest = {name: samples[0] for name, samples in watch.samples.items()}
    check(server, watch, rest, tally, outcome)
    return outcome


def report(watch: Watch, tally: Tally, metrics: Metrics) -> None:
    held = "  ".join(
        f"{name} {samples[-1].rss_mb:,.0f} MB {samples[-1].num_files} files"
        for name, samples in watch.samples.items()
    )
    print(
        f"{watch.samples['server'][-1].time_s - watch.samples['server'][0].time_s:6.0f} s  {held}  "
        f"{sum(tally.sent.values()):,} sent, {tally.refused:,} refused, "
        f"{metrics.total('loire_output_tokens_total'):,} tokens, "
        f"{metrics.total('loire_preemptions_total'):,} preemptions, {tally.batches} batches",
        flush=True,
    )


def check(
    server: ServerProcess, watch: Watch, rest: dict[str, Sample], tally: Tally, outcome: Outcome
) -> None:
    """Fill in the outcome, with all that is wrong."""
    metrics = Metrics(server.url)
    ended = {
        name: metrics.total("loire_requests_total", outcome=name)
        for name in ("completed", "aborted", "failed")
    }
    outcome.sent = dict(sorted(tally.sent.items()))
    outcome.completed, outcome.aborted = ended["completed"], ended["aborted"]
    outcome.refused, outcome.batches = tally.refused, tally.batches
    outcome.output_tokens = metrics.total("loire_output_tokens_total")
    outcome.preemptions = metrics.total("loire_preemptions_total")
    outcome.prefix_hits = metrics.total("loire_prefix_cache_hits_total")
    wrong = outcome.wrong = tally.wrong
    sent = sum(tally.sent.values())
    if ended["failed"] or ended["completed"] + ended["aborted"] != sent:
        wrong.append(f"{sent} requests were sent, but they ended as {ended}")
    if ended["aborted"] > tally.left:
        wrong.append(f"{tally.left} streams were left, but {ended['aborted']} were aborted")
    refusals = metrics.total("loire_rejections_total")
    if refusals != tally.refused:
        wrong.append(f"{tally.refused} refusals were received, but {refusals} counted")
    for name in ("loire_kv_blocks_in_use", "loire_running_requests", "loire_waiting_requests"):
        if metrics.total(name):
            wrong.append(f"{name} is {metrics.total(name)} at the end")
    if restarts := metrics.total("loire_engine_restarts_total"):
        wrong.append(f"the engine was replaced {restarts} times")
    for name, samples in watch.samples.items():
        watch.sample()
        outcome.rss_mb[name] = samples[-1].rss_mb
        outcome.growth_mb[name] = watch.growth_mb(name)
        if outcome.growth_mb[name] > MOST_GROWTH_MB:
            wrong.append(f"the {name}'s memory grew by {outcome.growth_mb[name]:.1f} MB")
        before, after = rest[name].files, samples[-1].files
        if len(after) > len(before):
            wrong.append(f"the {name} has {len(after)} files open, not {len(before)}: {after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument(
        "--kv-cache-memory", default="100MB", help="small, so that all of it is soon in use"
    )
    args = parser.parse_args()
    keys = {tenant: f"{tenant}-{os.urandom(16).hex()}" for tenant in TENANTS}
    with tempfile.TemporaryDirectory() as folder:
        key_file = Path(folder) / "keys"
        key_file.write_text("".join(f"{tenant}:{key}\n" for tenant, key in keys.items()))
        key_file.chmod(0o600)
        flags = [f"--api-key-file={key_file}", f"--data-dir={folder}/data", "--public-metrics"]
        flags += [f"--kv-cache-memory={args.kv_cache_memory}"]
        flags += ["--max-model-len=4096", "--max-num-seqs=24"]
        server = ServerProcess(args.model, flags)
        try:
            outcome = asyncio.run(soak(server, keys, args.minutes))
        finally:
            server.stop()
    print(json.dumps(asdict(outcome)))
    print(*outcome.wrong, sep="\n", file=sys.stderr)
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
