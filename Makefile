# `make` sets everything up and answers a prompt; `make test` sets up and runs all checks.

PROMPT ?= What is the capital of Japan?

.PHONY: run setup setup-test test quick lowest audit fuzz lint types tests test-slow test-load test-ray
.PHONY: clean

run: setup
	.venv/bin/loire run "$(PROMPT)"

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh test
	@.venv/bin/loire pull smollm2

# Types are checked on a core that the tests leave free.
test: setup-test
	@$(MAKE) --no-print-directory -j2 lint types tests

# Lint, types, and every test without a process, a browser, a model or transformers.
quick: lint types
	.venv/bin/python -m pytest -m quick -n auto

lint:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types:
	.venv/bin/mypy

tests:
	.venv/bin/python -m pytest

# The quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest.
lowest:
	@scripts/lowest.sh -n auto

# Known holes in the versions of constraints.txt; asks a public data base.
audit:
	@.venv/bin/python -m pip install --quiet pip-audit
	.venv/bin/pip-audit --requirement constraints.txt

# Changed model files; MINUTES=60 CASES=300000 for a night.
fuzz:
	.venv/bin/python tests/fuzz/run.py --minutes $(or $(MINUTES),5) --cases $(or $(CASES),30000)

test-slow: setup-test
	@.venv/bin/python -m pip install --quiet schemathesis
	.venv/bin/python -m pytest -m slow -o faulthandler_timeout=2000

test-load: setup-test
	.venv/bin/python -m pytest -m load -o faulthandler_timeout=2000

# Ray listens beyond loopback: a network without any other interface. RAY_PYTHON has loire[ray].
# Some ten minutes, half an hour on a busy machine, never more than ninety.
RAY_PYTHON ?= .venv/bin/python
test-ray:
	unshare --net --pid --fork --mount-proc --kill-child=SIGKILL sh -c \
	  'ip link set lo up; exec timeout 5400 $(RAY_PYTHON) -m pytest -m ray -o faulthandler_timeout=900 tests/fleet/ray'

clean:
	rm -rf .venv .venv-lowest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
