# Which Docker the cluster and the images use. Sourced.
#   use_engine      sets DOCKER_HOST when the engine is our own, starts it when it is not running
#   with_containerd runs a command beside a containerd of the moment
#   engine_down     ends our own engine and takes its firewall rules and bridge away; its images stay in the cache
# A Docker that answers and can pull kind's node image is used as it is. Otherwise a dockerd of our own runs from Debian's
# packages with its socket, data and address ranges apart from any other.
# shellcheck shell=bash
ENGINE=$CACHE/engine
OWN_SOCKET=unix:///run/slipway-docker.sock
SERVICES=10.96.0.0/16 PODS=10.244.0.0/16            # kind's defaults

upstream_node_image() { # the image of this version of kind
  local dir; dir=$(cd "$HACK/tools/kind" && go mod download sigs.k8s.io/kind && go list -m -f '{{.Dir}}' sigs.k8s.io/kind)
  sed -n 's/^const Image = "\(.*\)"/\1/p' "$dir/pkg/apis/config/defaults/image.go"
}

# Asked once for each clone: the answer decides where everything else lives.
engine_kind() {
  if [ ! -e "$BUILD/engine" ]; then
    if timeout 10 docker info >/dev/null 2>&1 && timeout 20 docker manifest inspect "$(upstream_node_image)" >/dev/null 2>&1; then
      echo host >"$BUILD/engine"
    else
      echo own >"$BUILD/engine"
    fi
  fi
  cat "$BUILD/engine"
}

# runc for a host without CAP_SYS_RESOURCE: that capability and rlimits are dropped from each container and exec.
runc_wrapper() {
  cat <<'R'
#!/bin/bash
prev='' file=''
for arg; do case $prev in --bundle|-b) file=$arg/config.json ;; --process|-p) file=$arg ;; esac; prev=$arg; done
if [ -f "$file" ] && ! grep -q '^CapBnd:.*[13579bdf].\{6\}$' /proc/self/status; then # bit 24
  jq -c '(.process // .).capabilities |= (if . then map_values(. - ["CAP_SYS_RESOURCE"]) else . end)
         | del((.process // .).rlimits)' "$file" >"$file.new" && cat "$file.new" >"$file"
fi
exec /usr/sbin/runc "$@"
R
}

dockerd_config() {
  cat <<J
{ "hosts": ["$OWN_SOCKET"], "data-root": "$ENGINE/data", "exec-root": "/run/slipway-docker", "pidfile": "/run/slipway-docker.pid",
  "oom-score-adjust": 0, "bip": "172.29.0.1/24", "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}],
  "max-concurrent-uploads": 2,
  "runtimes": {"lowcap": {"path": "$ENGINE/runc"}}, "default-runtime": "lowcap" }
J
}

uplink() { ip -4 route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p;q'; }

# Nothing meant for a Service or a pod may leave this machine while kube-proxy is not ready
# (only on the way out: traffic between nodes passes this chain too).
guard() { # -I to add, -D to remove
  local range dev; dev=$(uplink)
  [ -n "$dev" ] || return 0
  for range in $SERVICES $PODS; do
    iptables -w -C DOCKER-USER -o "$dev" -d "$range" -j REJECT 2>/dev/null && [ "$1" = -I ] && continue
    iptables -w "$1" DOCKER-USER -o "$dev" -d "$range" -j REJECT 2>/dev/null || [ "$1" = -D ]
  done
}

start_own() {
  [ "$(id -u)" = 0 ] || die "no Docker answers that can pull kind's node image, and a daemon of our own needs root"
  apt_install docker.io containerd runc jq iptables iproute2 pigz    # containerd unpacks by it, when it is there
  mkdir -p "$ENGINE" /lib/modules                   # kind mounts /lib/modules into the nodes
  runc_wrapper >"$ENGINE/runc"; chmod +x "$ENGINE/runc"
  dockerd_config >"$ENGINE/dockerd.json"
  # what was there before us, so that engine_down takes away no more than we brought
  [ -e /run/slipway-docker.before ] || { ip -o link show docker0 2>/dev/null || true; iptables -w -S FORWARD; } >/run/slipway-docker.before
  rm -f /run/slipway-docker.pid
  setsid dockerd --config-file "$ENGINE/dockerd.json" >"$ENGINE/dockerd.log" 2>&1 </dev/null &
  for _ in $(seq 120); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
  docker info >/dev/null || { tail -5 "$ENGINE/dockerd.log" >&2; die "dockerd did not start"; }
}

use_engine() {
  [ "$(engine_kind)" = own ] || return 0
  export DOCKER_HOST=$OWN_SOCKET
  docker info >/dev/null 2>&1 || timed "start dockerd" locked engine start_own
  guard -I
}

# with_containerd ROOT COMMAND...: runs it with a containerd of the moment on that root, which ctr finds by its environment
with_containerd() {
  local root=$1 pid status=0; shift
  export CONTAINERD_ADDRESS=/run/slipway-store.sock CONTAINERD_NAMESPACE=k8s.io
  printf 'version = 2\nroot = "%s"\nstate = "/run/slipway-store"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "%s"\n' \
    "$root" "$CONTAINERD_ADDRESS" >"$BUILD/containerd.toml"
  containerd -c "$BUILD/containerd.toml" >"$CACHE/containerd.log" 2>&1 & pid=$!
  for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep 0.1; done
  "$@" || status=$?
  kill $pid; wait $pid || true
  unset CONTAINERD_ADDRESS CONTAINERD_NAMESPACE
  return $status
}

# The chains and the bridge that dockerd leaves behind; only when no other Docker was here first.
remove_leftovers() {
  local table chain
  if ! grep -q docker0 /run/slipway-docker.before 2>/dev/null; then
    for table in filter nat; do
      iptables -w -t $table -S | grep -E -- '-j DOCKER|-[io] (docker0|br-)|172\.(29|30)\.' | grep '^-A' | sed 's/^-A/-D/' |
        while read -r rule; do eval "iptables -w -t $table $rule" || true; done
      for chain in $(iptables -w -t $table -S | sed -n 's/^-N \(DOCKER.*\)/\1/p'); do iptables -w -t $table -F "$chain"; done
      for chain in $(iptables -w -t $table -S | sed -n 's/^-N \(DOCKER.*\)/\1/p'); do iptables -w -t $table -X "$chain" || true; done
    done
    ip link del docker0 2>/dev/null || true
    if grep -q -- '-P FORWARD ACCEPT' /run/slipway-docker.before 2>/dev/null; then iptables -w -P FORWARD ACCEPT; fi
  fi
  rm -f /run/slipway-docker.before
}

engine_down() {
  [ "$(engine_kind)" = own ] || return 0
  command -v iptables >/dev/null && guard -D
  stop /run/slipway-docker.pid dockerd
  remove_leftovers
}
