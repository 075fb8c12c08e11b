"""Lists in bodies, each bounded and failing at its first mistake, and unions told by a look."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import Discriminator, Field, Tag

from loire.server.web.errors import UNION_TAG
from loire.server.web.strict import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS, Text

Member = TypeVar("Member")


def up_to(most: int, *, least: int | None = None) -> Any:
    """Of a list: so many entries. It fails at the first mistake: a million cost no more."""
    return Field(min_length=least, max_length=most, fail_fast=True)


def read_as(kind: str) -> Tag:
    """The member of a union that values of a kind are read as."""
    return Tag(f"{UNION_TAG}{kind}")


def told_by(kind_of: Callable[[Any], str]) -> Discriminator:
    """What tells the members of a union apart, so that an error is about one of them."""
    return Discriminator(lambda value: f"{UNION_TAG}{kind_of(value)}")


AS_TEXT, AS_LIST = read_as("text"), read_as("list")
TEXT_OR_LIST = told_by(lambda value: "list" if isinstance(value, list) else "text")

Messages = Annotated[list[Member], up_to(MAX_MESSAGES, least=1)]
Tools = Annotated[list[Member], up_to(MAX_TOOLS)]
Parts = Annotated[list[Member], up_to(MAX_PARTS)]
TextOrParts = Annotated[
    Annotated[Text, AS_TEXT] | Annotated[list[Member], up_to(MAX_PARTS), AS_LIST], TEXT_OR_LIST
]
"""A text, or a list of the parts that make it."""
