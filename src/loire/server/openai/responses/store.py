"""Responses that can be retrieved and gone on from: bounded, each tenant's its own, on the disk."""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from loire.server.storage.database import Database
from loire.server.storage.disk import storing

log = logging.getLogger("loire.server")

DATABASE = "responses.sqlite"

MAX_TENANT_BYTES = 64_000_000
"""Of all that is kept of a tenant, as JSON; its oldest is forgotten first."""
MAX_BYTES = 1_000_000_000
"""Of all tenants together."""
MAX_AGE_S = 24 * 3600.0

_TABLES = (
    "CREATE TABLE IF NOT EXISTS responses (number INTEGER PRIMARY KEY AUTOINCREMENT, "
    "id TEXT UNIQUE, tenant TEXT, stored_s REAL, size INTEGER, "
    "body BLOB, messages BLOB, items BLOB, input BLOB)",
    "CREATE TABLE IF NOT EXISTS items (id TEXT, response_id TEXT REFERENCES responses (id), "
    "PRIMARY KEY (id, response_id)) WITHOUT ROWID",
)
_BY_ID = "WHERE id"
_BY_ITEM = "JOIN items AS known ON responses.id = response_id WHERE known.id"
_TOO_OLD = "DELETE FROM responses WHERE stored_s < ?"
_TOO_MUCH = (
    "DELETE FROM responses WHERE number IN (SELECT number FROM (SELECT number, SUM(size) OVER "
    "({} ORDER BY number DESC) AS size_since FROM responses) WHERE size_since > ?)"
)
_EARLIER = ("DROP TABLE responses", "DROP TABLE items")
"""What an earlier version kept, all of it in one column: it would have been old in a day."""
_WITHOUT_RESPONSE = "DELETE FROM items WHERE response_id NOT IN (SELECT id FROM responses)"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that has ended.

    body: its JSON. messages: the whole conversation up to its end. items: its output, by id, for
    requests that refer to it. input: what was sent, as items. Each may be megabytes, and is read by
    itself.
    """

    tenant: str
    body: str
    messages: Sequence[Mapping[str, Any]]
    items: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    input: Sequence[Mapping[str, Any]] = ()


class ResponseStore:
    """The latest responses, by their ids. Blocks: not for the event loop. Thread-safe.

    folder: holds the database, which is made at first use and which servers can share; None, or
    one that cannot be written to, keeps responses in memory. clock: Unix time, in seconds.
    """

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._opened: Database | None = None
        self._opening = Lock()
        self._num_unchecked = 0
        """Bytes that were added since it was last seen to that there is not too much."""

    def put(self, response_id: str, response: StoredResponse) -> None:
        """Keep a response, and forget what is too old or too much. If it fails, the log tells."""
        parts = (
            response.body.encode(),
            msgspec.json.encode(response.messages),
            msgspec.json.encode(response.items),
            msgspec.json.encode(response.input),
        )
        size = sum(map(len, parts))
        row = (response_id, response.tenant, self._clock(), size, *parts)
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO responses (id, tenant, stored_s, size, body, messages, items, "
                    "input) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
                connection.executemany(
                    "INSERT INTO items VALUES (?, ?)",
                    [(item_id, response_id) for item_id in response.items],
                )
                self._num_unchecked += size
                if self._num_unchecked > MAX_TENANT_BYTES // 64:
                    self._forget(connection)
                    self._num_unchecked = 0
        except OSError as error:
            # Its client has the answer all the same.
            log.error("response %s is not kept: %s", response_id, error)

    def body(self, response_id: str, tenant: str) -> bytes | None:
        """JSON of a response of this tenant; None if it has none of that id (any more)."""
        found: bytes | None = self._find("body", response_id, tenant)
        return found

    def messages(self, response_id: str, tenant: str) -> Sequence[Mapping[str, Any]] | None:
        """The whole conversation up to its end; None as in body()."""
        found = self._find("messages", response_id, tenant)
        return None if found is None else msgspec.json.decode(found, type=list[dict[str, Any]])

    def input(self, response_id: str, tenant: str) -> list[msgspec.Raw] | None:
        """What was sent for it, each item as JSON; None as in body()."""
        found = self._find("input", response_id, tenant)
        return None if found is None else msgspec.json.decode(found, type=list[msgspec.Raw])

    def has(self, response_id: str, tenant: str) -> bool:
        """Whether the tenant has a response of that id."""
        return self._find("1", response_id, tenant) is not None

    def items(self, item_ids: Iterable[str], tenant: str) -> dict[str, Mapping[str, Any]]:
        """Those items by these ids that are there, of the output of responses of this tenant. Each
        response is read once, however many of its items are asked for: it may be megabytes."""
        wanted, items = set(item_ids), dict[str, Mapping[str, Any]]()
        while wanted:
            item_id = wanted.pop()
            content = self._find("items", item_id, tenant, _BY_ITEM)
            if content is not None:
                all_items = msgspec.json.decode(content, type=dict[str, dict[str, Any]])
                found = {item_id, *(wanted & all_items.keys())}
                items.update((each, all_items[each]) for each in found)
                wanted -= found
        return items

    def delete(self, response_id: str, tenant: str) -> bool:
        """Forget a response; False if the tenant has none of that id."""
        if not self.has(response_id, tenant):
            return False
        with storing("forget the response"), self._database.transaction() as connection:
            connection.execute("DELETE FROM responses WHERE id = ?", (response_id,))
            connection.execute("DELETE FROM items WHERE response_id = ?", (response_id,))
        return True

    def close(self) -> None:
        """Let the database go."""
        with self._opening:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _forget(self, connection: sqlite3.Connection) -> None:
        """Of what is too old or too much. Looks at every response: not for each new one."""
        connection.execute(_TOO_OLD, (self._clock() - MAX_AGE_S,))
        connection.execute(_TOO_MUCH.format("PARTITION BY tenant"), (MAX_TENANT_BYTES,))
        connection.execute(_TOO_MUCH.format(""), (MAX_BYTES,))
        connection.execute(_WITHOUT_RESPONSE)

    def _find(self, column: str, wanted: str, tenant: str, where: str = _BY_ID) -> Any:
        """Of the latest response of this tenant that an id leads to; None if there is none."""
        with storing("read the response"):
            rows = self._database.read(
                f"SELECT {column} FROM responses {where} = ? AND tenant = ? AND stored_s >= ? "
                f"ORDER BY number DESC LIMIT 1",
                wanted,
                tenant,
                self._clock() - MAX_AGE_S,
            )
        return rows[0][0] if rows else None

    @property
    def _database(self) -> Database:
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Database:
        database = Database(None)
        if self._folder is not None:
            try:
                # What is asked is nobody else's business.
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                database = Database(self._folder / DATABASE)
            except OSError as error:
                log.warning("responses are kept in memory only: %s", error)
        if database.read("SELECT 1 FROM pragma_table_info('responses') WHERE name = 'content'"):
            for statement in _EARLIER:
                database.write(statement)
        for table in _TABLES:
            database.write(table)
        with database.transaction() as connection:
            self._forget(connection)
        return database
