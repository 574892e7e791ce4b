# The local registry of the development cluster: one container of our own image, its data in the cache. Sourced.
# shellcheck shell=bash disable=SC2034
CLUSTER=slipway NETWORK=slipway REGISTRY_NAME=slipway-local-registry REGISTRY_PORT=5001

# workers: the names of the cluster's worker nodes
workers() { docker ps --filter "label=io.x-k8s.kind.cluster=$CLUSTER" --filter label=io.x-k8s.kind.role=worker --format '{{.Names}}'; }

# Builds the image from the Go-built binaries; prints its name.
registry_image() {
  local tag dir=$BUILD/registry-context
  "$HACK/tools.sh" registry registry-gc
  tag=slipway-registry:$( (hash_of hack/registry/Dockerfile hack/registry/config.yml; readlink "$BUILD/bin"/registry{,-gc}) | sha256sum | cut -c1-12)
  if ! docker image inspect "$tag" >/dev/null 2>&1; then
    rm -rf "$dir"; mkdir -p "$dir/data"
    cp -L "$BUILD/bin"/registry{,-gc} "$HACK/registry"/{config.yml,Dockerfile} "$dir/"
    DOCKER_BUILDKIT=0 docker build -q -t "$tag" "$dir" >/dev/null 2>&1 || die "docker build of slipway-registry failed"
    rm -rf "$dir"
  fi
  echo "$tag"
}

registry_up() {
  local image; image=$(registry_image)
  if [ "$(docker inspect -f '{{.Config.Image}}' $REGISTRY_NAME 2>/dev/null)" != "$image" ]; then
    docker rm -f $REGISTRY_NAME >/dev/null 2>&1 || true
    mkdir -p "$CACHE/registry"; chown 65532:65532 "$CACHE/registry"
    docker run -d --name $REGISTRY_NAME --restart=always -p "127.0.0.1:$REGISTRY_PORT:5000" -v "$CACHE/registry:/var/lib/registry" "$image" >/dev/null
  fi
  docker start $REGISTRY_NAME >/dev/null
  docker network connect "$NETWORK" $REGISTRY_NAME >/dev/null 2>&1 || true   # already there, or the cluster does not exist yet
  for _ in $(seq 100); do curl -sf --noproxy '*' "http://localhost:$REGISTRY_PORT/v2/" >/dev/null && return; sleep 0.1; done
  die "the local registry does not answer on localhost:$REGISTRY_PORT"
}
