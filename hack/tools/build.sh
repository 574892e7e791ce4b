# The recipe of the tools: build GROUP DIR compiles hack/tools/<group> into DIR. Sourced by tools.sh, part of the content hash.
# shellcheck shell=bash

kubernetes_version() { sed -n 's/^.*k8s.io\/kubernetes \(v1[^ ]*\).*/\1/p' "$HACK/tools/kubernetes/go.mod" | head -1; }

# Without these the binaries call themselves v0.0.0-master, and kubeadm and kubectl refuse them.
kubernetes_ldflags() {
  local v p; v=$(kubernetes_version)
  for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.gitVersion=%s -X %s.gitMajor=1 -X %s.gitMinor=%s ' $p "$v" $p $p "$(cut -d. -f2 <<<"$v")"
    printf -- '-X %s.gitTreeState=clean -X %s.gitCommit=none -X %s.buildDate=1970-01-01T00:00:00Z ' $p $p $p
  done
}

# Nobody debugs these: a seventh of compiling goes into DWARF, which the linker would drop.
go_build() { go build -gcflags=all=-dwarf=false -ldflags "-s -w ${LDFLAGS:-}" -o "$@"; }

# CoreDNS gives its informers a field, with the value that it has anyhow, which the client-go of this Kubernetes no longer has.
build_coredns() { # DIR
  local source=$1/coredns-source
  go mod download github.com/coredns/coredns
  cp -r "$(go list -m -f '{{.Dir}}' github.com/coredns/coredns)" "$source"; chmod -R u+w "$source"
  sed -i '/RetryOnError: *false,/d' "$source/plugin/kubernetes/object/informer.go"
  cp go.mod "$source.mod"; cp go.sum "$source.sum"; go mod edit -replace "github.com/coredns/coredns=$source" "$source.mod"
  go_build "$1/coredns" -modfile "$source.mod" .
  rm -rf "$source"{,.mod,.sum}
}

build() {
  local group=$1 out=$2
  cd "$HACK/tools/${group/pause/kubernetes}"  # pause is C code inside the kubernetes module
  export CGO_ENABLED=0 GOFLAGS='-mod=readonly -trimpath'
  case $group in
    kubernetes)  # local-path-provisioner is here to share packages; it spells one otherwise, which one build does not take
      # shellcheck disable=SC2046
      LDFLAGS=$(kubernetes_ldflags) go_build "$out/" $(go tool | grep / | grep -v local-path-provisioner)
      mv "$out/server" "$out/etcd"
      go_build "$out/" github.com/rancher/local-path-provisioner
      build_coredns "$out" ;;
    fake-accelerators) go_build "$out/fake-device-plugin" . ;;
    pause)
      apt_install gcc libc6-dev; go mod download k8s.io/kubernetes
      gcc -Os -static -DVERSION=3.10.1 -o "$out/pause" "$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/build/pause/linux/pause.c" ;;
    gateway-api)  # not a program: the CRDs that gateways read
      go mod download sigs.k8s.io/gateway-api
      install -m 644 "$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)"/config/crd/standard/*_{gatewayclasses,gateways,httproutes,grpcroutes,referencegrants}.yaml "$out/" ;;
    *) go_build "$out/" tool ;;
  esac
}
