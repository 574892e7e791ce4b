#!/bin/bash
# Copies the chart of metrics-server out of its module.   usage: after-build.sh DIR
set -euo pipefail
cd "$(dirname "$0")"
cp -r --no-preserve=mode "$(go list -m -f '{{.Dir}}' sigs.k8s.io/metrics-server)/charts/metrics-server" "$1/chart"
