# Shared by the scripts in hack/: where things live, progress lines, locks, hashes. Sourced, never run.
# shellcheck shell=bash disable=SC2034
set -Eeuo pipefail
trap 'say "FAILED: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HACK=$REPO/hack
BUILD=$REPO/build                                   # per clone, gitignored: kubeconfig, images.env, bin/
CACHE=${SLIPWAY_CACHE:-$HOME/.cache/slipway}        # shared by all clones, keyed by content hash
mkdir -p "$BUILD" "$CACHE"
export PATH=$PATH:/usr/local/go/bin:/usr/sbin

# say TEXT: a progress line with the seconds since the script began
say() { printf '[%s +%4ds] %s\n' "$(date +%T)" "$SECONDS" "$*" >&2; }

die() { say "ERROR: $*"; exit 1; }

# timed NAME COMMAND...: runs it and says how long it took
timed() {
  local name=$1 from=$SECONDS; shift
  say "$name ..."
  "$@"
  say "$name: $((SECONDS - from)) s"
}

# hash_of FILE...: 12 hex digits over the names and contents of files (paths relative to the repository)
hash_of() { (cd "$REPO" && sha256sum -- "$@") | sha256sum | cut -c1-12; }

# locked NAME COMMAND...: one at a time on this machine (two clones or test sessions may build at once)
locked() {
  local name=$1; shift
  ( flock 9; "$@" 9>&- ) 9>"$CACHE/$name.lock"
}

# apt_install PACKAGE...: only what is missing; one script after the other, for apt-get does not wait for another one's lock
apt_install() {
  local missing=() p
  for p; do dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "install these first: ${missing[*]}"
  say "apt-get install ${missing[*]}"
  locked apt apt_get_install "${missing[@]}"
}

# Debian must not start daemons of its own: policy-rc.d
apt_get_install() { # PACKAGE...
  local made=
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; made=1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends "$@" >/dev/null
  [ -z "$made" ] || rm -f /usr/sbin/policy-rc.d
}

# alive PIDFILE MARK: the process of that file runs and its command line holds MARK (a pid may have been reused)
alive() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] || return 1
  for _ in 1 2 3 4 5; do
    [ -e "/proc/$pid" ] || return 1
    ! { tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$2"; } 2>/dev/null || return 0
    sleep 0.1  # one that is just being started has its parent's command line, and within exec none
  done
  return 1
}

# stop PIDFILE MARK: ends exactly that process, by force after ten seconds
stop() {
  local pid i
  if alive "$1" "$2"; then
    pid=$(cat "$1"); kill "$pid" 2>/dev/null || true
    for i in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; [ "$i" -lt 100 ] || kill -9 "$pid" 2>/dev/null || true; done
  fi
  rm -f "$1"
}
