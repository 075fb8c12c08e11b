"""/v1/files: upload, list, look at, read and delete the files that batches need and give."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from loire.server.access.caller import get_caller
from loire.server.batches.data_folder import Data
from loire.server.batches.file_store import MAX_TENANT_FILES, FileStore, StoredFile, Upload
from loire.server.batches.files_protocol import UPLOAD_SCHEMA, File, FileDeleted, FileList
from loire.server.batches.multipart import PartBegan, PartData, PartEnded, read_form
from loire.server.storage.disk import storing
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.errors import ApiError, ClientDisconnectedError
from loire.server.web.json_answer import large_answer
from loire.server.web.strict import MAX_NAME

router = APIRouter(prefix="/v1/files", responses=ERROR_RESPONSES, tags=["files"])

MAX_FIELD_BYTES = 256
"""Of the form's fields, the file apart."""
WRITE_BYTES = 2**20
"""So much of an upload is gathered before it is written on another thread."""


@router.post("", openapi_extra=UPLOAD_SCHEMA)
async def upload_file(request: Request, data: Data) -> File:
    """Upload the input of a batch."""
    caller = get_caller(request.scope)
    most = caller.meter.limits.storage_bytes
    upload = await asyncio.to_thread(data.files.begin, caller.tenant, most)
    try:
        return File.of(await _receive(request, upload))
    except ClientDisconnect as error:
        raise ClientDisconnectedError("the client left before the file was complete") from error
    finally:
        upload.close()


@router.get("", response_model=FileList)
async def list_files(
    request: Request,
    data: Data,
    purpose: Annotated[str | None, Query(max_length=MAX_NAME)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_TENANT_FILES)] = MAX_TENANT_FILES,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=MAX_NAME)] = None,
) -> Response:
    """The files that are there, the newest first."""
    tenant, store = get_caller(request.scope).tenant, data.files
    files = store.list(tenant)
    if order == "asc":
        files.reverse()
    if after is not None:
        files = files[files.index(store.get(after, tenant)) + 1 :]
    found = [file for file in files if purpose in (None, file.purpose)]
    shown = found[:limit]
    return await large_answer(
        lambda: {
            "object": "list",
            "data": (File.of(file).model_dump() for file in shown),
            "first_id": shown[0].id if shown else None,
            "last_id": shown[-1].id if shown else None,
            "has_more": len(found) > len(shown),
        }
    )


@router.get("/{file_id}")
async def retrieve_file(file_id: str, request: Request, data: Data) -> File:
    """One file: its size, name and purpose."""
    return File.of(_file(data.files, file_id, request))


@router.get("/{file_id}/content", response_class=FileResponse)
async def file_content(file_id: str, request: Request, data: Data) -> FileResponse:
    """The bytes of a file."""
    store = data.files
    file = _file(store, file_id, request)
    return FileResponse(
        store.path(file.id), media_type="application/octet-stream", filename=file.filename
    )


@router.delete("/{file_id}")
async def delete_file(file_id: str, request: Request, data: Data) -> FileDeleted:
    """Delete a file."""
    async with data.deciding:
        file = _file(data.files, file_id, request)
        for record in data.batches.unfinished:
            if record.input_file_id == file.id:
                raise ApiError(
                    409,
                    f"batch {record.id} is reading the file: cancel it, or wait for its end",
                    code="file_in_use",
                )
        with storing("delete the file"):
            await asyncio.to_thread(data.files.delete, file)
    return FileDeleted(id=file.id)


def _file(store: FileStore, file_id: str, request: Request) -> StoredFile:
    return store.get(file_id, get_caller(request.scope).tenant)


async def _receive(request: Request, upload: Upload) -> StoredFile:
    """Read the form, the file straight into the upload."""
    fields: dict[str, str] = {}
    form = read_form(request.headers.get("content-type", ""), request.stream())
    async with aclosing(form):
        async for event in form:
            assert isinstance(event, PartBegan), "parts begin before they go on"
            _check_field(event, fields)
            if event.name == "file":
                fields["file"] = event.filename or "file"
                await _save(form, upload)
            else:
                fields[event.name] = await _text(form, event.name)
                _check_purpose(fields[event.name])
    for name in ("purpose", "file"):
        if name not in fields:
            raise ApiError(400, f"{name!r} is required", param=name, code="missing_field")
    return await asyncio.to_thread(upload.keep, fields["file"], fields["purpose"])


def _check_field(event: PartBegan, fields: dict[str, str]) -> None:
    name = event.name[:MAX_NAME]
    if name.startswith("expires_after"):
        raise ApiError(
            400,
            f"{name!r} is not supported: files stay until they are deleted",
            param=name,
            code="unsupported_field",
        )
    if name not in ("purpose", "file"):
        raise ApiError(400, f"unknown field {name!r}: remove it", param=name, code="unknown_field")
    if name in fields:
        raise ApiError(400, f"{name!r} is there twice: send it once", param=name)
    if event.filename is not None and len(event.filename) > MAX_NAME:
        raise ApiError(
            400,
            f"the name of the file has {len(event.filename)} characters, but at most {MAX_NAME} "
            f"are kept",
            param="file",
        )


def _check_purpose(purpose: str) -> None:
    if purpose != "batch":
        raise ApiError(
            400,
            f"files are kept for purpose 'batch' only, not {purpose[:80]!r}",
            param="purpose",
        )


async def _save(form: AsyncIterator[object], upload: Upload) -> None:
    gathered = bytearray()
    async for event in form:
        if isinstance(event, PartEnded):
            break
        assert isinstance(event, PartData)
        gathered += event.data
        if len(gathered) >= WRITE_BYTES:
            await asyncio.to_thread(upload.write, bytes(gathered))
            gathered.clear()
    await asyncio.to_thread(upload.write, bytes(gathered))


async def _text(form: AsyncIterator[object], name: str) -> str:
    value = bytearray()
    async for event in form:
        if isinstance(event, PartEnded):
            break
        assert isinstance(event, PartData)
        value += event.data
        if len(value) > MAX_FIELD_BYTES:
            raise ApiError(400, f"{name!r} is longer than {MAX_FIELD_BYTES} bytes", param=name)
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"{name!r} is no UTF-8 text", param=name) from error
