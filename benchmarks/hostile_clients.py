"""Hostile clients of one server, all kinds at once, for so many seconds; counts as JSON.

    python benchmarks/hostile_clients.py URL SECONDS KEY [KEY ...]

Each kind is bounded: what is measured is the server, not how much one machine can send.
"""

import asyncio
import json
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import httpx

NAME = "model"
SLOW_CONNECTIONS = 60
OPTIONAL = "".join(f"[{chr(97 + index % 26)}-z]?" for index in range(10_000))


class Attack:
    """Everything that is sent."""

    def __init__(self, url: str, keys: list[str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._client = httpx.AsyncClient(base_url=url, timeout=60)
        self._keys = keys
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """All kinds side by side."""
        kinds: list[tuple[Callable[[], Awaitable[str]], int, float]] = [
            (self._slow_head, SLOW_CONNECTIONS, 0.1),
            (self._slow_body, 10, 0.1),
            (self._huge, 2, 0.5),
            (self._leaves, 6, 0.2),
            (self._bomb, 4, 0.1),
            (self._wide, 3, 0.1),
            (self._wrong_key, 4, 0.05),
        ]
        tasks = [
            asyncio.create_task(self._again(kind, pause))
            for kind, number, pause in kinds
            for _ in range(number)
        ]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _again(self, kind: Callable[[], Awaitable[str]], pause_s: float) -> None:
        name = kind.__name__.strip("_")
        while True:
            try:
                outcome = await kind()
            except (httpx.HTTPError, OSError, asyncio.IncompleteReadError) as error:
                outcome = type(error).__name__
            self.counts[f"{name}: {outcome}"] += 1
            await asyncio.sleep(pause_s)

    async def _post(self, path: str, *, key: str = "", **given: Any) -> str:
        key = key or secrets.choice(self._keys)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        answer = await self._client.post(path, headers=headers, **given)
        return str(answer.status_code)

    async def _slow_head(self) -> str:
        """A head that never ends, a byte a second."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
            for _ in range(60):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)
                if reader.at_eof():
                    return "closed"
            return "open for a minute"
        finally:
            writer.close()

    async def _slow_body(self) -> str:
        """Megabytes promised, some bytes a second sent."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            f"\r\nAuthorization: Bearer {self._keys[0]}\r\nContent-Length: 9000000\r\n\r\n"
        )
        try:
            writer.write(head.encode())
            for _ in range(90):
                writer.write(b" " * 100)
                await writer.drain()
                await asyncio.sleep(1)
                if reader.at_eof():
                    return "closed"
            return "open for a minute and a half"
        finally:
            writer.close()

    async def _huge(self) -> str:
        """Bodies near the bound: wrong ids, unknown fields, text."""
        kind = secrets.randbelow(3)
        start = f'{{"model": "{NAME}", '.encode()
        if kind == 0:
            body = start + b'"prompt": [' + b"-1," * 2_500_000 + b"0]}"
        elif kind == 1:
            most = secrets.choice((70_000, 700_000))  # below and above what is read
            body = start + b",".join(b'"%x": 0' % number for number in range(most)) + b"}"
        else:
            body = start + b'"prompt": "' + b"a b " * 2_500_000 + b'"}'
        return await self._post("/v1/completions", content=body)

    async def _leaves(self) -> str:
        """A long stream of which two pieces are read."""
        body = {"model": NAME, "prompt": secrets.token_hex(200), "max_tokens": 300, "stream": True}
        headers = {"Authorization": f"Bearer {secrets.choice(self._keys)}"}
        async with self._client.stream(
            "POST", "/v1/completions", json=body, headers=headers
        ) as answer:
            if answer.status_code != 200:
                return str(answer.status_code)
            number = 0
            async for _ in answer.aiter_lines():
                number += 1
                if number > 4:
                    break
        return "left"

    async def _bomb(self) -> str:
        """A constraint that takes seconds to compile, never the same."""
        form = {"regex": OPTIONAL + secrets.token_hex(4)}
        body = {"model": NAME, "prompt": "x", "max_tokens": 4, "structured_outputs": form}
        return await self._post("/v1/completions", json=body)

    async def _wide(self) -> str:
        """As many sequences as one call may have."""
        body = {"model": NAME, "prompt": secrets.token_hex(20), "n": 128, "max_tokens": 200}
        return await self._post("/v1/completions", json={**body, "ignore_eos": True})

    async def _wrong_key(self) -> str:
        """A key that is guessed."""
        return await self._post("/v1/models", key=secrets.token_hex(16))


async def main(url: str, seconds: float, keys: list[str]) -> None:
    attack = Attack(url, keys)
    running = asyncio.create_task(attack.run(seconds))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    began = time.monotonic()
    await asyncio.gather(running, return_exceptions=True)
    counts = dict(sorted(attack.counts.items()))
    print(json.dumps({"seconds": round(time.monotonic() - began), "outcomes": counts}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
