#!/bin/bash
# A real Prometheus for the tests of the analysis: Debian's package, one process on loopback, no daemon of the system.
#   usage: hack/prometheus.sh install                   the package alone, which has promtool too
#          hack/prometheus.sh up DIR CONFIG [PORT]     waits until it is ready, prints its address; without PORT a free one
#          hack/prometheus.sh down DIR                 ends it and removes its data
# PROMETHEUS_BIN names another binary.
source "$(dirname "$0")/lib.sh"
WHAT=${1:?install, up or down} DIR=$(realpath -m "${2:-.}")

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

install_package() { command -v promtool >/dev/null || apt_install prometheus; }

up() { # CONFIG [PORT]
  local port=${2:-$(free_port)} bin=${PROMETHEUS_BIN:-}
  if [ -z "$bin" ]; then
    install_package
    bin=$(command -v prometheus)
  fi
  mkdir -p "$DIR"
  setsid "$bin" --config.file "$1" --storage.tsdb.path "$DIR/data" --web.listen-address "127.0.0.1:$port" --log.level warn \
    --storage.tsdb.retention.time 1h >"$DIR/prometheus.log" 2>&1 </dev/null & echo $! >"$DIR/prometheus.pid"
  for _ in $(seq 1200); do
    if curl -sf --noproxy '*' -m 2 "http://127.0.0.1:$port/-/ready" >/dev/null 2>&1; then echo "http://127.0.0.1:$port"; return; fi
    alive "$DIR/prometheus.pid" "$DIR" || { tail -5 "$DIR/prometheus.log" >&2; die "Prometheus ended"; }
    sleep 0.1
  done
  die "Prometheus is not ready after 120 s: see $DIR/prometheus.log"
}

[ "$WHAT" = install ] || : "${2:?a directory}"
case $WHAT in
  install) install_package ;;
  up) up "${3:?a configuration file}" "${4:-}" ;;
  down) stop "$DIR/prometheus.pid" "$DIR"; rm -rf "${DIR:?}/data" ;;
  *) die "usage: $0 install | up DIR CONFIG [PORT] | down DIR" ;;
esac
