#!/bin/bash
# Prints the name of a kind node image, building it when its content was never built: Debian packages, Go-built Kubernetes,
# kind's own base files. For hosts that reach no container registry; the recipe follows kind's images/base/Dockerfile.
source "$(dirname "$0")/lib.sh"
source "$HACK/engine.sh"
BIN=$BUILD/bin SUITE=bookworm                        # trixie's systemd refuses cgroup v1
PACKAGES=systemd,systemd-sysv,conntrack,iptables,nftables,iproute2,ethtool,kmod,e2fsprogs,ca-certificates,curl,jq,procps,socat,pigz
PACKAGES+=,containerd,runc,containernetworking-plugins
LIB=usr/lib/x86_64-linux-gnu

module_dir() { (cd "$HACK/tools/$1" && go mod download "$2" && go list -m -f '{{.Dir}}' "$2"); }

# The Debian tree, unpacked once and kept pristine.
rootfs() {
  ROOTFS=$CACHE/rootfs-$(sha256sum <<<"$SUITE $PACKAGES" | cut -c1-12)
  [ ! -e "$ROOTFS" ] || return 0
  rm -rf "$ROOTFS.new"; mkdir -p "$CACHE/debs"
  debootstrap --variant=minbase --cache-dir="$CACHE/debs" --include="$PACKAGES" $SUITE "$ROOTFS.new" >"$CACHE/debootstrap.log"
  rm -rf "$ROOTFS.new"/var/cache/apt/* "$ROOTFS.new"/var/lib/apt/lists/* "$ROOTFS.new"/usr/share/{doc,man}/*
  mv "$ROOTFS.new" "$ROOTFS"
}

image() { # NAME DIR [DOCKERFILE-LINE]: an image of that folder's files, remembered for preloading
  tar -C "$2" -c . | docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' ${3:+-c "$3"} - "$1" >/dev/null
  IMAGES+=("$1")
}

kubeadm_image() { "$BIN/kubeadm" config images list --kubernetes-version "$VERSION" | grep "/$1:"; }

# kube-proxy runs iptables: the nft flavour with all its extensions and all their libraries (libm too: without it the nodes
# are Ready and every ClusterIP is dead).
proxy_files() {
  local files file; mkdir -p "$S"/kube-proxy/{usr/sbin,run}
  ( cd "$R"; files="usr/sbin/xtables-nft-multi $(echo $LIB/xtables/*.so)"
    { printf '%s\n' $files; for file in $files; do chroot . ldd "/$file" | grep -o '/[^ ]*\.so[^ :]*'; done | sort -u | sed 's#^/##'; } |
      sort -u | tar -ch -T - | tar -x -C "$S/kube-proxy" )
  for file in ip{,6}tables{,-save,-restore}; do ln -sf xtables-nft-multi "$S/kube-proxy/usr/sbin/$file"; done
}

system_images() {
  local name; IMAGES=()
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd; do
    mkdir -p "$S/$name/usr/local/bin"; cp "$BIN/$name" "$S/$name/usr/local/bin/"
  done
  mkdir -p "$S"/{coredns,pause,local-path/usr/local/bin,busybox/{bin,tmp,etc}}
  cp "$BIN/coredns" "$S/coredns/"; cp "$BIN/pause" "$S/pause/"; cp "$BIN/local-path-provisioner" "$S/local-path/usr/local/bin/"
  cp "$(command -v busybox)" "$S/busybox/bin/busybox"
  for name in $(busybox --list); do [ -e "$S/busybox/bin/$name" ] || ln -s busybox "$S/busybox/bin/$name"; done
  proxy_files
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd; do image "$(kubeadm_image $name)" "$S/$name"; done
  image "$(kubeadm_image coredns)" "$S/coredns" 'ENTRYPOINT ["/coredns"]'
  image "$(kubeadm_image pause)" "$S/pause" 'ENTRYPOINT ["/pause"]'
  image localhost/busybox:kind "$S/busybox"
  image localhost/local-path-provisioner:kind "$S/local-path"
}

# kind's base files and the adjustments of its Dockerfile.
kind_files() {
  local kind; kind=$(module_dir kind sigs.k8s.io/kind)
  cp -r --no-preserve=mode,ownership "$kind"/images/base/files/{etc,kind,usr} "$R/"; chmod 755 "$R"/usr/local/bin/* "$R"/kind/bin/*
  mkdir -p "$R"/{opt/cni/bin,etc/kubernetes/manifests,kind/manifests,lib/modules}
  ln -sf /usr/bin/containerd "$R/usr/local/bin/containerd"
  cp "$R"/usr/lib/cni/{host-local,loopback,ptp,portmap} "$R/opt/cni/bin/"
  cp "$BIN"/{kubeadm,kubelet,kubectl} "$R/usr/bin/"; printf %s "$VERSION" >"$R/kind/version"
  # containerd may not raise its own rights where CAP_SYS_RESOURCE is missing
  sed -i "s/restrict_oom_score_adj = false/restrict_oom_score_adj = true/; s#sandbox_image = .*#sandbox_image = \"$(kubeadm_image pause)\"#" \
    "$R/etc/containerd/config.toml"
  chroot "$R" ctr oci spec | jq '.hooks.createContainer += [{"path":"/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    >"$R/etc/containerd/cri-base.json"
  rm -f "$R"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* "$R"/lib/systemd/system/sockets.target.wants/*{udev,initctl}* \
    "$R"/lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service "$R"/etc/systemd/system/*.wants/*
  grep -q ^ReadKMsg "$R/etc/systemd/journald.conf" || echo ReadKMsg=no >>"$R/etc/systemd/journald.conf"
  chroot "$R" systemctl -q enable kubelet containerd undo-mount-hacks; chroot "$R" systemctl -q mask systemd-binfmt
  cp "$HACK/default-cni.yaml" "$R/kind/manifests/"  # kindnetd is on no Go proxy
  sed -n '/^const defaultStorageManifest/,/^`$/p' "$kind/pkg/build/nodeimage/const_storage.go" |
    sed -e '1d;$d' -e 's#` + storageProvisionerImage + `#localhost/local-path-provisioner:kind#; s#` + storageHelperImage + `#localhost/busybox:kind#' \
      >"$R/kind/manifests/default-storage.yaml"
}

# The images go into the node's own containerd store.
preload() {
  rm -rf "$R/var/lib/containerd"; mkdir -p "$R/var/lib/containerd"
  docker save "${IMAGES[@]}" | with_containerd "$R/var/lib/containerd" ctr images import --no-unpack - >/dev/null
}

debian() { apt_install jq busybox-static debootstrap; timed "debootstrap" rootfs; }

build() {
  debian
  S=$CACHE/stage R=$CACHE/stage/root; rm -rf "$S"; mkdir -p "$S"; cp -a "$ROOTFS" "$R"
  system_images; kind_files; preload
  tar -C "$R" --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -c . |
    docker import -c 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]' -c 'ENV container=docker' - "$1" >/dev/null
  docker rmi "${IMAGES[@]}" >/dev/null; rm -rf "$S"
}

[ -x "$BIN/kubeadm" ] || locked node-image debian  # to unpack is to wait for the disk, and somebody may be compiling the tools meanwhile
"$HACK/tools.sh"
use_engine
VERSION=$("$BIN/kubeadm" version -o short)
NAME=slipway-node:$VERSION-$( (hash_of hack/node-image.sh hack/default-cni.yaml hack/tools/kind/go.mod; readlink "$BIN"/{coredns,etcd,kube*,local-path-provisioner,pause}) | sha256sum | cut -c1-12)
docker image inspect "$NAME" >/dev/null 2>&1 || timed "build node image" locked node-image build "$NAME"
echo "$NAME"
