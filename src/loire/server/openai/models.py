"""GET /v1/models: what is served."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from loire.server.serving.served import Served, ServedModel
from loire.server.web.descriptions import ERROR_RESPONSES

router = APIRouter(prefix="/v1/models", responses=ERROR_RESPONSES)


class Model(BaseModel):
    """A name that requests can ask for. max_model_len: its window in tokens. parent: of an adapter,
    the model that it is for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["loire"] = "loire"
    max_model_len: int
    parent: str | None = None


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", response_model_exclude_none=True)
async def list_models(served: Served) -> ModelList:
    """The served model under each of its names, and the adapters beside it."""
    adapters = () if served.adapters is None else served.adapters.named
    names = (*served.names, *(named.name for named in adapters))
    return ModelList(data=[_model(served, name) for name in names])


@router.get("/{model_id:path}", response_model_exclude_none=True)
async def retrieve_model(model_id: str, served: Served) -> Model:
    """One model by its name."""
    return _model(served, model_id)


def _model(served: ServedModel, name: str) -> Model:
    window = served.engine_for(name).config.max_model_len
    parent = served.names[0] if served.adapter_of(name) else None
    return Model(id=name, created=served.created, max_model_len=window, parent=parent)
