#!/bin/bash
# Builds the pinned tools from the Go module proxy; hack/tools/<group>/go.mod and go.sum are the pins and checksums.
#   usage: hack/tools.sh [GROUP...]     groups: kubernetes coredns kind helm registry local-path-provisioner pause
# Each group is built once per content of its recipe, into $CACHE/tools/<group>-<hash>; build/bin links to all of them.
source "$(dirname "$0")/lib.sh"
ALL=(kubernetes coredns kind helm registry local-path-provisioner pause)

kubernetes_version() { sed -n 's/^.*k8s.io\/kubernetes \(v1[^ ]*\).*/\1/p' "$HACK/tools/kubernetes/go.mod" | head -1; }

# Without these the binaries call themselves v0.0.0-master, and kubeadm and kubectl refuse them.
kubernetes_ldflags() {
  local v p; v=$(kubernetes_version)
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s ' $p "$v" $p $p "$(cut -d. -f2 <<<"$v")"
    printf -- '-X %s.gitTreeState=clean -X %s.gitCommit=none -X %s.buildDate=1970-01-01T00:00:00Z ' $p $p $p
  done
}

go_check() {
  export PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || die "Go 1.24 or later is needed to build the tools (https://go.dev/dl)"
}

# build GROUP DIR
build() {
  local group=$1 out=$2 flags='-s -w'; go_check
  cd "$HACK/tools/$group"
  export CGO_ENABLED=0 GOFLAGS='-mod=readonly -trimpath'
  case $group in
    kubernetes) go build -ldflags "$flags $(kubernetes_ldflags)" -o "$out/" tool && mv "$out/server" "$out/etcd" ;;
    coredns) go build -ldflags "$flags" -o "$out/coredns" . ;;
    pause)
      cd ../kubernetes; apt_install gcc libc6-dev
      go mod download k8s.io/kubernetes
      gcc -Os -static -DVERSION=3.10.1 -o "$out/pause" "$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c" ;;
    *) go build -ldflags "$flags" -o "$out/" tool ;;
  esac
}

group_hash() {
  local files=("hack/tools/$1"/*)
  [ "$1" != pause ] || files=(hack/tools/kubernetes/go.mod hack/tools/kubernetes/go.sum)
  hash_of hack/tools.sh "${files[@]}"
}

# ensure GROUP: builds it when this content was never built, and links its binaries into build/bin
ensure() {
  local dir
  dir=$CACHE/tools/$1-$(cd "$REPO" && group_hash "$1")
  if [ ! -e "$dir/.done" ]; then
    rm -rf "$dir.new"; mkdir -p "$dir.new"
    timed "build $1" build "$1" "$dir.new"
    touch "$dir.new/.done"; rm -rf "$dir"; mv "$dir.new" "$dir"
  fi
  mkdir -p "$BUILD/bin"
  find "$dir" -type f -perm -u+x -exec ln -sf {} "$BUILD/bin/" \;
}

[ $# -gt 0 ] || set -- "${ALL[@]}"
for group; do locked "tools-$group" ensure "$group"; done
