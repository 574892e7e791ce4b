#!/bin/bash
# Gives the operator its own name, copies the CRDs that a Prometheus needs out of the module, and builds Prometheus, because Debian's package,
# which all other tests use, cannot look for targets in Kubernetes.   usage: after-build.sh DIR
# Prometheus is built by its own go.mod and go.sum, with that one kind of discovery and without the libraries of all the clouds.
set -euo pipefail
cd "$(dirname "$0")"
mv "$1/operator" "$1/prometheus-operator"
crds=$(go list -m -f '{{.Dir}}' github.com/prometheus-operator/prometheus-operator)/example/prometheus-operator-crd
install -m 644 "$crds"/monitoring.coreos.com_{podmonitors,probes,prometheuses,prometheusrules,servicemonitors}.yaml "$1/"

go mod download github.com/prometheus/prometheus
source=$(mktemp -d); trap 'rm -rf "$source"' EXIT
cp -r --no-preserve=mode "$(go list -m -f '{{.Dir}}' github.com/prometheus/prometheus)/." "$source"
printf 'package plugins\n\nimport _ "github.com/prometheus/prometheus/discovery/kubernetes"\n' >"$source/plugins/plugins.go"
cd "$source"
CGO_ENABLED=0 GOFLAGS='-mod=readonly -trimpath' go build -ldflags '-s -w' -o "$1/prometheus-server" ./cmd/prometheus
