#!/bin/bash
# Builds the pinned tools from the Go module proxy; hack/tools/<group>/go.mod and go.sum are the pins and checksums.
#   usage: hack/tools.sh [GROUP...]     groups: kubernetes kind helm registry registry-gc pause fake-accelerators
#           for tests, only when named: versitygw (an S3 server) fake-gcs-server ghz (load for gRPC) grpc-conformance gateway-api (CRDs, into build/crds)
#           envoy-gateway (and its chart, build/charts/envoy-gateway) argo-rollouts and prometheus-operator (and their CRDs) fake-dra-driver
#           keda (and a chart made of its manifests) metrics-server (and its chart)
# Each group is built once per content of its recipe, into $CACHE/tools/<group>-<hash>; build/bin links to all of them.
source "$(dirname "$0")/lib.sh"
source "$HACK/tools/build.sh"
ALL=(kubernetes kind helm registry registry-gc pause)   # fake-accelerators: by hack/images.sh

go_check() {
  command -v go >/dev/null || die "Go 1.24 or later is needed to build the tools (https://go.dev/dl)"
}

group_dir() {
  local files=("hack/tools/${1/pause/kubernetes}"/*)
  echo "$CACHE/tools/$1-$(hash_of hack/tools/build.sh "${files[@]}")"
}

# Builds the group into its directory, unless somebody else did while we waited for the lock.
make_group() { # GROUP DIR
  [ ! -e "$2/.done" ] || return 0
  rm -rf "$2.new"; mkdir -p "$2.new"
  go_check
  timed "build $1" build "$1" "$2.new"
  local more=$HACK/tools/$1/after-build.sh  # what only this group needs
  [ ! -x "$more" ] || "$more" "$2.new"
  touch "$2.new/.done"; rm -rf "$2"; mv "$2.new" "$2"
}

[ $# -gt 0 ] || set -- "${ALL[@]}"
mkdir -p "$BUILD/bin" "$BUILD/crds" "$BUILD/charts"; cd "$REPO"
for group; do
  dir=$(group_dir "$group")
  [ -e "$dir/.done" ] || locked "tools-$group" make_group "$group" "$dir"
  find "$dir" -type f -perm -u+x -exec ln -sf {} "$BUILD/bin/" \;
  find "$dir" -maxdepth 1 -type f -name '*.yaml' -exec ln -sf {} "$BUILD/crds/" \;
  [ ! -d "$dir/chart" ] || ln -sfn "$dir/chart" "$BUILD/charts/$group"
done
