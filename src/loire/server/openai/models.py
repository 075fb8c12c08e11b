"""GET /v1/models: what is served."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from loire.server.serving.served import Served, ServedModel
from loire.server.web.descriptions import ERROR_RESPONSES

router = APIRouter(prefix="/v1/models", responses=ERROR_RESPONSES)


class Model(BaseModel):
    """A name that requests can ask for. max_model_len: its window in tokens."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["loire"] = "loire"
    max_model_len: int


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("")
async def list_models(served: Served) -> ModelList:
    """The served model under each of its names."""
    return ModelList(data=[_model(served, name) for name in served.names])


@router.get("/{model_id:path}")
async def retrieve_model(model_id: str, served: Served) -> Model:
    """One model by its name."""
    return _model(served, model_id)


def _model(served: ServedModel, name: str) -> Model:
    window = served.engine_for(name).config.max_model_len
    return Model(id=name, created=served.created, max_model_len=window)
