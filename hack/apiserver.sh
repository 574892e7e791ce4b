#!/bin/bash
# A bare etcd and kube-apiserver on loopback, for integration tests: real API, no nodes.
#   usage: hack/apiserver.sh up DIR [PORT]      writes DIR/kubeconfig (admin) and DIR/audit.log, prints the kubeconfig's path
#          hack/apiserver.sh down DIR           ends them and removes DIR's state
# KCM=1 adds kube-controller-manager (deployments, replica sets, jobs, garbage collection, namespaces, quotas).
# PORT and the three after it are used; without it free ones are found.
source "$(dirname "$0")/lib.sh"
WHAT=${1:?up or down} DIR=$(realpath -m "${2:?a directory}")
BIN=$BUILD/bin

free_ports() { # COUNT
  python3 -c 'import socket, sys
socks = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in socks: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in socks])' "$1"
}

# launch NAME COMMAND...: in the background, log and pid in DIR
launch() {
  local name=$1; shift
  setsid "$@" >"$DIR/$name.log" 2>&1 </dev/null & echo $! >"$DIR/$name.pid"
}

credentials() {
  openssl genrsa -out "$DIR/sa.key" 2048 2>/dev/null
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=slipway-test \
    -addext 'subjectAltName=IP:127.0.0.1,DNS:localhost' -keyout "$DIR/tls.key" -out "$DIR/tls.crt" 2>/dev/null
  TOKEN=$(openssl rand -hex 16)
  echo "$TOKEN,admin,admin,system:masters" >"$DIR/tokens.csv"
}

kubeconfig() { # PORT
  cat >"$DIR/kubeconfig" <<Y
apiVersion: v1
kind: Config
clusters: [{name: slipway-test, cluster: {server: "https://127.0.0.1:$1", certificate-authority-data: $(base64 -w0 "$DIR/tls.crt")}}]
users: [{name: admin, user: {token: $TOKEN}}]
contexts: [{name: slipway-test, context: {cluster: slipway-test, user: admin}}]
current-context: slipway-test
Y
}

ready() {
  curl -sf --noproxy '*' -m 2 --cacert "$DIR/tls.crt" -H "Authorization: Bearer $(cut -d, -f1 "$DIR/tokens.csv")" \
    "$(sed -n 's/.*server: "\([^"]*\)".*/\1/p' "$DIR/kubeconfig")/readyz" 2>/dev/null | grep -q '^ok'
}

# Leader election and the other controllers would only write noise into the audit log.
controllers() { # PORT
  launch kcm "$BIN/kube-controller-manager" --kubeconfig "$DIR/kubeconfig" --bind-address 127.0.0.1 --secure-port "$1" --leader-elect=false \
    --controllers=deployment-controller,replicaset-controller,job-controller,garbage-collector-controller,namespace-controller,resourcequota-controller \
    --kube-api-qps 500 --kube-api-burst 1000 --cert-dir "$DIR/kcm"
}

up() {
  local ports
  if alive "$DIR/apiserver.pid" "$DIR" && ready; then echo "$DIR/kubeconfig"; return; fi
  "$HACK/tools.sh" kubernetes; apt_install openssl curl
  down; mkdir -p "$DIR"; credentials
  read -ra ports <<<"${1:+$1 $(($1 + 1)) $(($1 + 2)) $(($1 + 3))}"
  [ -n "${1:-}" ] || read -ra ports <<<"$(free_ports 4)"
  kubeconfig "${ports[0]}"
  launch etcd "$BIN/etcd" --data-dir "$DIR/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls "http://127.0.0.1:${ports[1]}" --advertise-client-urls "http://127.0.0.1:${ports[1]}" \
    --listen-peer-urls "http://127.0.0.1:${ports[2]}" --initial-advertise-peer-urls "http://127.0.0.1:${ports[2]}" \
    --initial-cluster "default=http://127.0.0.1:${ports[2]}"
  launch apiserver "$BIN/kube-apiserver" --etcd-servers "http://127.0.0.1:${ports[1]}" \
    --bind-address 127.0.0.1 --advertise-address 127.0.0.1 --secure-port "${ports[0]}" --service-cluster-ip-range 10.99.0.0/16 \
    --tls-cert-file "$DIR/tls.crt" --tls-private-key-file "$DIR/tls.key" --cert-dir "$DIR/certs" \
    --service-account-key-file "$DIR/sa.key" --service-account-signing-key-file "$DIR/sa.key" --service-account-issuer https://slipway-test \
    --token-auth-file "$DIR/tokens.csv" --authorization-mode RBAC --disable-admission-plugins ServiceAccount \
    --audit-policy-file "$HACK/audit-policy.yaml" --audit-log-path "$DIR/audit.log"
  for _ in $(seq 600); do
    ready && break
    alive "$DIR/apiserver.pid" "$DIR" || { tail -5 "$DIR/apiserver.log" >&2; die "kube-apiserver ended"; }
    sleep 0.1
  done
  ready || { tail -5 "$DIR/apiserver.log" >&2; die "kube-apiserver is not ready"; }
  [ "${KCM:-0}" != 1 ] || controllers "${ports[3]}"
  say "API server ready"
  echo "$DIR/kubeconfig"
}

down() {
  local name
  for name in kcm apiserver etcd; do stop "$DIR/$name.pid" "$DIR"; done
  rm -rf "${DIR:?}"/{etcd,certs,kcm,sa.key,tls.key,tls.crt,tokens.csv,kubeconfig,audit.log}
}

case $WHAT in up) up "${3:-}" ;; down) down ;; *) die "usage: $0 up|down DIR [PORT]" ;; esac
