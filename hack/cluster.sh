#!/bin/bash
# The development and test cluster.
#   usage: hack/cluster.sh up       a cluster in build/kubeconfig: kind "slipway", one control plane and two workers
#          hack/cluster.sh prepare  makes only what takes long and is kept: the node image, and what its workers begin with
#          hack/cluster.sh down     takes away what "up" made (cluster, registry, network, dockerd, firewall rules)
#          hack/cluster.sh status   one line for each part
# SLIPWAY_KUBECONFIG=FILE SLIPWAY_CONTEXT=NAME   use that cluster instead of making one. Images then go to SLIPWAY_IMAGE_REGISTRY.
source "$(dirname "$0")/lib.sh"
source "$HACK/engine.sh"
source "$HACK/registry.sh"
source "$HACK/node-store.sh"
BIN=$BUILD/bin CONFIG=$BUILD/kubeconfig WANT=$(grep -c "^- role:" "$REPO/kind-config.yaml")
export PATH=$BIN:$PATH KUBECONFIG=$CONFIG KIND_EXPERIMENTAL_DOCKER_NETWORK=$NETWORK

# An explicitly given cluster is used only when its context is named too.
external() {
  local file=${SLIPWAY_KUBECONFIG:-${KUBECONFIG_EXTERNAL:-}}
  [ -n "$file" ] || return 1
  [ -n "${SLIPWAY_CONTEXT:-}" ] || die "SLIPWAY_KUBECONFIG is set: name the context that may be changed in SLIPWAY_CONTEXT"
  "$HACK/tools.sh" kubernetes helm
  kubectl --kubeconfig "$file" config view --context "$SLIPWAY_CONTEXT" --minify --flatten --raw >"$CONFIG.new" && mv "$CONFIG.new" "$CONFIG"
  kubectl config use-context "$SLIPWAY_CONTEXT" >/dev/null
  kubectl get nodes
}

nodes() { docker ps -a --filter "label=io.x-k8s.kind.cluster=$CLUSTER" --format '{{.Names}}' "$@"; }
running() { nodes --filter status=running; }

# reaches_kubelets NODES: a node that was just started still counts as Ready, with an address that may be another's by now, until its
# kubelet reports anew; port-forward and logs fail until then
reaches_kubelets() {
  local node
  for node in $1; do timeout 5 kubectl get --raw "/api/v1/nodes/$node/proxy/healthz" >/dev/null 2>&1 || return 1; done
}

# answers SECONDS: the API answers, every node is Ready and its kubelet is reached, within that time
answers() {
  local end=$((SECONDS + $1)) want ready
  want=$(nodes)
  while :; do
    ready=$(timeout 5 kubectl get nodes --no-headers 2>/dev/null | grep -cw Ready) || true
    [ "$ready" = "$(wc -w <<<"$want")" ] && reaches_kubelets "$want" && return 0
    [ $SECONDS -lt $end ] || return 1
    sleep 1
  done
}

# Every node finds the local registry under the name the host knows it by.
registry_hosts() {
  local node dir="/etc/containerd/certs.d/localhost:$REGISTRY_PORT"
  for node in $(nodes); do
    docker exec "$node" sh -c "mkdir -p '$dir' && printf '[host.\"http://%s:5000\"]\n' $REGISTRY_NAME >'$dir/hosts.toml'"
  done
  docker network connect "$NETWORK" $REGISTRY_NAME 2>/dev/null || true
  kubectl apply -f - >/dev/null <<Y
apiVersion: v1
kind: ConfigMap
metadata: {name: local-registry-hosting, namespace: kube-public}
data:
  localRegistryHosting.v1: |
    host: "localhost:$REGISTRY_PORT"
    help: "https://kind.sigs.k8s.io/docs/user/local-registry/"
Y
}

# The image with torch is 6 GB, and 3 GB of layers. A full disk shows late, as pods that cannot pull.
enough_space() {
  local free; free=$(df -BG --output=avail "$CACHE" | tail -1 | tr -dc 0-9)
  [ "$free" -ge 15 ] || die "$free GB are free on the disk of $CACHE, and the nodes fill up to 15: remove old images and builds first"
}

create() {
  kind delete cluster --name $CLUSTER -q 2>/dev/null || true  # first: a cluster that could not be revived holds images, too
  remove_stores
  if [ "$(engine_kind)" = host ]; then
    ( cd "$REPO" && kind create cluster --config kind-config.yaml --wait 3m -q >&2 )
    return
  fi
  fill
  make_stores "$(grep -c '^- role: worker' "$REPO/kind-config.yaml")"
  ( cd "$REPO" && with_stores <kind-config.yaml | kind create cluster --config - --image "$IMAGE" --wait 3m -q >&2 )
}

# fill: sets IMAGE
fill() {
  IMAGE=$("$HACK/node-image.sh")
  enough_space
  fill_template "$IMAGE"
}

# prepare: nothing where the engine pulls the node image, or a cluster is there, whose nodes pull (images.sh)
prepare() {
  use_engine
  [ "$(engine_kind)" = host ] || [ "$(running | wc -l)" = "$WANT" ] || fill
}

# A cluster whose machine was rebooted has its nodes stopped: start them, and make a new one when that does not help.
revive() {
  [ -n "$(nodes)" ] || return 1
  say "nodes are stopped: starting them"
  nodes | xargs docker start >/dev/null || return 1
  kind export kubeconfig --name $CLUSTER -q && answers 90
}

up() {
  if external; then say "using context $SLIPWAY_CONTEXT"; return; fi
  [ -x "$BIN/kind" ] && [ -x "$BIN/registry" ] || "$HACK/tools.sh"
  use_engine
  if [ "$(running | wc -l)" != "$WANT" ] || [ "$(docker inspect -f '{{.State.Running}}' $REGISTRY_NAME 2>/dev/null)" != true ] || ! answers 5; then
    timed "local registry" registry_up
    [ "$(running | wc -l)" = "$WANT" ] && kind export kubeconfig --name $CLUSTER -q && answers 30 || revive || timed "kind create cluster" create
    timed "wire the registry" registry_hosts
  fi
  only_ours
  answers 60 || die "not every node is Ready: kubectl --kubeconfig build/kubeconfig get nodes"
  say "cluster ready: export KUBECONFIG=$CONFIG"
}

only_ours() {
  [ "$(kubectl config current-context)" = kind-$CLUSTER ] || die "build/kubeconfig points at a context that is not kind-$CLUSTER; not touching it"
}

down() {
  [ -z "${SLIPWAY_KUBECONFIG:-${KUBECONFIG_EXTERNAL:-}}" ] || die "the cluster of SLIPWAY_KUBECONFIG is not ours to delete"
  if [ "$(engine_kind)" = own ]; then export DOCKER_HOST=$OWN_SOCKET; fi
  # stopped nodes of a daemon that is not running come back with it: they are removed by it
  [ "$(engine_kind)" != own ] || [ ! -e "$ENGINE/dockerd.json" ] || use_engine
  if docker info >/dev/null 2>&1; then
    nodes | xargs -r docker rm -f -v >/dev/null  # by label, as kind does; kind itself may not be there in a fresh clone
    docker rm -f -v $REGISTRY_NAME >/dev/null 2>&1 || true
    docker network rm "$NETWORK" >/dev/null 2>&1 || true
    [ -z "$(nodes)" ] || die "these nodes could not be removed: $(nodes | xargs)"
  fi
  engine_down
  remove_stores
  rm -f "$CONFIG" "$BUILD/images.env" "$BUILD/engine"
  say "gone; images and tools stay in $CACHE"
}

status() {
  use_engine
  docker ps -a --filter "label=io.x-k8s.kind.cluster=$CLUSTER" --filter "name=$REGISTRY_NAME" --format '{{.Names}}\t{{.Status}}'
  docker ps -a --filter "label=io.x-k8s.kind.cluster=$CLUSTER" --format '{{.Names}}\t{{.Status}}'
  kubectl get nodes
}

case ${1:-} in
  up) locked cluster up ;;
  prepare) [ -n "${SLIPWAY_KUBECONFIG:-${KUBECONFIG_EXTERNAL:-}}" ] || locked cluster prepare ;;
  down) locked cluster down ;;
  status) status ;;
  *) die "usage: $0 up|down|status" ;;
esac
