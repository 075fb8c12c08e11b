#!/usr/bin/env bash
# Runs tests of the native kernels as an AArch64 processor would, emulated by QEMU: what they compute,
# not how fast. Arguments: a folder for the environment (1 GB, made at the first call), then what
# pytest gets instead of tests/kernels. QEMU_CPU chooses the processor; "max", the default, has all
# instructions, "cortex-a72" no SDOT.
#
# For Debian 12 with the packages qemu-user-static and g++-aarch64-linux-gnu; that apt-get can find
# others for arm64 takes `dpkg --add-architecture arm64 && apt-get update`.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [pytest's arguments]" >&2; exit 2; }
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
shift
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || scripts/setup.sh test

root="$folder/root"
python="$root/usr/bin/python"
installed="$root/usr/lib/python3/dist-packages"
libraries=(libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1
  libsqlite3-0 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal)
# PyTorch's later wheels for AArch64 bring CUDA.
torch=(torch==2.9.1)
packages=(numpy sympy networkx jinja2 filelock fsspec typing-extensions setuptools pytest
  pytest-timeout hypothesis transformers)

# Wheels for AArch64. What PyTorch needs is listed above: pip would find it for the machine it runs on.
fetch_wheels() {
  .venv/bin/python -m pip install --quiet --only-binary=:all: --python-version 3.11 \
    --implementation cp --platform manylinux_2_31_aarch64 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 --target "$installed" "$@"
}

# Programs for AArch64 need QEMU before them, also those that Python starts as sys.executable.
write_python() {
  cat >"$python" <<'WRAPPER'
#!/bin/sh
root="$(dirname "$0")/../.."
exec qemu-aarch64-static -L "$root" -0 "$0" "$root/usr/bin/python3.11" "$@"
WRAPPER
  chmod +x "$python"
}

if [ ! -e "$folder/complete" ]; then
  echo "making the environment in $folder ..."
  mkdir -p "$folder/packages" "$root"
  (cd "$folder/packages" && apt-get download --quiet "${libraries[@]/%/:arm64}")
  for package in "$folder"/packages/*.deb; do dpkg --extract "$package" "$root"; done
  fetch_wheels --no-deps "${torch[@]}"
  .venv/bin/python -c '
from importlib.metadata import requires
print(*(name for name in requires("loire") if "extra" not in name and not name.startswith("torch")), sep="\n")
' >"$folder/dependencies"
  fetch_wheels --requirement "$folder/dependencies" "${packages[@]}"
  write_python
  touch "$folder/complete"
fi

# setup.py runs emulated and finds the machine to be AArch64; the compiler it calls is this machine's.
export CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ PYTHONDONTWRITEBYTECODE=1
"$python" setup.py --quiet build --build-base "$folder/build" --build-lib "$folder/loire"
PYTHONPATH="$folder/loire" "$python" -m pytest -p no:cacheprovider -o timeout=3000 -o faulthandler_timeout=3100 \
  "${@:-tests/kernels}"
