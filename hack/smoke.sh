#!/bin/bash
# Does the cluster do what the tests rely on? Pull from the local registry, DNS, ClusterIP across nodes, a volume claim.
#   usage: hack/smoke.sh        (after make cluster images)
source "$(dirname "$0")/lib.sh"
export KUBECONFIG=$BUILD/kubeconfig PATH=$BUILD/bin:$PATH
source "$BUILD/images.env"
NS=slipway-smoke
trap 'kubectl delete namespace $NS --wait=false >/dev/null 2>&1' EXIT

pod() { # NAME NODE COMMAND: restricted, as all pods of the project are; with the claim "data" at /data
  cat <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: $1}}
spec:
  restartPolicy: OnFailure
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: $2}
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  volumes: [{name: data, persistentVolumeClaim: {claimName: $1}}]
  containers:
  - name: main
    image: $SLIPWAY_OPERATOR_IMAGE
    command: $3
    volumeMounts: [{name: data, mountPath: /data}]
    securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
Y
}

apply() { kubectl -n $NS apply -f - >/dev/null; }

client() { # NODE
  pod client "$1" "[python, -c, \"import urllib.request as u; print(u.urlopen('http://web.$NS.svc.cluster.local', timeout=5).read())\"]" | apply
  kubectl -n $NS wait --for=jsonpath='{.status.phase}'=Succeeded pod/client --timeout=60s >/dev/null
}

web() { # NODE
  pod web "$1" '[sh, -c, "echo hello >/data/index.html && exec python -m http.server -d /data 8080"]' | apply
  printf 'apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n' | apply
  kubectl -n $NS wait --for=condition=Ready pod/web --timeout=90s >/dev/null
}

mapfile -t workers < <(kubectl get nodes -l '!node-role.kubernetes.io/control-plane' -o name | cut -d/ -f2)
kubectl create namespace $NS >/dev/null
kubectl label namespace $NS pod-security.kubernetes.io/enforce=restricted >/dev/null
timed "server: pull from the local registry, volume claim" web "${workers[0]}"
timed "client on another node: DNS, ClusterIP" client "${workers[-1]}"
kubectl -n $NS logs client
