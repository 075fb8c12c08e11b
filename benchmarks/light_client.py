"""An HTTP client that costs little: it shares the cores with the server that it puts under load."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class LightClient:
    """Posts JSON over connections that are kept; answers must say their length."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[Connection] = []

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """The answer's status, when all of it has come."""
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        reader, writer = await self._connection()
        writer.write(head.encode() + content)
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(status_line.split()[1])

    async def _connection(self) -> Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # the server has closed it meanwhile
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        """Close what is kept."""
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()
