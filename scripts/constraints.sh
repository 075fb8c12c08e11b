#!/usr/bin/env bash
# Writes constraints.txt: one version of everything that Loire and its tests need, for all platforms
# and Pythons. PyTorch and what it brings are left out: its builds differ by accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  echo "# One set of versions that passes the tests: pip install -c constraints.txt ..."
  echo "# Written by scripts/constraints.sh."
  "${UV:-uv}" pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
    --extra test --extra otel pyproject.toml |
    grep -vE '^(torch|triton|nvidia-|cuda-)'
} > constraints.txt.new
mv constraints.txt.new constraints.txt
