"""The ground of all request bodies, and the one rule for their fields (docs/api.md).

(a) What changes the answer is a field of the model and honoured, or stands in UNSUPPORTED and is
    refused by name. A field that nobody knows is refused, too.
(b) Hints and accounting stand in HINTS: they are taken without effect, and the answer's header
    `x-loire-ignored` names them (loire.server.web.ignored).
(c) A neutral value (null, false, "", [], {}, or what NEUTRAL says of a field) is the field's
    absence, whatever field it is.

Bounds on numbers, lists and strings keep what one request can cost in check.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, NoReturn

from annotated_types import MaxLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from loire.base.request_values import shown
from loire.server.web.ignored import note_ignored

MAX_NAME = 512
"""Characters of a model's name, a user's id and the like."""
MAX_INT = 2**31 - 1
LEAST_TOP_P = 1e-9
"""Stands for a top_p of 0: the fewest tokens whose weights reach it are one."""
RECOMMENDED = "as the model's makers recommend, if it is not given"
MAX_MESSAGES = 10_000
MAX_PARTS = 1_000
"""Of one message."""
MAX_STOPS = 16
MAX_STOP_LENGTH = 512
"""Characters of a stop string."""
MAX_TOOLS = 1_024
"""More than any of the originals takes."""


def given_sampling(**values: float | None) -> dict[str, Any]:
    """Those parameters of sampling that a body gives: the others are the model's to decide."""
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if given.get("top_p") == 0:
        given["top_p"] = LEAST_TOP_P
    return given


def refuse(message: str, *path: str | int, kind: str = "told") -> NoReturn:
    """Fail a validation with a whole sentence; path leads from the model to the field. Of a name
    in it that is longer than any field's, the beginning is told: pydantic writes all of it out.

    kind: "told" for a value that does not work, "unsupported" for what Loire cannot do, "unknown"
        for a field that nobody knows.
    """
    cut = tuple(part[:MAX_NAME] if isinstance(part, str) else part for part in path)
    context = {"message": message, "path": cut}
    raise PydanticCustomError(kind, "{message}", context)


def is_neutral(value: object) -> bool:
    """Whether a value asks for nothing, whatever field it stands in."""
    return value is None or value is False or (isinstance(value, (str, list, dict)) and not value)


class StrictModel(BaseModel):
    """A part of a request: no unknown fields, no conversions between types, no NaN.

    UNSUPPORTED: fields that are refused, each with what to do instead.
    HINTS: fields that are taken without effect.
    NEUTRAL: values of fields of neither kind that ask for nothing either.
    DROPS_UNKNOWN: unknown fields are let go without a word: they describe what is past, such as
        another provider's extras on a message that is sent back.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {}
    HINTS: ClassVar[frozenset[str]] = frozenset()
    NEUTRAL: ClassVar[Mapping[str, object]] = {}
    DROPS_UNKNOWN: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _sort_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        bounds = cls._bounds()
        given: dict[str, Any] = {}
        for name, value in data.items():
            if name in bounds:
                if value is not None:
                    given[name] = _bounded(name, value, bounds[name])
            elif is_neutral(value) or cls.NEUTRAL.get(name, _NONE_GIVEN) == value:
                continue
            elif name in cls.UNSUPPORTED:
                advice = cls.UNSUPPORTED[name]
                refuse(f"{name!r} is not supported: {advice}", name, kind="unsupported")
            elif name in cls.HINTS:
                note_ignored(name)
            elif not cls.DROPS_UNKNOWN:
                # The first is told, so that a million of them cost no more.
                refuse(f"unknown field {shown(name)}", name, kind="unknown")
        return given

    @classmethod
    @cache
    def _bounds(cls) -> Mapping[str, int | None]:
        """The fields by their names in JSON, with the most entries that each may have."""
        bounds: dict[str, int | None] = {}
        for name, field in cls.model_fields.items():
            lengths = [item.max_length for item in field.metadata if isinstance(item, MaxLen)]
            bounds[field.alias or name] = min(lengths, default=None)
        return bounds


def _bounded(name: str, value: Any, most: int | None) -> Any:
    """An object's entries are counted before they are looked at, which pydantic does afterwards."""
    if most is not None and isinstance(value, dict) and len(value) > most:
        refuse(f"{name!r} has {len(value)} entries, but at most {most} are taken", name)
    return value


_NONE_GIVEN = object()


def _whole_characters(text: str) -> str:
    """JSON can escape half a character; what cannot be tokenized is refused here."""
    try:
        if not text.isascii():
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
