"""Schemas are enforced exactly, refused by keyword and path, or loosened where that is allowed."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.open import open_checkpoint
from loire.text.grammar import GrammarCompiler, grammar_threads
from loire.text.json_schema import FORMATS, MAX_BOUND, ready_to_enforce
from loire.text.tokenizer import checkpoint_tokenizer

BIG = 1234567890123456789
TWO63 = 2**63


@pytest.fixture(scope="module")
def compiler(tiny_llama: Path) -> GrammarCompiler:
    return GrammarCompiler(checkpoint_tokenizer(open_checkpoint(tiny_llama)))


def accepts(compiler: GrammarCompiler, schema: Any, text: str) -> bool:
    """Whether an output in this form can be this text."""
    spec = StructuredOutputs(json=schema)
    with grammar_threads(1) as threads:
        matcher = threads.submit(compiler.matcher, spec).result()
    tokens = compiler._tokenizer.encode(text, add_special_tokens=False)
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"const": 2**53}, [2**53], [2**53 - 1]),
        ({"const": -(2**60)}, [-(2**60)], [-(2**60) + 1, 2**60]),
        ({"enum": [1, 2**60, "x"]}, [1, 2**60, "x"], [2**60 + 1, 2]),
        ({"const": BIG}, [BIG], [BIG - 1, int(float(BIG))]),
        ({"const": -(10**40) - 1}, [-(10**40) - 1], [-(10**40), 10**40 + 1]),
        ({"enum": [1, BIG, "x", [BIG]]}, [1, BIG, "x", [BIG]], [BIG + 1, [1]]),
        ({"type": "integer", "minimum": 2**53 + 1}, [2**53 + 2, 2**80], [2**53, 5, -5]),
        ({"type": "integer", "exclusiveMinimum": 2**53}, [2**53 + 2], [2**53]),
        ({"type": "integer", "exclusiveMaximum": 2**60}, [2**60 - 1024, -5], [2**60, 2**60 - 1]),
        ({"type": "integer", "minimum": -TWO63, "maximum": TWO63 - 1}, [0, 2**62, -9], [2**63]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [0, MAX_BOUND], [2**64, -1]),
        ({"type": "integer", "minimum": -1e300}, [-5, 5], ["x"]),
        ({"type": "integer", "minimum": -(10**400)}, [-5, 5], ["x"]),
        ({"type": "number", "minimum": 0.5, "maximum": 2**60}, [0.5, 3], [0.25]),
    ],
)  # fmt: skip
def test_numbers(compiler: GrammarCompiler, schema: Any, yes: list[Any], no: list[Any]) -> None:
    for value in yes:
        assert accepts(compiler, schema, json.dumps(value)), value
        jsonschema.validate(value, schema)
    for value in no:
        assert not accepts(compiler, schema, json.dumps(value)), value


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False,
            "required": [name for name in properties if name != "may"]}  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        (_object(id={"const": BIG}, may={"type": "string"}),
         [{"id": BIG}, {"id": BIG, "may": "x"}], [{"id": BIG - 1}, {"may": "x"}, {}]),
        (_object(may={"const": BIG}), [{}, {"may": BIG}], [{"may": BIG + 1}]),
        (_object(list={"type": "array", "items": {"enum": [BIG, 3]}, "minItems": 1,
                       "maxItems": 2}),
         [{"list": [BIG]}, {"list": [3, BIG]}], [{"list": []}, {"list": [3, 3, 3]}]),
        (_object(x={"anyOf": [{"const": BIG}, _object(deep=_object(n={"const": -BIG}))]}),
         [{"x": BIG}, {"x": {"deep": {"n": -BIG}}}], [{"x": -BIG}]),
        ({**_object(n={"const": BIG}, ref={"$ref": "#/$defs/a"}), "$defs": {"a": {"const": 7}}},
         [{"n": BIG, "ref": 7}], [{"n": BIG, "ref": 8}]),
    ],
)  # fmt: skip
def test_numbers_that_no_double_holds_are_written_exactly(
    compiler: GrammarCompiler, schema: Any, yes: list[Any], no: list[Any]
) -> None:
    for value in yes:
        text = json.dumps(value, separators=(",", ":"))
        assert accepts(compiler, schema, text), value
        jsonschema.validate(value, schema)
    for value in no:
        assert not accepts(compiler, schema, json.dumps(value, separators=(",", ":"))), value


def test_a_number_that_cannot_be_reached_is_refused_by_its_place(compiler: GrammarCompiler) -> None:
    schema = {"type": "object", "properties": {"a": {"allOf": [{"const": BIG}, {"const": BIG}]}},
              "additionalProperties": False}  # fmt: skip
    with pytest.raises(RequestError, match=r"a number at #/properties/a: .* not within allOf"):
        accepts(compiler, schema, "{}")


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70))
def test_bounds_only_move_inwards(low: int, high: int) -> None:
    schema = {"type": "integer", "minimum": low, "exclusiveMaximum": high}
    if low > MAX_BOUND or high < -MAX_BOUND:
        with pytest.raises(RequestError, match=r"2\*\*63 - 1024"):
            ready_to_enforce(schema)
        return
    ready = ready_to_enforce(schema)
    assert ready["minimum"] >= min(low, 0) if low < -MAX_BOUND else ready["minimum"] >= low
    top = ready["maximum"] + 1 if "maximum" in ready else ready["exclusiveMaximum"]
    assert top <= high


REFUSED = [
    ({"type": "integer", "minimum": 2**64}, "'minimum' at #: .*2\\*\\*63 - 1024"),
    ({"$ref": "#"}, "'\\$ref' at #: '#' leads to itself"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}}, "'\\$ref' at #/\\$defs/a: .* leads to itself"),
    ({"$ref": "http://example.org/x"}, "'\\$ref' at #: .* not within the schema"),
    ({"items": {"type": "array", "uniqueItems": True}}, "'uniqueItems' at #/items"),
    ({"properties": {"a/b": {"propertyNames": {"minLength": 1}}}}, "'propertyNames' .*a~1b"),
    ({"anyOf": [{}, {"not": {}}]}, "'not' at #/anyOf/1"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "'oneOf' at #: branches 0 and 1 may both"),
    ({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, "'oneOf' at #"),
    ({"prefixItems": [{"pattern": "a(?!b)"}]}, "'pattern' at #/prefixItems/0: look-around"),
    ({"pattern": "(a)\\1"}, "'pattern' at #: look-around and back-references"),
    ({"type": "string", "format": "path"}, "'format' at #: 'path' is none of date"),
    ({"if": {}, "then": {"type": "string"}}, "'then' at #"),
    ({"contains": {"type": "integer"}}, "'contains' at #"),
    ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired' at #"),
    ({"unevaluatedProperties": False}, "'unevaluatedProperties' at #"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_cannot_be_enforced_is_refused_by_keyword_and_path(
    compiler: GrammarCompiler, schema: Any, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        accepts(compiler, schema, "1")


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_or_left_out_where_the_schema_is_a_hint(
    compiler: GrammarCompiler, schema: Any, reason: str
) -> None:
    ready = ready_to_enforce(schema, strict=False)
    assert ready_to_enforce(ready) == ready
    accepts(compiler, ready, "1")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"required": "a"}, "'required' at # must be a list of names, but is 'a'"),
        ({"properties": {"a": {"type": 3}}}, "'type' at #/properties/a must be a name"),
        ({"properties": []}, "'properties' at # must be schemas by name"),
        ({"anyOf": {"type": "string"}}, "'anyOf' at # must be a list of schemas"),
        ({"anyOf": ["string"]}, "'anyOf' at # must be a list of schemas"),
        ({"minimum": "3"}, "'minimum' at # must be a number"),
        ({"minimum": True}, "'minimum' at # must be a number"),
        ({"$ref": 1}, "'\\$ref' at # must be a text"),
        ({"enum": "ab"}, "'enum' at # must be a list"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_no_schema_is_refused(schema: Any, reason: str, strict: bool) -> None:
    with pytest.raises(RequestError, match=reason):
        ready_to_enforce(schema, strict=strict)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["type", "properties", "items", "anyOf", "oneOf", "allOf", "$ref", "required", "enum",
             "const", "minimum", "exclusiveMaximum", "$defs", "not", "format", "pattern", "a",
             "additionalProperties", "prefixItems", "uniqueItems", "if"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["type", "properties", "oneOf", "$ref"]), anything),
    st.booleans(),
)
def test_anything_is_read_or_refused(schema: Any, strict: bool) -> None:
    try:
        ready = ready_to_enforce(schema, strict=strict)
    except RequestError:
        return
    json.dumps(ready)


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def test_disjoint_branches_are_one_of_them() -> None:
    for branches in (
        [obj(kind={"const": "a"}, x={}), obj(kind={"const": "b"}, y={}), {"type": "null"}],
        [obj(a={}), obj(b={})],
        [{"enum": [1, 2]}, {"enum": [3]}, {"const": "x"}],
        [{"type": "array"}, {"type": ["string", "number"]}],
    ):
        assert "anyOf" in ready_to_enforce({"oneOf": branches})
    pet = {
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        "discriminator": {"propertyName": "kind"},
        "$defs": {"cat": obj(kind={"const": "cat"}), "dog": obj(kind={"const": "dog"})},
    }
    assert "anyOf" in ready_to_enforce(pet)


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (obj(a={"type": "string"}), True),
        ({"type": "object", "properties": {}}, True),
        ({"type": "object"}, False),
        ({**obj(a={}), "additionalProperties": True}, False),
        ({**obj(a={}), "additionalProperties": {"type": "string"}}, False),
        ({**obj(a={}), "patternProperties": {"^z": {}}}, False),
        ({"type": "object", "properties": {"a": {}}, "required": ["z"]}, False),
        ({"allOf": [obj(a={}), {"properties": {"b": {}}}]}, False),
        ({"allOf": [obj(a={})]}, True),
        ({"anyOf": [obj(a={}), obj(b={})]}, True),
        ({"$ref": "#/$defs/o", "$defs": {"o": obj(a={})}}, True),
        ({"$ref": "#/$defs/o", "properties": {"z": {}}, "$defs": {"o": obj(a={})}}, False),
        ({"allOf": [{"$ref": "#/$defs/o"}, {"minLength": 1}], "$defs": {"o": obj(a={})}}, False),
    ],
)  # fmt: skip
def test_objects_are_closed_unless_they_say_otherwise(
    compiler: GrammarCompiler, schema: Any, closed: bool
) -> None:
    more = json.dumps({"a": "x", "z": "y"})
    assert accepts(compiler, schema, more) is not closed


def test_nested_objects_are_closed_each() -> None:
    ready = ready_to_enforce(obj(a=obj(b={}), c={"type": "array", "items": obj(d={})}))
    assert json.dumps(ready).count('"additionalProperties": false') == 3


def test_notes_are_left_out() -> None:
    noted = {"$schema": "s", "$id": "i", "title": "t", "description": "d", "default": 1,
             "type": "integer", "format": "int64", "examples": [1]}  # fmt: skip
    assert ready_to_enforce(noted) == {"type": "integer"}
    names = obj(title={"type": "string"}, default={}, format={}, uniqueItems={})
    assert set(ready_to_enforce(names)["properties"]) == set(names["properties"])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_are_those_of_the_library(compiler: GrammarCompiler, name: str) -> None:
    assert not accepts(compiler, {"type": "string", "format": name}, '"?"')


def test_a_deep_schema_is_refused() -> None:
    deep: Any = {}
    for _ in range(20_000):
        deep = {"items": deep}
    with pytest.raises(RequestError, match="nested too deeply"):
        ready_to_enforce(deep)
