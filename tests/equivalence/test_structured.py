"""What the default model writes under random schemas is accepted by another implementation.

`pytest -m slow tests/equivalence/test_structured.py -s` runs 200 schemas and prints what came.
"""

import json
import random
from collections import Counter

import jsonschema
import pytest

from loire import LLM, SamplingParams
from loire.base.structured_outputs import StructuredOutputs
from support.random_schemas import random_schema

MAX_TOKENS = 300


def _check(count: int, seed: int) -> Counter[str]:
    """How the answers to so many schemas ended; those that are complete are valid."""
    rng = random.Random(seed)
    schemas = [random_schema(rng) for _ in range(count)]
    params = [
        SamplingParams(
            temperature=1.0,
            seed=number,
            max_tokens=MAX_TOKENS,
            structured_outputs=StructuredOutputs(json=schema),
        )
        for number, schema in enumerate(schemas)
    ]
    # (Its check of times is stricter than RFC 3339: six digits of a second at most.)
    checker = jsonschema.FormatChecker(formats=("date", "email", "ipv4", "uuid"))
    ends: Counter[str] = Counter()
    with LLM("smollm2", kv_cache_memory_bytes=2_000_000_000) as llm:
        outputs = llm.generate(["Describe something as JSON:\n"] * count, params)
    for schema, output in zip(schemas, outputs, strict=True):
        [answer] = output.outputs
        assert answer.error is None, (schema, answer.error)
        ends[str(answer.finish_reason)] += 1
        if answer.finish_reason == "stop":
            validator = jsonschema.Draft202012Validator(schema, format_checker=checker)
            validator.validate(json.loads(answer.text))
        else:
            assert answer.finish_reason == "length"
    return ends


@pytest.mark.usefixtures("smollm2")
def test_answers_follow_random_schemas() -> None:
    assert _check(8, seed=1)["stop"] >= 4


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
def test_answers_follow_200_random_schemas() -> None:
    ends = _check(200, seed=0)
    print(f"\n200 random schemas: {dict(ends)}")
    assert ends["stop"] >= 150
