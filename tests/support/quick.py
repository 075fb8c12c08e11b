"""Which tests are quick: those that start no process and no browser, and load no transformers."""

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
STARTS_SOMETHING = {
    *("subprocess", "multiprocessing", "playwright", "transformers", "openai", "anthropic"),
    *("loire.engine.process", "loire.engine.supervised", "loire.engine.supervisor"),
}
"""Modules that a test imports which starts processes, or takes seconds to import."""
LOADS_A_MODEL = {"tiny_llama", "smollm2"}
"""Fixtures that make or read a model with transformers, or need one that was downloaded."""
MARKS = {"slow", "load"}
LONG = {
    "test_a_changed_character_is_judged_as_python_does",
    "test_damaged_bytes_are_read_or_refused",
    "test_every_required_call_is_valid",
    "test_every_scale",
    "test_historical_policies",
    "test_historical_policies_with_priorities",
    "test_hostile_text_takes_linear_time",
    "test_json_is_taken",
    "test_paged",
    "test_tenants_that_always_ask_get_the_same",
}
"""Tests that take seconds."""


def is_quick(item: pytest.Item) -> bool:
    """Whether a test belongs to `make quick`, by what its file imports and what it is given."""
    name = getattr(item, "originalname", item.name)
    if name in LONG or any(item.get_closest_marker(mark) for mark in MARKS):
        return False
    return not starts_something(item.path) and not LOADS_A_MODEL & {
        *getattr(item, "fixturenames", ())
    }


@cache
def starts_something(path: Path) -> bool:
    """Whether a file of the tests, or one of theirs that it imports, does."""
    return any(
        name in STARTS_SOMETHING
        or name.split(".")[0] in STARTS_SOMETHING
        or any(map(starts_something, _file_of_tests(path, name)))
        for name in _imported(path)
    )


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _file_of_tests(importer: Path, name: str) -> list[Path]:
    """The file that a name means from a test: in its own folder, or in that of all tests."""
    relative = Path(*name.split(".")).with_suffix(".py")
    found = [folder / relative for folder in (importer.parent, TESTS)]
    return [path for path in found if path.is_file() and path != importer][:1]
