#!/bin/bash
# Names the programs apart from others, and copies the CRDs that a Prometheus needs out of the module.   usage: after-build.sh DIR
# Prometheus is built here too, because Debian's package, which all other tests use, cannot look for targets in Kubernetes.
set -euo pipefail
cd "$(dirname "$0")"
mv "$1/operator" "$1/prometheus-operator"
mv "$1/prometheus" "$1/prometheus-server"
crds=$(go list -m -f '{{.Dir}}' github.com/prometheus-operator/prometheus-operator)/example/prometheus-operator-crd
install -m 644 "$crds"/monitoring.coreos.com_{podmonitors,probes,prometheuses,prometheusrules,servicemonitors}.yaml "$1/"
