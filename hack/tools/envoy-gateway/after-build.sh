#!/bin/bash
# Copies Envoy Gateway's chart out of its module, with the two blanks that its release fills in.   usage: after-build.sh DIR
set -euo pipefail
cd "$(dirname "$0")"
cp -r --no-preserve=mode "$(go list -m -f '{{.Dir}}' github.com/envoyproxy/gateway)/charts/gateway-helm" "$1/chart"
sed 's/${GatewayImage}/""/; s/${GatewayImagePullPolicy}/IfNotPresent/' "$1/chart/values.tmpl.yaml" >"$1/chart/values.yaml"
rm "$1/chart/values.tmpl.yaml"
