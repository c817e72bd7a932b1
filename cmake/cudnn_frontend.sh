#!/usr/bin/env bash
# Puts the headers of cuDNN's C++ frontend, which no distribution packages, into build/packages, unless they are there
# or installed. They come with a Python package, which pip unpacks; nothing of Python's own is changed. With --check,
# only says by its end code whether they are there.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

folder=build/packages
package='nvidia-cudnn-frontend>=1.13,<2'

installed() {
  if [ -n "${CUDNN_FRONTEND_INCLUDE_DIR:-}" ] || [ -f "$folder/include/cudnn_frontend.h" ]; then return 0; fi
  if [ -f /usr/include/cudnn_frontend.h ] || [ -f /usr/local/include/cudnn_frontend.h ]; then return 0; fi
  python3 -c 'import os, sys
sys.exit(not any(os.path.isfile(os.path.join(p, "include", "cudnn_frontend.h")) for p in sys.path))' 2>/dev/null
}

if installed; then exit 0; fi
if [ "${1:-}" = --check ]; then exit 1; fi
echo "Getting the headers of cuDNN's frontend"
mkdir -p build
new=$(mktemp -d build/packages.XXXXXX)
trap 'rm -rf "$new"' EXIT
if ! log=$(python3 -m pip install --quiet --no-input --disable-pip-version-check --no-deps --no-compile \
  --only-binary=:all: --target "$new" "$package" 2>&1); then
  printf '%s\n' "$log" >&2
  echo "$0: pip could not get $package. It needs network access; the headers can also be copied from another" \
    "machine: export CUDNN_FRONTEND_INCLUDE_DIR=FOLDER" >&2
  exit 1
fi
rm -rf "$folder"
mkdir -p "$folder"
mv "$new/include" "$new"/nvidia_cudnn_frontend-*.dist-info "$folder"  # headers and licence, not the Python module
