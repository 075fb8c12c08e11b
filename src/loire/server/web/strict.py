"""The ground of all request bodies: strict models, and kinds of text and numbers.

Honour or refuse, never ignore: a field that nobody knows, or that Loire does not support, is an
error that names it. null stands for an absent field, as in OpenAI's own API. Bounds on numbers,
lists and strings keep what one request can cost in check.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

MAX_NAME = 512
"""Characters of a model's name, a user's id and the like."""
MAX_INT = 2**31 - 1
MAX_MESSAGES = 10_000
MAX_PARTS = 1_000
"""Of one message."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 512
"""Characters of a stop string."""
MAX_TOOLS = 128
"""As in OpenAI's API."""


def refuse(message: str, *path: str | int, kind: str = "told") -> NoReturn:
    """Fail a validation with a whole sentence; path leads from the model to the field.

    kind: "told" for a value that does not work, "unsupported" for what Loire cannot do.
    """
    context = {"message": message, "path": path}
    raise PydanticCustomError(kind, "{message}", context)


class StrictModel(BaseModel):
    """A part of a request: no unknown fields, no conversions between types, no NaN.

    UNSUPPORTED: fields of the OpenAI API that are refused, each with what to do instead.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls_and_refuse(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name for name, field in cls.model_fields.items()}
        known = cls.UNSUPPORTED.keys() | fields
        given = {
            name: value for name, value in data.items() if value is not None or name not in known
        }
        for name, advice in cls.UNSUPPORTED.items():
            if name in given:
                refuse(f"{name!r} is not supported: {advice}", name, kind="unsupported")
        return given


def _whole_characters(text: str) -> str:
    """JSON can escape half a character; what cannot be tokenized is refused here."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticKnownError("string_unicode") from error
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
# JSON has no integer keys, so these come as strings.
TokenKey = Annotated[int, Field(strict=False, ge=0, le=MAX_INT)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
FunctionName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
