"""Constraints: what compiles, what is refused and how, and that a matcher follows them."""

import json
from pathlib import Path

import pytest

from loire.base.errors import RequestError
from loire.base.structured_outputs import StructuredOutputs
from loire.checkpoint.open import open_checkpoint
from loire.text.form_checker import FormChecker
from loire.text.grammar import MAX_COMPILED, GrammarCompiler
from loire.text.grammar_text import MAX_TEXT
from loire.text.tokenizer import Tokenizer, checkpoint_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return checkpoint_tokenizer(open_checkpoint(tiny_llama))


def _accepts(tokenizer: Tokenizer, spec: StructuredOutputs, text: str) -> bool:
    """Whether a whole output may be this text."""
    matcher = GrammarCompiler(tokenizer).matcher(spec)
    ids = tokenizer.encode(text, add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (StructuredOutputs(json=SCHEMA), '{"name": "Ann", "age": 3}', '{"name": "Ann"}'),
        (StructuredOutputs(json=SCHEMA), '{"name":"Ann",\n "age":3}', '{"name": "Annabel", "a'),
        (StructuredOutputs(json=SCHEMA), '{"name":"\u00e9","age":-1}', '{"age":1,"name":"x"}'),
        (StructuredOutputs(json_object=True), '{"a": [1, {"b": null}]}', "[1]"),
        (StructuredOutputs(json_object=True, disable_any_whitespace=True), '{"a":1}', '{"a": 1}'),
        (StructuredOutputs(regex=r"\d{3}-[a-f]+"), "123-abc", "12-abc"),
        (StructuredOutputs(choice=("a.c", "x|y", 'q"\\')), "a.c", "abc"),
        (StructuredOutputs(choice=("a.c", "x|y", 'q"\\')), 'q"\\', "x"),
        (StructuredOutputs(grammar='start: "a" start | "b"'), "aab", "aa"),
        (StructuredOutputs(grammar='root ::= "a" root | "b"'), "aab", "ba"),
        (StructuredOutputs(grammar='start: "n" %json {"type": "integer"}'), "n12", "n1.5"),
    ],
)
def test_matcher_follows_the_form(
    tokenizer: Tokenizer, spec: StructuredOutputs, good: str, bad: str
) -> None:
    assert _accepts(tokenizer, spec, good)
    assert not _accepts(tokenizer, spec, bad)


def test_whitespace_in_json_is_bounded(tokenizer: Tokenizer) -> None:
    spec = StructuredOutputs(json_object=True)
    assert not _accepts(tokenizer, spec, '{"a":  1}')
    assert _accepts(tokenizer, spec, '{\n    "a": 1\n}')
    assert not _accepts(tokenizer, spec, '{\n\n"a": 1}')
    assert not _accepts(tokenizer, spec, "{\n" + " " * 30 + '"a": 1}')


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (StructuredOutputs(json="{"), "is no JSON"),
        (StructuredOutputs(json="[]"), "must be a JSON object"),
        (StructuredOutputs(json='{"type": "strin"}'), "structured_outputs.json"),
        (StructuredOutputs(json='{"not": {"type": "string"}}'), "structured_outputs.json"),
        (StructuredOutputs(regex="(a"), "structured_outputs.regex"),
        (StructuredOutputs(regex="(?=a)b"), "look-ahead"),
        (StructuredOutputs(grammar="start: other"), "unknown name"),
        (StructuredOutputs(grammar="root ::= other"), "structured_outputs.grammar"),
        (StructuredOutputs(regex="a" * (MAX_TEXT + 1)), f"{MAX_TEXT + 1:,} characters"),
        (StructuredOutputs(choice=("a" * MAX_TEXT, "b")), f"at most {MAX_TEXT:,}"),
        (StructuredOutputs(json=json.dumps({"enum": ["x" * MAX_TEXT]})), "characters"),
    ],
)
def test_bad_constraint_is_refused(
    tokenizer: Tokenizer, spec: StructuredOutputs, words: str
) -> None:
    with pytest.raises(RequestError, match="structured_outputs") as caught:
        FormChecker(tokenizer).check(spec)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "spec",
    [
        StructuredOutputs(grammar="start: " + "(" * 8000 + '"a"' + ")" * 8000),
        StructuredOutputs(json='{"anyOf": [' * 3000 + "true" + "]}" * 3000),
        StructuredOutputs(regex="(" * 20000 + "a" + ")" * 20000),
    ],
)
def test_hostile_constraint_is_refused_and_ends_nothing(
    tokenizer: Tokenizer, spec: StructuredOutputs
) -> None:
    checker = FormChecker(tokenizer)
    with pytest.raises(RequestError):
        checker.check(spec)
    checker.check(StructuredOutputs(choice=("still here",)))


def test_compiled_constraints_are_kept_within_a_bound(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer)
    for number in range(MAX_COMPILED + 5):
        compiler.matcher(StructuredOutputs(choice=(f"choice {number}",)))
    assert len(compiler._compiled) == MAX_COMPILED


def test_copies_of_a_compiled_constraint_are_independent(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer)
    spec = StructuredOutputs(choice=("ab", "cd"))
    first, second = compiler.matcher(spec), compiler.matcher(spec)
    assert first.consume_tokens(tokenizer.encode("a", add_special_tokens=False))
    assert second.consume_tokens(tokenizer.encode("c", add_special_tokens=False))
