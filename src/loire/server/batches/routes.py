"""/v1/batches: files of requests, run when there is nothing more urgent to do."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from loire.server.access.caller import get_caller
from loire.server.batches.protocol import Batch, BatchList, CreateBatchRequest
from loire.server.batches.queue import BatchQueue
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.json_answer import large_answer
from loire.server.web.json_body import JsonRoute
from loire.server.web.strict import MAX_NAME

router = APIRouter(
    route_class=JsonRoute, prefix="/v1/batches", responses=ERROR_RESPONSES, tags=["batches"]
)


async def _queue(request: Request) -> BatchQueue:
    queue: BatchQueue = request.app.state.batches
    return queue


Queue = Annotated[BatchQueue, Depends(_queue)]


@router.post("")
async def create_batch(body: CreateBatchRequest, request: Request, queue: Queue) -> Batch:
    """Run all requests of an uploaded file within 24 hours."""
    record = await queue.create(
        get_caller(request.scope), body.endpoint, body.input_file_id, body.metadata
    )
    return Batch.of(record)


@router.get("", response_model=BatchList)
async def list_batches(
    request: Request,
    queue: Queue,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=MAX_NAME)] = None,
) -> Response:
    """The batches, the newest first."""
    tenant, store = get_caller(request.scope).tenant, await queue.store()
    records = store.of_tenant(tenant)
    if after is not None:
        records = records[records.index(store.get(after, tenant)) + 1 :]
    shown = [(record, queue.trouble(record.id)) for record in records[:limit]]
    return await large_answer(
        lambda: {
            "object": "list",
            "data": (Batch.of(record, trouble).model_dump() for record, trouble in shown),
            "first_id": shown[0][0].id if shown else None,
            "last_id": shown[-1][0].id if shown else None,
            "has_more": len(records) > len(shown),
        }
    )


@router.get("/{batch_id}")
async def retrieve_batch(batch_id: str, request: Request, queue: Queue) -> Batch:
    """Where a batch stands."""
    store = await queue.store()
    record = store.get(batch_id, get_caller(request.scope).tenant)
    return Batch.of(record, queue.trouble(batch_id))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, request: Request, queue: Queue) -> Batch:
    """Stop a batch; the answers that are there are kept in its output file."""
    return Batch.of(await queue.cancel(batch_id, get_caller(request.scope).tenant))
