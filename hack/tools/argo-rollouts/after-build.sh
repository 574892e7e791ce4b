#!/bin/bash
# Copies the CRDs of Argo Rollouts out of its module.   usage: after-build.sh DIR
set -euo pipefail
cd "$(dirname "$0")"
crds=$(go list -m -f '{{.Dir}}' github.com/argoproj/argo-rollouts)/manifests/crds
for file in "$crds"/*-crd.yaml; do install -m 644 "$file" "$1/argo-$(basename "$file")"; done
