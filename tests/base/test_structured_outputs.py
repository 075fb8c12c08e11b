import json

import pytest

from loire.base.errors import RequestError
from loire.base.sampling import SamplingParams
from loire.base.structured_outputs import StructuredOutputs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has none"),
        ({"regex": "a", "choice": ("b",)}, "has regex and choice"),
        ({"json": "{}", "json_object": True}, "has json_object and json"),
        ({"regex": ""}, "regex is empty"),
        ({"json": ""}, "json is empty"),
        ({"grammar": ""}, "grammar is empty"),
        ({"choice": ()}, "choice is empty"),
        ({"choice": ("a", "")}, "item 1 is ''"),
        ({"choice": ("a", 3)}, r"item 1 of choice must be text, but is 3 \(int\)"),
        ({"choice": "ab"}, "choice must be a list of texts"),
        ({"json": {"const": float("nan")}}, "is no JSON"),
        ({"json": {"const": object()}}, "is no JSON"),
        ({"regex": "a", "disable_any_whitespace": True}, "not for regex"),
    ],
)
def test_refuses_what_is_not_exactly_one_form(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        StructuredOutputs(**fields)  # type: ignore[arg-type]
    assert caught.value.param == "structured_outputs"


def test_a_mapping_becomes_text_and_a_list_a_tuple() -> None:
    schema = {"type": "object", "properties": {"größe": {"type": "integer"}}}
    spec = StructuredOutputs(json=schema)
    assert isinstance(spec.json, str)
    assert json.loads(spec.json) == schema
    assert StructuredOutputs(json={}).json == "{}"
    choice = StructuredOutputs(choice=["a", "b"])  # type: ignore[arg-type]
    assert choice.choice == ("a", "b")


def test_is_plain_data_that_can_be_a_key() -> None:
    first = StructuredOutputs(json={"type": "string"})
    assert first == StructuredOutputs(json='{"type": "string"}')
    assert len({first, StructuredOutputs(json='{"type": "string"}')}) == 1
    assert (first.kind, first.is_json) == ("json", True)
    assert StructuredOutputs(json_object=True).is_json
    assert not StructuredOutputs(regex="a").is_json


def test_sampling_parameters_carry_it() -> None:
    spec = StructuredOutputs(choice=("yes", "no"))
    assert SamplingParams(structured_outputs=spec).structured_outputs == spec
    assert SamplingParams().structured_outputs is None
