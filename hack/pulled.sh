#!/bin/bash
# Waits until the nodes of the cluster have what hack/images.sh told them to pull.
source "$(dirname "$0")/lib.sh"
source "$HACK/engine.sh"
source "$HACK/registry.sh"
use_engine
for node in $(workers); do
  docker exec "$node" flock -n /run/slipway-pull.lock true || timed "$node still pulls images" docker exec "$node" flock /run/slipway-pull.lock true
done
