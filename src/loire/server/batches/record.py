"""Where batches stand, as the database has it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from loire.server.storage.database import Database
from loire.server.web.errors import ApiError

BatchStatus: TypeAlias = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
]

MAX_TENANT_BATCHES = 1000
"""Of a tenant; those that ended longest ago make room for new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """Why a batch cannot be run. line: in the input, from 1; None for the file as a whole."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """Where a batch stands. Times are Unix times."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: BatchStatus = "validating"
    errors: tuple[BatchError, ...] = ()
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("completed", "failed", "expired", "cancelled")


class BatchStore:
    """All batches. Raises OSError if they cannot be read."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.write("CREATE TABLE IF NOT EXISTS batches (id TEXT PRIMARY KEY, record BLOB)")
        kept = [
            msgspec.json.decode(record, type=BatchRecord)
            for [record] in database.read("SELECT record FROM batches")
        ]
        kept.sort(key=lambda record: (record.created_at, record.id))
        self._records = {record.id: record for record in kept}
        """The oldest first: one that is replaced keeps its place."""

    @property
    def unfinished(self) -> list[BatchRecord]:
        """The batches that have not ended, the oldest first."""
        return [record for record in self._records.values() if not record.ended]

    def get(self, batch_id: str, tenant: str) -> BatchRecord:
        """A batch of this tenant. Raises ApiError (404)."""
        record = self._records.get(batch_id)
        if record is None or record.tenant != tenant:
            raise ApiError(
                404,
                f"there is no batch {batch_id[:80]!r}",
                param="batch_id",
                code="batch_not_found",
            )
        return record

    def of_tenant(self, tenant: str) -> list[BatchRecord]:
        """All batches of this tenant, the newest first."""
        return [record for record in reversed(self._records.values()) if record.tenant == tenant]

    def note(self, record: BatchRecord) -> None:
        """Show progress that need not outlive the server."""
        self._records[record.id] = record

    def save(self, record: BatchRecord) -> None:
        """Add or replace a batch. Blocks. Raises OSError."""
        self.database.write(
            "INSERT OR REPLACE INTO batches VALUES (?, ?)", record.id, msgspec.json.encode(record)
        )
        self._records[record.id] = record

    def make_room(self, tenant: str) -> None:
        """Forget what ended longest ago. Blocks. Raises ApiError (429) if nothing has ended."""
        own = self.of_tenant(tenant)
        if len(own) < MAX_TENANT_BATCHES:
            return
        ended = [record for record in own if record.ended]
        if not ended:
            raise ApiError(
                429,
                f"{len(own):,} batches are on their way: wait until one has ended",
                code="too_many_batches",
            )
        oldest = ended[-1]
        self.database.write("DELETE FROM batches WHERE id = ?", oldest.id)
        del self._records[oldest.id]
