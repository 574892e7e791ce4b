#!/bin/bash
# Gives the operator its own name and copies the CRDs that a Prometheus needs out of the module.   usage: after-build.sh DIR
set -euo pipefail
cd "$(dirname "$0")"
mv "$1/operator" "$1/prometheus-operator"
crds=$(go list -m -f '{{.Dir}}' github.com/prometheus-operator/prometheus-operator)/example/prometheus-operator-crd
install -m 644 "$crds"/monitoring.coreos.com_{podmonitors,probes,prometheuses,prometheusrules,servicemonitors}.yaml "$1/"
