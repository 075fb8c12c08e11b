"""What one large body does to everybody else: each kind, beside /health/live and a running stream.

    python benchmarks/hostile_bodies.py [--model smollm2] [--only WORD] [--times 2]

Each kind of body is sent so many times, as large as the server reads it. Beside it a probe asks
/health/live again and again, and a stream generates tokens. A line for each kind: status, bytes,
the server's processor time, the longest that the probe and the stream's next piece took while it
was answered, and the most memory that was held meanwhile against the body's size. JSON last, with
the kinds that delay others by 100 ms or more, or hold more than 20 times their size. A busy machine
delays all of them: --only of nothing else is a check of the machine, as is the kind "none".
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from server_process import NAME, ServerProcess, processor_s

MAX_DELAY_MS = 100
MAX_HELD = 20
MOST = 16 * 2**20 - 1000
"""Bytes of a body that is read."""
PROBE_S = 0.002
SAMPLE_S = 0.005
HALF = rb"\ud800"
QUIET_S = 0.3


def completion(rest: bytes) -> bytes:
    """A body of /v1/completions."""
    return b'{"model":"%s",%s}' % (NAME.encode(), rest)


def chat(content: bytes, rest: bytes = b"") -> bytes:
    """A body of /v1/chat/completions."""
    message = b'"messages":[{"role":"user","content":%s}]' % content
    return completion(message + rest)


def filled(piece: bytes, num_bytes: int = MOST) -> bytes:
    """As many pieces as fit."""
    return piece * (num_bytes // len(piece))


def numbers(pattern: bytes, most: int) -> bytes:
    """Pieces that differ, separated by commas."""
    return b",".join(pattern % number for number in range(most))


def bodies(window: int) -> dict[str, tuple[str, Callable[[], bytes], dict[str, str]]]:
    """By kind: path, body and headers. window: of the model, from which the bounds follow."""
    values, strings = 300_000 + 2 * window - 100, 50_000 + window // 4 - 100
    completions, conversations = "/v1/completions", "/v1/chat/completions"

    def ids(piece: bytes) -> bytes:
        return completion(b'"prompt":[' + piece * (values - 10) + b"1]")

    def tool(schema: bytes) -> bytes:
        function = b'{"type":"function","function":{"name":"f","parameters":%s}}' % schema
        return chat(b'"x"', b',"tools":[%s]' % function)

    def lists(opening: bytes, closing: bytes, depth: int) -> bytes:
        return opening * depth + closing * depth

    half_ids = ids(b"1,")[:-1] + b',"suffix":"%s"}' % HALF
    kinds: dict[str, tuple[str, Callable[[], bytes]]] = {
        "none": (completions, lambda: b"{}"),
        "token ids, right": (completions, lambda: ids(b"1,")),
        "token ids, too large": (completions, lambda: ids(b"99999999,")),
        "token ids, negative": (completions, lambda: ids(b"-1,")),
        "token ids, fractions": (completions, lambda: ids(b"1.5,")),
        "token ids of 50 digits": (completions, lambda: ids(b"%d," % 10**49)),
        "token ids, more than are read": (completions, lambda: completion(
            b'"prompt":[' + filled(b"1,", MOST - 100) + b"1]")),
        "half a character behind ids": (completions, lambda: half_ids),
        "half a character, lines between": (completions, lambda: half_ids.replace(b",", b",\n")),
        "half a character in a long text": (completions, lambda: completion(
            b'"prompt":"%s%s"' % (filled(b'a\\"', MOST - 100), HALF))),
        "half a character in a name": (completions, lambda: completion(
            b"%s" % numbers(b'"%d":0', strings) + b',"%s":1' % HALF)),
        "unknown fields": (completions, lambda: completion(numbers(b'"f%d":0', strings))),
        "unknown fields with one name": (completions, lambda: completion(
            filled(b'"f":0,', 6 * strings)[:-1])),
        "a field of one long name": (completions, lambda: completion(
            b'"%s":0' % filled(b"n", MOST - 100))),
        "a part of a kind with a long name": (conversations, lambda: chat(
            b'[{"type":"%s"}]' % filled(b"n", MOST - 200))),
        "a long description of a tool": (conversations, lambda: chat(
            b'"x"', b',"tools":[{"type":"function","function":{"name":"f","description":"%s"}}]'
            % filled(b"<|im_end|> ", MOST - 200))),
        "a long variable of the template": (conversations, lambda: chat(
            b'"x"', b',"chat_template_kwargs":{"enable_thinking":"%s"}'
            % filled(b"word ", MOST - 200))),
        "a long conversation that may be cut": (conversations, lambda: chat(
            b'"%s"' % filled(b"<|im_end|> ", MOST - 300), b',"truncate_prompt_tokens":5')),
        "line breaks": (completions, lambda: completion(
            b'"prompt":"%s"' % filled(rb"\n", MOST - 100))),
        "as many escapes as are read": (completions, lambda: completion(
            b'"prompt":"%s%s"' % (rb"\n" * 2_000_000, filled(b"word ", MOST - 4_000_200)))),
        "numbers of 4,299 digits": (completions, lambda: completion(
            b'"prompt":[%s1]' % filled(b"9" * 4299 + b",", MOST - 200))),
        "text": (completions, lambda: completion(b'"prompt":"%s"' % filled(b"word ", MOST - 100))),
        "text without a space": (completions, lambda: completion(
            b'"prompt":"%s"' % filled(b"a", MOST - 100))),
        "text that just fits": (completions, lambda: completion(
            b'"prompt":"%s"' % filled(b"word ", 30 * window))),
        "blanks that just fit": (completions, lambda: completion(
            b'"prompt":"%s"' % filled(b" ", 60 * window))),
        "emoji": (conversations, lambda: chat(
            b'"%s"' % filled("\U0001f600".encode(), MOST - 200))),
        "emoji in escapes": (conversations, lambda: chat(
            b'"%s"' % filled(rb"\ud83d\ude00", MOST - 200))),
        "control tokens": (conversations, lambda: chat(
            b'"%s"' % filled(b"<|im_end|>", 30 * window))),
        "combining marks": (conversations, lambda: chat(
            b'"%s"' % filled("a\u0301".encode(), 30 * window))),
        "many messages": (conversations, lambda: completion(b'"messages":[%s]' % b",".join(
            [b'{"role":"user","content":"x"}'] * (strings // 4 - 10)))),
        "many parts": (conversations, lambda: chat(b"[%s]" % b",".join(
            [b'{"type":"text","text":"x"}'] * (strings // 4 - 10)))),
        "many wrong messages": (conversations, lambda: completion(b'"messages":[%s]' % b",".join(
            [b'{"role":"x"}'] * (strings // 2 - 10)))),
        "many prompts": (completions, lambda: completion(
            b'"prompt":[%s]' % numbers(b'"%d"', strings))),
        "many empty lists": (completions, lambda: completion(
            b'"prompt":[%s[]]' % filled(b"[],", 3 * (strings - 10)))),
        "deep lists": (completions, lambda: completion(b'"x":' + lists(b"[", b"]", strings // 2))),
        "deep objects": (completions, lambda: completion(
            b'"x":' + b'{"a":' * (strings // 2) + b"1" + b"}" * (strings // 2))),
        "biases": (completions, lambda: completion(
            b'"prompt":"x","logit_bias":{%s}' % numbers(b'"%d":1', strings - 10))),
        "stop texts": (completions, lambda: completion(
            b'"prompt":"x","stop":[%s]' % numbers(b'"%d"', strings - 10))),
        "one long stop text": (completions, lambda: completion(
            b'"prompt":"x","stop":"%s"' % filled(b"s", MOST - 200))),
        "a regex of megabytes": (completions, lambda: completion(
            b'"prompt":"x","structured_outputs":{"regex":"%s"}' % filled(b"a?", MOST - 200))),
        "a schema with many choices": (conversations, lambda: tool(
            b'{"enum":[%s]}' % numbers(b'"%d"', strings - 100))),
        "a schema that nests": (conversations, lambda: tool(
            b'{"properties":{"a":' * 10_000 + b"{}" + b"}}" * 10_000)),
        "messages of Anthropic": ("/v1/messages", lambda: completion(
            b'"max_tokens":1,"messages":[%s]' % b",".join(
                [b'{"role":"user","content":"x"}'] * (strings // 4 - 10)))),
        "items of a response": ("/v1/responses", lambda: completion(b'"input":[%s]' % b",".join(
            [b'{"role":"user","content":"x"}'] * (strings // 4 - 10)))),
        "texts to embed": ("/v1/embeddings", lambda: completion(
            b'"input":[%s]' % numbers(b'"%d"', strings - 10))),
        "text to tokenize": ("/tokenize", lambda: completion(
            b'"prompt":"%s"' % filled(b"a b ", MOST - 100))),
        "ids to detokenize": ("/detokenize", lambda: completion(
            b'"tokens":[%s1]' % (b"1," * (values - 10)))),
        "no JSON": (completions, lambda: filled(b"x")),
        "blanks": (completions, lambda: filled(b" ") + b"{}"),
        "not UTF-8": (completions, lambda: completion(
            b'"prompt":"%s"' % filled(b"\xff\xfe", MOST - 100))),
    }  # fmt: skip
    plain = {"content-type": "application/json"}
    packed = {**plain, "content-encoding": "gzip"}
    named = {kind: (path, make, plain) for kind, (path, make) in kinds.items()}
    bomb = gzip.compress(bytes(200_000_000), 9)
    return {
        **named,
        "ids, packed": (completions, lambda: gzip.compress(ids(b"1,")), packed),
        "zeros, packed": (completions, lambda: bomb, packed),
    }


@dataclass
class Found:
    """What one kind did. Delays in ms; memory in MB and in times of the body's size."""

    status: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    processor_ms: float = 0.0
    health_ms: float = 0.0
    stream_ms: float = 0.0
    held_mb: float = 0.0
    held_times: float = 0.0

    @property
    def harms(self) -> bool:
        """Beyond what is promised; small bodies may hold megabytes."""
        slow = max(self.health_ms, self.stream_ms) >= MAX_DELAY_MS
        return slow or (self.held_mb > 32 and self.held_times > MAX_HELD)


class Longest:
    """The longest of something since it was asked last, from other threads."""

    def __init__(self) -> None:
        self._value = 0.0
        self._lock = threading.Lock()

    def note(self, value: float) -> None:
        """One more."""
        with self._lock:
            self._value = max(self._value, value)

    def take(self) -> float:
        """The longest one; from now on, of what follows."""
        with self._lock:
            value, self._value = self._value, 0.0
        return value


async def probe(url: str, longest: Longest, ended: threading.Event) -> None:
    """Ask /health/live again and again."""
    host, port = re.fullmatch(r"http://([^:]+):(\d+)", url).groups()  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection(host, int(port))
    while not ended.is_set():
        began = time.perf_counter()
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
        longest.note(time.perf_counter() - began)
        await asyncio.sleep(PROBE_S)


async def streams(url: str, longest: Longest, ended: threading.Event) -> None:
    """One stream after another; the time between two pieces of one."""
    body = {"model": NAME, "prompt": "Once", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while not ended.is_set():
            last = None
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    now = time.perf_counter()
                    if last is not None:
                        longest.note(now - last)
                    last = now
                    if ended.is_set():
                        return


def rss(pid: int) -> int:
    """Bytes that a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watchers:
    """The probe, the stream and the watch of the server's memory, each on a thread of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self.health, self.stream, self.memory = Longest(), Longest(), Longest()
        self._ended = threading.Event()
        self._pid = server.process.pid
        works: list[Callable[[], object]] = [
            lambda: asyncio.run(probe(server.url, self.health, self._ended)),
            lambda: asyncio.run(streams(server.url, self.stream, self._ended)),
            self._watch_memory,
        ]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def _watch_memory(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.memory.note(rss(self._pid))

    def forget(self) -> None:
        """Nothing was seen yet."""
        for seen in (self.health, self.stream, self.memory):
            seen.take()

    def end(self) -> None:
        """No more of it."""
        self._ended.set()
        for thread in self._threads:
            thread.join(10)


def send(url: str, path: str, body: bytes, headers: dict[str, str]) -> int:
    """The answer's status; the connection is closed then."""
    with httpx.Client(timeout=120) as client:
        return client.post(url + path, content=body, headers=headers).status_code


def measure(
    server: ServerProcess,
    watchers: Watchers,
    path: str,
    body: bytes,
    headers: dict[str, str],
) -> Found:
    """Send one body."""
    time.sleep(QUIET_S)
    watchers.forget()
    pid = server.process.pid
    before, before_s, began = rss(pid), processor_s(pid), time.perf_counter()
    status = send(server.url, path, body, headers)
    seconds, computed_s = time.perf_counter() - began, processor_s(pid) - before_s
    held = max(watchers.memory.take() - before, 0)
    return Found(
        status,
        len(body),
        round(seconds, 3),
        round(1000 * computed_s),
        round(1000 * watchers.health.take(), 1),
        round(1000 * watchers.stream.take(), 1),
        round(held / 1e6, 1),
        round(held / len(body), 1),
    )


def least(founds: list[Found]) -> Found:
    """Of the same body, sent several times: delays that the machine made are not in all of them."""
    best = min(founds, key=lambda found: max(found.health_ms, found.stream_ms))
    most = max(founds, key=lambda found: found.held_mb)
    best.held_mb, best.held_times = most.held_mb, most.held_times
    return best


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", default="", metavar="WORD", help="kinds with this word")
    parser.add_argument("--times", type=int, default=2)
    args = parser.parse_args()
    server = ServerProcess(args.model, ["--kv-cache-memory=300MB"])
    try:
        models = httpx.get(f"{server.url}/v1/models").json()["data"]
        watchers = Watchers(server)
        found: dict[str, Found] = {}
        for kind, (path, make, headers) in bodies(models[0]["max_model_len"]).items():
            if args.only not in kind:
                continue
            body = make()
            tries = [measure(server, watchers, path, body, headers) for _ in range(args.times)]
            one = found[kind] = least(tries)
            print(
                f"{kind:34} {one.status} {one.num_bytes:11,} B {one.seconds:7.3f} s, processor "
                f"{one.processor_ms:5.0f} ms, health {one.health_ms:6.1f} ms, stream "
                f"{one.stream_ms:6.1f} ms, {one.held_mb:6.1f} MB ({one.held_times:.1f}x)"
                f"{'  HARM' if one.harms else ''}",
                flush=True,
            )
        watchers.end()
    finally:
        server.stop()
    harmful = [kind for kind, one in found.items() if one.harms]
    print(json.dumps({"harmful": harmful, "kinds": {k: asdict(one) for k, one in found.items()}}))
    return 1 if harmful else 0


if __name__ == "__main__":
    sys.exit(main())
