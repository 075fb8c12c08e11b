# `make` sets everything up and answers a prompt; `make test` sets up and runs all checks.

PROMPT ?= What is the capital of France?

.PHONY: run setup setup-test test lint types tests test-slow test-load clean

run: setup
	.venv/bin/loire run "$(PROMPT)"

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh test
	@.venv/bin/loire pull smollm2

test: setup-test lint types tests

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	.venv/bin/mypy

tests:
	.venv/bin/python -m pytest

test-slow: setup-test
	.venv/bin/python -m pytest -m slow

test-load: setup-test
	.venv/bin/python -m pytest -m load

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
