"""Bodies of /v1/batches."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from loire.server.batches.record import BatchRecord, BatchStatus
from loire.server.web.strict import MAX_NAME, Name, StrictModel

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
MetadataKey = Annotated[str, Field(max_length=64)]


class CreateBatchRequest(StrictModel):
    """A request to run a file of requests."""

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "output_expires_after": "files stay until they are deleted",
    }

    input_file_id: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: dict[MetadataKey, Name] = Field(default_factory=dict, max_length=16)


class BatchMistake(BaseModel):
    """What is wrong with a line of the input (from 1), or with all of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchMistakes(BaseModel):
    """Why a batch failed, or what it waits for."""

    object: Literal["list"] = "list"
    data: list[BatchMistake]


class RequestCounts(BaseModel):
    """Requests of a batch: all of them, those that were answered, and those that were refused."""

    total: int
    completed: int
    failed: int


class Batch(BaseModel):
    """A batch. Times are Unix times."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchMistakes | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str]

    @classmethod
    def of(cls, record: BatchRecord, trouble: str | None = None) -> "Batch":
        """The batch as the API shows it. trouble: why it does not go on at the moment."""
        fields = asdict(record)
        mistakes = [BatchMistake(**error) for error in fields["errors"]]
        if trouble is not None:
            mistakes.append(BatchMistake(code="disk_full", message=trouble))
        fields["errors"] = BatchMistakes(data=mistakes) if mistakes else None
        fields["request_counts"] = RequestCounts(
            total=record.num_total, completed=record.num_completed, failed=record.num_failed
        )
        return cls.model_validate(fields)


class BatchList(BaseModel):
    """Some of the batches; after=last_id asks for those that follow."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
