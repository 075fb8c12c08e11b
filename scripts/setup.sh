#!/usr/bin/env bash
# Sets up .venv with Loire, installed from this checkout. Arguments: extras, such as "test".
# On Linux without an NVIDIA GPU it takes a CPU build of PyTorch, never one with gigabytes of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
torch="${TORCH_VERSION:-2.13.0}"
extras="${1:+[$1]}"
stamp=".venv/.loire-$(sha256sum pyproject.toml "$0" | sha256sum | cut -c1-16)-${1:-base}"

if [ -e "$stamp" ]; then exit 0; fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

if ! .venv/bin/python -c "import torch" 2>/dev/null; then
  echo "installing PyTorch $torch ..."
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    # "+cpu" exists only as a CPU build; where no index has it, PyTorch's own one does.
    pip install --quiet "torch==$torch+cpu" 2>/dev/null ||
      pip install --quiet "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
  else
    pip install --quiet "torch==$torch"
  fi
fi
echo "installing Loire and what it needs ..."
pip install --quiet --editable ".$extras"
touch "$stamp"
