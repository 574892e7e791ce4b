#!/bin/bash
# Builds the LibTorch server (runtime-image/libtorch) against the torch package of .venv and links build/libtorch[-SANITIZER] to it.
#   usage: hack/libtorch.sh [SANITIZER]      SANITIZER: none (default), asan (with UBSan) or tsan
# Built once per content of sources, torch version and compiler, into $CACHE/libtorch/; prints the path of the program.
# Where Debian's packages (hack/libtorch-packages.txt) are missing and this is root, they are installed; the image uses the same list.
source "$(dirname "$0")/lib.sh"
cd "$REPO"
KIND=${1:-none}
TORCH=${SLIPWAY_TORCH_ROOT:-$(.venv/bin/python -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')} ||
  die "no torch package: run 'make setup' first, or set SLIPWAY_TORCH_ROOT to site-packages/torch"

case $KIND in
  none) FLAGS=() ;;
  asan) FLAGS=("-DSANITIZE=address,undefined") ;;
  tsan) FLAGS=(-DSANITIZE=thread) ;;
  *) die "unknown sanitizer '$KIND': none, asan or tsan" ;;
esac

# shellcheck disable=SC2046
packages() { apt_install $(sed 's/#.*//' hack/libtorch-packages.txt); }

key() {
  mapfile -t files < <(find runtime-image/libtorch -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.proto' -o -name CMakeLists.txt \) | LC_ALL=C sort)
  { hash_of "${files[@]}" hack/libtorch-packages.txt; cat "$TORCH/version.py"; echo "$TORCH"; } | sha256sum | cut -c1-12
}

# One build folder a clone and kind, so that a change compiles only what it touches; the finished program goes to the cache.
build() { # TO
  [ ! -x "$1" ] || return 0
  local work=$BUILD/libtorch-cmake-$KIND log=$BUILD/build-libtorch-$KIND.log
  packages
  { nice -n 5 cmake -S runtime-image/libtorch -B "$work" -G Ninja -DTORCH_ROOT="$TORCH" "${FLAGS[@]}" && nice -n 5 ninja -C "$work" -j "${JOBS:-2}"; } >"$log" 2>&1 ||
    { grep -E 'error|FAILED|warning: unused' "$log" | head -20 >&2; die "the build failed: $log"; }
  mkdir -p "${1%/*}"
  cp "$work/slipway-libtorch" "$1.new" && mv "$1.new" "$1"
}

PROGRAM=$CACHE/libtorch/$(key)-$KIND/slipway-libtorch
[ -x "$PROGRAM" ] || timed "libtorch server ($KIND)" locked "libtorch-$KIND" build "$PROGRAM"
LINK=$BUILD/libtorch; [ "$KIND" = none ] || LINK=$BUILD/libtorch-$KIND
ln -sfn "$PROGRAM" "$LINK"
echo "$PROGRAM"
