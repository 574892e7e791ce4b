#!/bin/bash
# Gives KEDA's programs names of their own, and makes a chart of the manifests in its module, which has none: without the admission webhook,
# with two values, operatorImage and adapterImage.   usage: after-build.sh DIR
set -euo pipefail
cd "$(dirname "$0")"
mv "$1/operator" "$1/keda-operator"; mv "$1/adapter" "$1/keda-adapter"
config=$(go list -m -f '{{.Dir}}' github.com/kedacore/keda/v2)/config
version=$(go list -m -f '{{.Version}}' github.com/kedacore/keda/v2)
mkdir -p "$1/chart/crds" "$1/chart/templates"
printf 'apiVersion: v2\nname: keda\nversion: %s\n' "${version#v}" >"$1/chart/Chart.yaml"
install -m 644 "$config"/crd/bases/*.yaml "$1/chart/crds/"
for file in rbac/role rbac/role_binding rbac/aggregate_cluster_roles service_account/service_account manager/manager manager/service \
  metrics-server/role metrics-server/role_binding metrics-server/deployment metrics-server/service metrics-server/api_service; do
  # a program that is alone in its image: by its path, and with a user
  sed -e 's|image: ghcr.io/kedacore/keda:.*|image: "{{ .Values.operatorImage }}"|' -e 's|- /keda$|- /bin/keda-operator|' \
    -e 's|image: ghcr.io/kedacore/keda-metrics-apiserver:.*|image: "{{ .Values.adapterImage }}"|' -e 's|- /keda-adapter$|- /bin/keda-adapter|' \
    -e 's|imagePullPolicy: Always|imagePullPolicy: IfNotPresent|' -e 's|^\( *\)runAsNonRoot: true|&\n\1runAsUser: 65532|' \
    "$config/$file.yaml" >"$1/chart/templates/${file//\//-}.yaml"
done
