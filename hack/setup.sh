#!/bin/bash
# The virtual environment .venv: packages of the hashed lock file, the two projects editable, slipway_http2 compiled. uv comes from PyPI
# when missing.
source "$(dirname "$0")/lib.sh"
cd "$REPO"
mapfile -t HTTP2 < <(find runtime-image/http2 -type f ! -path '*/__pycache__/*' | LC_ALL=C sort)
STAMP=$(hash_of hack/requirements-dev.txt hack/requirements-build.txt operator/pyproject.toml runtime-image/pyproject.toml "${HTTP2[@]}")
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

# which_python: that of the PATH, unless it was compiled without profiles, as pyenv does. A distribution's was with, takes a fifth less time, and
# is what the images have.
which_python() {
  local check='import sys, sysconfig; sys.exit(not (3, 11) <= sys.version_info < (3, 14) or sys.argv[1] not in sysconfig.get_config_var("CONFIG_ARGS"))'
  if python3 -c "$check" --enable-optimizations 2>/dev/null; then echo python3
  elif /usr/bin/python3 -c "$check" '' 2>/dev/null; then echo /usr/bin/python3
  else echo '>=3.11,<3.14'; fi
}

# http2_wheel UV: compiles slipway_http2 once per content and Python; sets WHEEL
http2_wheel() {
  local python headers folder
  python=$(.venv/bin/python -c 'import sys, sysconfig; print(sys.version, sysconfig.get_path("include"))')
  headers=${python##* }
  folder=$CACHE/http2-$( { hash_of "${HTTP2[@]}"; echo "$python"; } | sha256sum | cut -c1-12)
  if ! compgen -G "$folder/*.whl" >/dev/null; then
    # shellcheck disable=SC2046
    apt_install $(sed 's/#.*//' runtime-image/http2/packages.txt) $([ -e "$headers/Python.h" ] || echo python3-dev)
    runtime-image/http2/build.sh "$PWD/.venv/bin/python" "$1" "$folder"
  fi
  WHEEL=$(compgen -G "$folder/*.whl")
}

# A file is as old as its content in every clone, because Python takes bytecode by its source's time: in a new clone each of the processes
# that pytest starts would compile the project and its tests anew.
date_sources() {
  git ls-files -z '*.py' | xargs -0 python3 -c 'import os, sys, zlib
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        when = 10**9 + zlib.crc32(file.read()) % (5 * 10**8)
    os.utime(path, (when, when))'
}

setup() {
  local uv; uv=$(find_uv)
  [ -x .venv/bin/python ] || "$uv" venv -q --python "$(which_python)" .venv
  "$uv" pip sync -q --python .venv/bin/python --require-hashes hack/requirements-dev.txt
  "$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e operator -e runtime-image
  date_sources
  http2_wheel "$uv"
  "$uv" pip install -q --python .venv/bin/python --no-deps --no-index --reinstall "$WHEEL"
  echo "$STAMP" >.venv/.stamp
}
timed "virtual environment" setup
