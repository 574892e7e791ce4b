#!/bin/bash
# KEDA, metrics-server and a Prometheus for tests of autoscaling, built from Go modules.
#   usage: hack/keda.sh crds   KEDA's resource definitions alone, into build/crds; nothing is compiled
#          hack/keda.sh up     installs all three in the cluster of `make cluster` and waits until they answer
#          hack/keda.sh url    prints the address of that Prometheus inside the cluster; it looks at Slipway's pods, and at those with the
#                              annotation prometheus.io/scrape, every 5 s
#          hack/keda.sh down   removes them, KEDA's resource definitions with them
source "$(dirname "$0")/lib.sh"
export PATH=$BUILD/bin:$PATH KUBECONFIG=${KUBECONFIG:-$BUILD/kubeconfig}
WHERE=keda METRICS=metrics-server PROMETHEUS=prometheus

crds() {
  cd "$HACK/tools/keda"; mkdir -p "$BUILD/crds"
  GOFLAGS=-mod=readonly go mod download github.com/kedacore/keda/v2
  ln -sf "$(GOFLAGS=-mod=readonly go list -m -f '{{.Dir}}' github.com/kedacore/keda/v2)"/config/crd/bases/keda.sh_*.yaml "$BUILD/crds/"
}

# What Prometheus gives a pod's series is what prometheus-operator would: the labels namespace and pod.
prometheus() {
  kubectl apply --server-side -f - >/dev/null <<Y
{apiVersion: v1, kind: Namespace, metadata: {name: $PROMETHEUS}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: prometheus, namespace: $PROMETHEUS}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-prometheus}
rules: [{apiGroups: [""], resources: [pods], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-prometheus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: test-prometheus}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: $PROMETHEUS}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: prometheus, namespace: $PROMETHEUS}
data:
  prometheus.yml: |
    global: {scrape_interval: 5s, scrape_timeout: 4s}
    scrape_configs:
      - job_name: pods
        kubernetes_sd_configs: [{role: pod}]
        relabel_configs:
          - source_labels: [__meta_kubernetes_pod_phase]
            regex: Running
            action: keep
          - source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_component, __meta_kubernetes_pod_annotation_prometheus_io_scrape]
            regex: "server;.*|.*;true"
            action: keep
          - source_labels: [__meta_kubernetes_pod_container_port_name]
            regex: http
            action: keep
          - {source_labels: [__meta_kubernetes_namespace], target_label: namespace}
          - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus, namespace: $PROMETHEUS}
spec:
  selector: {matchLabels: {app: prometheus}}
  template:
    metadata: {labels: {app: prometheus}}
    spec:
      serviceAccountName: prometheus
      securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532}
      containers:
        - name: prometheus
          image: "$SLIPWAY_TEST_PROMETHEUS_IMAGE"
          args: [--config.file=/etc/prometheus/prometheus.yml, --storage.tsdb.path=/data, --storage.tsdb.retention.time=2h]
          ports: [{name: web, containerPort: 9090}]
          readinessProbe: {httpGet: {path: /-/ready, port: web}, periodSeconds: 2}
          resources: {requests: {cpu: 20m, memory: 64Mi}}
          volumeMounts: [{name: config, mountPath: /etc/prometheus}, {name: data, mountPath: /data}]
      volumes: [{name: config, configMap: {name: prometheus}}, {name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: prometheus, namespace: $PROMETHEUS}
spec: {selector: {app: prometheus}, ports: [{port: 9090}]}
Y
  kubectl -n $PROMETHEUS rollout status deployment/prometheus --timeout=180s >/dev/null
}

keda() {
  kubectl apply --server-side -f "$BUILD/charts/keda/crds" >/dev/null
  helm upgrade --install keda "$BUILD/charts/keda" -n $WHERE --create-namespace --skip-crds --wait --timeout 5m \
    --set operatorImage="$SLIPWAY_TEST_KEDA_IMAGE" --set adapterImage="$SLIPWAY_TEST_KEDA_ADAPTER_IMAGE" >/dev/null
  kubectl wait apiservice/v1beta1.external.metrics.k8s.io --for=condition=Available --timeout=120s >/dev/null
}

metrics_server() {
  local image=$SLIPWAY_TEST_METRICS_SERVER_IMAGE
  # the certificates of kind's kubelets are signed by nobody
  helm upgrade --install metrics-server "$BUILD/charts/metrics-server" -n $METRICS --create-namespace --wait --timeout 5m \
    --set image.repository="${image%:*}" --set-string image.tag="${image##*:}" --set args='{--kubelet-insecure-tls}' \
    --set resources.requests.cpu=20m,resources.requests.memory=64Mi >/dev/null
  kubectl wait apiservice/v1beta1.metrics.k8s.io --for=condition=Available --timeout=120s >/dev/null
}

up() {
  "$HACK/images.sh" slipway-test-keda slipway-test-keda-adapter slipway-test-metrics-server slipway-test-prometheus >/dev/null
  # shellcheck source=/dev/null
  source "$BUILD/images.env"
  timed "Prometheus" prometheus
  timed "metrics-server's chart" metrics_server
  timed "KEDA" keda
}

down() {
  # KEDA's finalizers hold its objects for as long as it runs: they go first
  kubectl delete scaledobjects --all -A --ignore-not-found --timeout=60s >/dev/null 2>&1 || true
  helm uninstall keda -n $WHERE --wait --ignore-not-found
  helm uninstall metrics-server -n $METRICS --wait --ignore-not-found
  kubectl get crd -o name | { grep -F keda.sh || true; } | xargs -r kubectl delete
  kubectl delete clusterrole,clusterrolebinding test-prometheus --ignore-not-found
  kubectl delete namespace $WHERE $METRICS $PROMETHEUS --ignore-not-found
}

case ${1:-} in
  crds) crds ;;
  up) up ;;
  url) echo "http://prometheus.$PROMETHEUS:9090" ;;
  down) down ;;
  *) die "usage: $0 crds|up|url|down" ;;
esac
