#!/bin/bash
# A real prometheus-operator for tests: built from its Go module, with a Prometheus that takes in the PodMonitors and rules of every namespace.
#   usage: hack/monitoring.sh up     installs it in the cluster of `make cluster`, namespace "monitoring"; Service prometheus-operated, port 9090
#          hack/monitoring.sh down   removes it and its CRDs, and with them all PodMonitors and rules
source "$(dirname "$0")/lib.sh"
export PATH=$BUILD/bin:$PATH KUBECONFIG=${KUBECONFIG:-$BUILD/kubeconfig}
WHERE=monitoring

crds() { find "$BUILD/crds/" -name 'monitoring.coreos.com_*.yaml' | sort; }

# Cluster-admin for the operator, because what is tested is not its rights.
operator() {
  kubectl apply --server-side -f - >/dev/null <<Y
{apiVersion: v1, kind: Namespace, metadata: {name: $WHERE}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: prometheus-operator, namespace: $WHERE}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: prometheus, namespace: $WHERE}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: slipway-test-prometheus-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: prometheus-operator, namespace: $WHERE}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: slipway-test-prometheus}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: slipway-test-prometheus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: slipway-test-prometheus}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: $WHERE}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus-operator, namespace: $WHERE}
spec:
  selector: {matchLabels: {app: prometheus-operator}}
  template:
    metadata: {labels: {app: prometheus-operator}}
    spec:
      serviceAccountName: prometheus-operator
      securityContext: {runAsNonRoot: true, runAsUser: 65532}
      containers:
        - name: operator
          image: $SLIPWAY_TEST_PROMETHEUS_OPERATOR_IMAGE
          args: [--prometheus-config-reloader=$SLIPWAY_TEST_CONFIG_RELOADER_IMAGE, --config-reloader-cpu-request=5m, --config-reloader-cpu-limit=0]
          resources: {requests: {cpu: 20m, memory: 64Mi}}
Y
  kubectl -n $WHERE rollout status deployment/prometheus-operator --timeout=180s >/dev/null
}

prometheus() {
  kubectl apply --server-side -f - >/dev/null <<Y
apiVersion: monitoring.coreos.com/v1
kind: Prometheus
metadata: {name: slipway, namespace: $WHERE}
spec:
  image: $SLIPWAY_TEST_PROMETHEUS_IMAGE
  version: v3.5.0
  serviceAccountName: prometheus
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532}
  evaluationInterval: 15s
  podMonitorSelector: {}
  podMonitorNamespaceSelector: {}
  ruleSelector: {}
  ruleNamespaceSelector: {}
  resources: {requests: {cpu: 50m, memory: 128Mi}}
Y
  local end=$((SECONDS + 240))
  until kubectl -n $WHERE rollout status statefulset/prometheus-slipway --timeout=60s >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "Prometheus does not start: kubectl -n $WHERE describe pods; kubectl -n $WHERE logs deployment/prometheus-operator"
    sleep 2
  done
}

up() {
  "$HACK/images.sh" slipway-test-prometheus-operator slipway-test-config-reloader slipway-test-prometheus >/dev/null
  # shellcheck source=/dev/null
  source "$BUILD/images.env"
  crds | while read -r file; do kubectl apply --server-side -f "$file" >/dev/null; done
  kubectl wait --for=condition=Established --timeout=60s crd/{podmonitors,probes,prometheuses,prometheusrules,servicemonitors}.monitoring.coreos.com >/dev/null
  timed prometheus-operator operator
  timed "a Prometheus" prometheus
}

down() {
  kubectl -n $WHERE delete prometheuses.monitoring.coreos.com --all --ignore-not-found || true
  kubectl delete namespace $WHERE --ignore-not-found
  kubectl delete clusterrolebinding slipway-test-prometheus-operator slipway-test-prometheus --ignore-not-found
  kubectl delete clusterrole slipway-test-prometheus --ignore-not-found
  crds | while read -r file; do kubectl delete -f "$file" --ignore-not-found; done
}

case ${1:-} in up) up ;; down) down ;; *) die "usage: $0 up|down" ;; esac
