"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter as vLLM has them, GET /admin/adapters.

Adapters come from below `--lora-root` alone, whatever path is asked for.
"""

import asyncio
import logging
from functools import partial
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from loire.base.errors import ModelError, ModelNotFoundError, RequestError
from loire.engine.adapters import AdapterNames, NamedAdapter
from loire.server.serving.served import Served, ServedModel
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.errors import ApiError
from loire.server.web.json_body import JsonRoute

router = APIRouter(responses=ERROR_RESPONSES, route_class=JsonRoute)

log = logging.getLogger("loire.server")


class LoadRequest(BaseModel):
    """Which adapter to serve under which name. lora_path: below --lora-root, or absolute and there.
    load_inplace: in the place of what has that name; its requests go on with what they began with.
    pinned: its weights are read at once and stay in memory."""

    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False
    pinned: bool = False


class UnloadRequest(BaseModel):
    """Which name is to be nobody's."""

    lora_name: str = ""


class ListedAdapter(BaseModel):
    """An adapter under its name. identity: hash of its content. root: where it came from. rank: the
    largest of its layers."""

    name: str
    identity: str
    root: str
    rank: int
    pinned: bool


class AdapterList(BaseModel):
    """All of them, and how their memory stands: see loire.base.messages.AdapterCounts."""

    data: list[ListedAdapter]
    num_resident: int
    num_bytes: int
    hits: int
    loads: int
    evictions: int


@router.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
async def load_lora_adapter(body: LoadRequest, served: Served) -> str:
    """Serve an adapter as a model from now on."""
    adapters, root = _changeable(served)
    if not body.lora_name or not body.lora_path:
        raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", param="lora_name")
    load = partial(
        _load, adapters, root, body.lora_name, body.lora_path, body.load_inplace, body.pinned
    )
    named = await asyncio.get_running_loop().run_in_executor(served.adapter_loader, load)
    log.info("adapter %s is %s (%s)", named.name, named.identity[:12], named.root)
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


@router.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
async def unload_lora_adapter(body: UnloadRequest, served: Served) -> str:
    """Serve an adapter no more; its requests that are there go on."""
    adapters, _ = _changeable(served)
    if not body.lora_name:
        raise ApiError(
            400, "'lora_name' needs to be provided to unload a LoRA adapter.", param="lora_name"
        )
    unload = partial(adapters.unload, body.lora_name)
    try:
        await asyncio.get_running_loop().run_in_executor(served.adapter_loader, unload)
    except ModelNotFoundError as error:
        raise _refused(404, error) from error
    log.info("adapter %s was unloaded", body.lora_name)
    return f"Success: LoRA adapter '{body.lora_name}' removed successfully."


@router.get("/admin/adapters")
async def list_adapters(served: Served) -> AdapterList:
    """The adapters that are served, and how their memory stands."""
    named = () if served.adapters is None else served.adapters.named
    counts = served.adapter_counts
    return AdapterList(
        data=[_listed(adapter) for adapter in named],
        num_resident=counts.num_resident,
        num_bytes=counts.num_bytes,
        hits=counts.hits,
        loads=counts.loads,
        evictions=counts.evictions,
    )


def _listed(named: NamedAdapter) -> ListedAdapter:
    return ListedAdapter(
        name=named.name,
        identity=named.identity,
        root=named.root,
        rank=named.rank,
        pinned=named.pinned,
    )


def _changeable(served: ServedModel) -> tuple[AdapterNames, Path]:
    """Names, and the folder that adapters may come from. Raises ApiError: 503 while the model
    loads, 403 if this server changes no adapters."""
    if served.lora_root is None:
        raise ApiError(
            403,
            "this server loads and unloads no adapters while it runs: start it with --lora-root "
            "DIR, below which they may lie",
            code="lora_root_needed",
        )
    _ = served.engine
    assert served.adapters is not None, "an engine that is loaded has them"
    return served.adapters, served.lora_root


def _load(
    adapters: AdapterNames, root: Path, name: str, path: str, load_inplace: bool, pinned: bool
) -> NamedAdapter:
    """Raises ApiError, 404 if there is no adapter and else 400; RequestError for bad names."""
    try:
        directory = below(root, path)
        return adapters.load(
            name,
            directory,
            load_inplace=load_inplace,
            pinned=pinned,
            root=str(directory.relative_to(root)),
        )
    except ModelNotFoundError as error:
        raise _refused(404, error) from error
    except (ModelError, OSError) as error:
        raise _refused(400, error) from error


def below(root: Path, path: str) -> Path:
    """The directory of an adapter below root, which has no links in it.

    Raises RequestError if it would lead elsewhere, by .., by an absolute path or by a link, and
    ModelNotFoundError if there is nothing.
    """
    elsewhere = RequestError(
        f"adapters are loaded from below --lora-root alone, and {path[:200]!r} leads elsewhere",
        param="lora_path",
    )
    if "\0" in path or ".." in Path(path).parts:
        raise elsewhere
    wanted = root / path  # an absolute path stands for itself
    try:
        found = wanted.resolve(strict=True)
        files = [file.resolve() for file in found.glob("adapter_*")]
    except (OSError, RuntimeError) as error:
        if not wanted.is_relative_to(root):
            raise elsewhere from error
        raise ModelNotFoundError(f"No adapter found for {path[:200]}") from error
    if found == root or not all(place.is_relative_to(root) for place in (found, *files)):
        raise elsewhere
    return found


def _refused(status: int, error: Exception) -> ApiError:
    code = "adapter_not_found" if status == 404 else "adapter_refused"
    return ApiError(status, str(error), code=code)
