#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml allows, and runs the quick tests with them.
# Arguments go to pytest. PYTHON names the interpreter, TORCH_VERSION a build of PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
torch="${TORCH_VERSION:-2.13.0+cpu}"
where="${LOWEST_VENV:-.venv-lowest}"

[ -x "$where/bin/python" ] || "$python" -m venv "$where"
"$where/bin/python" -m pip install --quiet --disable-pip-version-check uv
# "+cpu" exists only as a CPU build; where no index has it, PyTorch's own one does.
install() {
  "$where/bin/uv" pip install --quiet --python "$where/bin/python" --resolution lowest-direct \
    --requirements pyproject.toml --extra quick "torch==$torch" "$@"
}
install ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} 2>/dev/null ||
  install --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match
# The package itself comes from here, with the native library if it was built.
exec env PYTHONPATH=src "$where/bin/python" -m pytest -m quick "$@"
