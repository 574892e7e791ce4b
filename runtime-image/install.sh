#!/bin/sh
# Installs the packages of a hashed lock file whose names match PATTERN into /opt/venv; leaves nothing else behind.
#   usage: install.sh LOCKFILE PATTERN
set -eu
grep -qE '^[a-zA-Z]' "$1" || exit 0
tools=$(mktemp -d)
python3 -m venv "$tools"
"$tools/bin/pip" install -q --disable-pip-version-check --no-cache-dir --require-hashes -r /tmp/requirements-build.txt
[ -e /opt/venv ] || python3 -m venv --without-pip /opt/venv
awk -v pattern="$2" '/^[a-zA-Z]/ { keep = $0 ~ pattern } keep' "$1" >"$tools/requirements.txt"
# bytecode now: the containers' file system is read-only, and compiling torch anew takes seconds at each start
PYC_INVALIDATION_MODE=UNCHECKED_HASH "$tools/bin/uv" pip install -q --python /opt/venv/bin/python --no-cache --no-deps --compile-bytecode \
  --require-hashes -r "$tools/requirements.txt"
# static libraries and the packages' own tests are of no use to a running program
find /opt/venv -name '*.a' -delete
find /opt/venv/lib -path '*/site-packages/*' -type d -name tests -prune -exec rm -rf {} +
rm -rf "$tools"
