#!/bin/sh
# Compiles slipway_http2 for a Python whose environment has what requirements-build.txt names, and uv; prints nothing.
#   usage: build.sh PYTHON UV FOLDER      FOLDER: where the wheel goes
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Elsewhere, so that setuptools and Cython leave nothing behind here, and nothing that lies here is taken for new.
mkdir "$work/slipway_http2"
cp "$here/pyproject.toml" "$work/"
cp "$here/slipway_http2/"*.py "$here/slipway_http2/"*.pyi "$here/slipway_http2/"*.pyx "$here/slipway_http2/"*.pxd "$here/slipway_http2/py.typed" "$work/slipway_http2/"
"$2" build -q --wheel --no-build-isolation --offline --python "$1" --out-dir "$3" "$work"
