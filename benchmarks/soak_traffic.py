"""What the tenants of a soak ask for, and what the answers must be."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema
from server_process import NAME

TENANTS = ("red", "green", "blue")
CALLERS = 4
"""Calls of one tenant at a time."""
BATCH_LINES = 100
CHAT = "/v1/chat/completions"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
WORDS = ("river", "runs", "source", "through", "hills", "and", "towns", "to", "sea", "never")


@dataclass
class Tally:
    """What was sent to the engine, by kind, and what came back."""

    sent: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    left: int = 0
    batches: int = 0
    wrong: list[str] = field(default_factory=list)


class Traffic:
    """Callers of one server."""

    def __init__(self, url: str, keys: dict[str, str], tally: Tally) -> None:
        self.tally = tally
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        self.clients = {
            tenant: httpx.AsyncClient(
                base_url=url,
                timeout=600,
                limits=limits,
                headers={"Authorization": f"Bearer {key}"},
            )
            for tenant, key in keys.items()
        }
        self.kinds: dict[str, Callable[[Caller], Awaitable[None]]] = {
            "chat": Caller.chat,
            "streamed": Caller.streamed,
            "left": Caller.leave,
            "json": Caller.json,
            "tool": Caller.tool,
            "choices": Caller.choices,
            "long": Caller.long,
            "embedding": Caller.embedding,
            "refused": Caller.refused,
        }

    async def warm_up(self) -> None:
        """One of each kind, one after the other."""
        for tenant in TENANTS:
            caller = Caller(self.clients[tenant], self.tally, random.Random(tenant))
            for kind in self.kinds.values():
                await kind(caller)
            await self.batch(tenant, 3)

    async def rest(self) -> None:
        """Close what connections there are."""
        for tenant, client in self.clients.items():
            url, headers, timeout = client.base_url, client.headers, client.timeout
            await client.aclose()
            self.clients[tenant] = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout)
        await asyncio.sleep(2)

    async def run(self, end: float) -> None:
        """Ask until then (monotonic seconds), and wait for the answers."""
        callers = [
            self.call(tenant, random.Random(10 * number + caller), end)
            for number, tenant in enumerate(TENANTS)
            for caller in range(CALLERS)
        ]
        await asyncio.gather(*callers, self.batches(TENANTS[0], end))

    async def call(self, tenant: str, rng: random.Random, end: float) -> None:
        caller = Caller(self.clients[tenant], self.tally, rng)
        while time.monotonic() < end:
            name = rng.choice(list(self.kinds))
            try:
                await self.kinds[name](caller)
            except (AssertionError, httpx.HTTPError, ValueError, KeyError) as error:
                self.tally.wrong.append(f"{name} of {tenant}: {type(error).__name__}: {error}")
                if len(self.tally.wrong) > 20:
                    return

    async def batches(self, tenant: str, end: float) -> None:
        while time.monotonic() < end:
            await self.batch(tenant, BATCH_LINES)
            self.tally.batches += 1

    async def batch(self, tenant: str, num_lines: int) -> None:
        """A file of chats, all of which must be answered."""
        client = self.clients[tenant]
        body = {"model": NAME, "messages": message("Count."), "max_tokens": 16}
        lines = [
            {"custom_id": str(i), "method": "POST", "url": CHAT, "body": body}
            for i in range(num_lines)
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        uploaded = await client.post(
            "/v1/files", files={"file": ("in.jsonl", text)}, data={"purpose": "batch"}
        )
        given = {"input_file_id": uploaded.json()["id"], "completion_window": "24h"}
        given["endpoint"] = CHAT
        batch = (await client.post("/v1/batches", json=given)).json()
        while batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.5)
            batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
        self.tally.sent["batch line"] += num_lines
        if batch["status"] != "completed" or batch["request_counts"]["completed"] != num_lines:
            self.tally.wrong.append(f"batch: {batch}")
            return
        output = await client.get(f"/v1/files/{batch['output_file_id']}/content")
        answers = [json.loads(line) for line in output.content.splitlines()]
        found = sorted(int(answer["custom_id"]) for answer in answers)
        if found != list(range(num_lines)):
            self.tally.wrong.append(f"batch {batch['id']} answered {len(found)} of {num_lines}")
        for name in ("input_file_id", "output_file_id"):
            (await client.delete(f"/v1/files/{batch[name]}")).raise_for_status()

    async def close(self) -> None:
        for client in self.clients.values():
            await client.aclose()


class Caller:
    """Asks one thing after the other."""

    def __init__(self, client: httpx.AsyncClient, tally: Tally, rng: random.Random) -> None:
        self.client = client
        self.tally = tally
        self.rng = rng

    def text(self, most_words: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, most_words)))

    def body(self, **given: Any) -> dict[str, Any]:
        body = {"model": NAME, "messages": message(self.text(60)), "seed": self.rng.randrange(1000)}
        body |= {"max_tokens": self.rng.randint(1, 64), "temperature": self.rng.choice((0, 0.8))}
        return body | given

    async def post(self, kind: str, body: dict[str, Any], path: str = CHAT) -> Any:
        """The answer to a request that must succeed."""
        self.tally.sent[kind] += 1
        response = await self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async def chat(self) -> None:
        answer = await self.post("chat", self.body(logprobs=True, top_logprobs=3))
        usage, choice = answer["usage"], answer["choices"][0]
        assert usage["completion_tokens"] >= len(choice["logprobs"]["content"])

    async def choices(self) -> None:
        answer = await self.post("choices", self.body(n=3, temperature=1.0))
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]

    async def long(self) -> None:
        body = self.body(messages=message(self.text(2500)), max_tokens=8)
        answer = await self.post("long", body)
        assert answer["usage"]["completion_tokens"] <= 8

    async def json(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        answer = await self.post("json", self.body(response_format=form, max_tokens=200))
        choice = answer["choices"][0]
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)

    async def tool(self) -> None:
        body = self.body(tools=[TOOL], tool_choice="required", max_tokens=200)
        choice = (await self.post("tool", body))["choices"][0]
        if choice["finish_reason"] == "tool_calls":
            for call in choice["message"]["tool_calls"]:
                arguments = json.loads(call["function"]["arguments"])
                jsonschema.validate(arguments, TOOL["function"]["parameters"])

    async def embedding(self) -> None:
        given = {"model": NAME, "input": self.text(100)}
        answer = await self.post("embedding", given, "/v1/embeddings")
        assert len(answer["data"]) == 1

    async def streamed(self) -> None:
        assert await self.stream("streamed", self.body(), None)

    async def leave(self) -> None:
        """Disconnect in the middle of a stream."""
        self.tally.left += 1
        body = self.body(max_tokens=200, ignore_eos=True)
        await self.stream("left", body, self.rng.randint(1, 40))

    async def stream(self, kind: str, body: dict[str, Any], most: int | None) -> bool:
        """Read a stream, or some of its events; whether it came to its end."""
        self.tally.sent[kind] += 1
        num_events = 0
        given = body | {"stream": True}
        async with self.client.stream("POST", CHAT, json=given) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                assert '"error"' not in line, line
                if line == "data: [DONE]":
                    return True
                num_events += line.startswith("data: ")
                if num_events == most:
                    return False
        return False

    async def refused(self) -> None:
        status, body, headers = self.rng.choice(
            (
                (400, self.body(temperature=-1), {}),
                (400, self.body(no_such_field=1), {}),
                (400, self.body(messages=message("word " * 6000)), {}),
                (400, self.body(response_format={"type": "json_schema"}), {}),
                (401, self.body(), {"Authorization": "Bearer wrong"}),
                (404, self.body(model="another"), {}),
            )
        )
        response = await self.client.post(CHAT, json=body, headers=headers)
        self.tally.refused += 1
        assert response.status_code == status, response.text


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
