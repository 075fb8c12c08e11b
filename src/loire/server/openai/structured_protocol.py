"""Fields that say what form an output must have: OpenAI's response_format, vLLM's extra fields."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from loire.base.errors import RequestError
from loire.base.request_values import shown
from loire.base.structured_outputs import StructuredOutputs
from loire.server.web.strict import Name, StrictModel, Text, refuse
from loire.server.web.unions import read_as, told_by, up_to

MAX_CHOICES = 1_000
MAX_SCHEMA_NAME = 64


def _text_or_object(value: Any) -> str:
    return "object" if isinstance(value, dict) else "text"


SchemaOrText = Annotated[
    Annotated[dict[str, Any], read_as("object")] | Annotated[Text, read_as("text")],
    told_by(_text_or_object),
]
Choices = Annotated[list[Text], up_to(MAX_CHOICES, least=1)]


class JsonSchemaFormat(StrictModel):
    """A schema with OpenAI's words around it."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_SCHEMA_NAME)]
    description: Text = ""
    # "schema" is a method of pydantic's models.
    schema_: dict[str, Any] = Field(default_factory=lambda: {"type": "object"}, alias="schema")
    strict: bool = Field(False, description="accepted: a schema is always enforced")


_FORMATS = ("text", "json_object", "json_schema")


class ResponseFormat(StrictModel):
    """The form of the answer: any text, a JSON object, or what a JSON schema accepts."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind not in _FORMATS:
            refuse(
                f"'response_format' of type {shown(kind)} is not supported: "
                f"{', '.join(_FORMATS)} are",
                "type",
                kind="unsupported",
            )
        return data

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            needed = "needs a" if self.json_schema is None else "has no"
            refuse(f"a format of type {self.type!r} {needed} 'json_schema'", "json_schema")
        return self

    def spec(self) -> StructuredOutputs | None:
        """The constraint; None for text."""
        if self.json_schema is not None:
            return StructuredOutputs(json=self.json_schema.schema_)
        return StructuredOutputs(json_object=True) if self.type == "json_object" else None


class StructuredOutputsBody(StrictModel):
    """vLLM's structured_outputs: exactly one of the first five."""

    # "json" is a method of pydantic's models.
    json_: SchemaOrText | None = Field(None, alias="json", description="a JSON schema")
    json_object: bool = False
    regex: Text | None = Field(None, description="what the whole output matches")
    choice: Choices | None = Field(None, description="one of these")
    grammar: Text | None = Field(None, description="in Lark's syntax or llama.cpp's GBNF")
    disable_any_whitespace: bool = Field(False, description="JSON without blanks")

    def spec(self) -> StructuredOutputs:
        """The constraint. Raises RequestError if it is not exactly one."""
        return StructuredOutputs(
            json=self.json_,
            json_object=self.json_object,
            regex=self.regex,
            choice=None if self.choice is None else tuple(self.choice),
            grammar=self.grammar,
            disable_any_whitespace=self.disable_any_whitespace,
        )


class StructuredFields(StrictModel):
    """Fields of vLLM's API; the guided ones are its older names."""

    structured_outputs: StructuredOutputsBody | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None

    def structured(self, response_format: ResponseFormat | None = None) -> StructuredOutputs | None:
        """The constraint, whatever field it came in. Raises RequestError if there are several."""
        given: dict[Name, StructuredOutputs] = {}
        if self.structured_outputs is not None:
            given["structured_outputs"] = self.structured_outputs.spec()
        if self.guided_json is not None:
            given["guided_json"] = StructuredOutputs(json=self.guided_json)
        if self.guided_regex is not None:
            given["guided_regex"] = StructuredOutputs(regex=self.guided_regex)
        if self.guided_choice is not None:
            given["guided_choice"] = StructuredOutputs(choice=tuple(self.guided_choice))
        if self.guided_grammar is not None:
            given["guided_grammar"] = StructuredOutputs(grammar=self.guided_grammar)
        form = None if response_format is None else response_format.spec()
        if form is not None:
            given["response_format"] = form
        if len(given) > 1:
            raise RequestError(
                f"the output can have one form, but {' and '.join(map(repr, given))} ask for one "
                f"each: leave all but one out",
                param=list(given)[-1],
            )
        return next(iter(given.values()), None)

    @property
    def structure_field(self) -> str:
        """The field that an error in the constraint should name."""
        names = (name for name in StructuredFields.model_fields if getattr(self, name) is not None)
        return next(names, "response_format")
