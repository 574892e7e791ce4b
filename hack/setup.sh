#!/bin/bash
# The virtual environment .venv: packages of the hashed lock file, the two projects editable. uv comes from PyPI when missing.
source "$(dirname "$0")/lib.sh"
cd "$REPO"
STAMP=$(hash_of hack/requirements-dev.txt hack/requirements-build.txt operator/pyproject.toml runtime-image/pyproject.toml)
[ "$(cat .venv/.stamp 2>/dev/null)" != "$STAMP" ] || { touch .venv/.stamp; exit 0; }

find_uv() {
  local tools
  tools=$CACHE/uv-$(hash_of hack/requirements-build.txt)
  if [ ! -x "$tools/bin/uv" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q --disable-pip-version-check --require-hashes -r hack/requirements-build.txt
  fi
  echo "$tools/bin/uv"
}

setup() {
  local uv; uv=$(find_uv)
  [ -x .venv/bin/python ] || "$uv" venv -q --python '>=3.11,<3.14' .venv
  "$uv" pip sync -q --python .venv/bin/python --require-hashes hack/requirements-dev.txt
  "$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e operator -e runtime-image
  echo "$STAMP" >.venv/.stamp
}
timed "virtual environment" setup
