"""GET /v1/models: what is served."""

from itertools import chain
from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from loire.engine.adapters import NamedAdapter
from loire.server.access.caller import get_caller
from loire.server.serving.served import Served, ServedModel
from loire.server.web.descriptions import ERROR_RESPONSES
from loire.server.web.json_answer import large_answer

router = APIRouter(prefix="/v1/models", responses=ERROR_RESPONSES)


class Model(BaseModel):
    """A name that requests can ask for. max_model_len: its window in tokens. Of an adapter, parent
    is the model that it is for, and root where it came from."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["loire"] = "loire"
    max_model_len: int
    parent: str | None = None
    root: str | None = None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", response_model=ModelList)
async def list_models(served: Served, request: Request) -> Response:
    """The served model under each of its names, and the adapters that the caller may use."""
    caller = get_caller(request.scope)
    models = [_model(served, name) for name in served.names]
    adapters = () if served.adapters is None else served.adapters.named
    own = (_adapter(served, named) for named in adapters if caller.may_use(named.name))
    return await large_answer(
        lambda: {
            "object": "list",
            "data": (model.model_dump(exclude_none=True) for model in chain(models, own)),
        }
    )


@router.get("/{model_id:path}", response_model_exclude_none=True)
async def retrieve_model(model_id: str, served: Served, request: Request) -> Model:
    """One model by its name."""
    caller = get_caller(request.scope)
    served.engine_for(model_id, caller)
    adapters = () if served.adapters is None else served.adapters.named
    found = next((named for named in adapters if named.name == model_id), None)
    return _model(served, model_id) if found is None else _adapter(served, found)


def _model(served: ServedModel, name: str) -> Model:
    window = served.engine.config.max_model_len
    return Model(id=name, created=served.created, max_model_len=window)


def _adapter(served: ServedModel, named: NamedAdapter) -> Model:
    model = _model(served, named.name)
    return model.model_copy(update={"parent": served.names[0], "root": named.root})
