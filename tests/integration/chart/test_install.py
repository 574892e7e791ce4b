"""helm install, upgrade, uninstall on a real API server, and the real operator with the rights that the chart gives it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.conftest import ApiServer
from integration.forks import Forked
from integration.forks import operator as fork_operator
from integration.ports import operator_ports
from kube import NotFound
from unit.chart.rendering import CHART, ROOT, helm

pytestmark = [pytest.mark.slow]
SYSTEM = "slipway-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:slipway-operator"
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
# made by the cluster about other objects
NOT_OURS = ("events", "events.events.k8s.io", "componentstatuses")
CRDS = {f"{plural}.slipway.dev" for plural in ("modeldeployments", "modelartifacts", "servingruntimes")}
DIGITS = {
    "apiVersion": "slipway.dev/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "digits"},
    "spec": {"model": {"uri": "configmap://digits"}},
}

Object = tuple[str, str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own, without our CRDs, with the controllers of Kubernetes."""
    folder = tmp_path_factory.mktemp("chart-apiserver")
    script = str(ROOT / "hack/apiserver.sh")
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"} | {"KCM": "1"}
    try:
        subprocess.run([script, "up", str(folder)], check=True, env=environment, timeout=1200)
        yield ApiServer(folder / "kubeconfig")
    finally:
        subprocess.run([script, "down", str(folder)], check=False, env=environment, timeout=60)


@pytest.fixture(autouse=True)
def spaces(server: ApiServer) -> Iterator[None]:
    """Namespaces that enforce `restricted`, and at the end none of them."""
    names = (SYSTEM, "tenant", "stranger")
    server.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}} for name in names))
    yield
    run_helm(server, "uninstall", "slipway", "--ignore-not-found")
    server.kubectl("delete", "namespace", *names, "--wait=false")
    server.run("delete", "crd", *CRDS, "--ignore-not-found", "--wait=false")

    def are_gone() -> bool:
        release_deleted_claims(server)
        return not {*names, *CRDS} & {name for _, _, name in objects(server, ("namespaces", "crd"))}

    until(are_gone, "the namespaces and the CRDs are gone", 120)


def run_helm(server: ApiServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [helm(), "--kubeconfig", str(server.kubeconfig), "--kube-context", "slipway-test", "-n", SYSTEM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def install(server: ApiServer, *settings: str) -> str:
    """Install or upgrade; without --wait, as there are no nodes."""
    done = run_helm(server, "upgrade", "--install", "slipway", str(CHART), *(a for setting in settings for a in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    assert "would violate PodSecurity" not in done.stderr
    return done.stdout


def uninstall(server: ApiServer) -> None:
    done = run_helm(server, "uninstall", "slipway")
    assert done.returncode == 0, done.stderr


def objects(server: ApiServer, kinds: tuple[str, ...] = ()) -> set[Object]:
    """All objects of the cluster as (kind, namespace, name)."""
    listed = kinds or tuple(server.kubectl("api-resources", "--verbs=list", "-o", "name").split())
    found: set[Object] = set()
    for kind in listed:
        with suppress(NotFound):  # of a definition that went meanwhile
            items = () if kind in NOT_OURS else server.get(kind, "-A")["items"]
            found |= {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in items}
    return found


def until(is_true: Callable[[], Any], what: str, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.3)


def release_deleted_claims(server: ApiServer) -> None:
    """Stand in for the controller that this API server lacks: a claim that is deleted and that no pod uses goes."""
    for claim in server.get("pvc", "-A")["items"]:
        metadata = claim["metadata"]
        if metadata.get("deletionTimestamp") and metadata.get("finalizers") == ["kubernetes.io/pvc-protection"]:
            patch = '{"metadata": {"finalizers": null}}'
            server.run("-n", metadata["namespace"], "patch", "pvc", metadata["name"], "--type=merge", "-p", patch)


def nothing_left(server: ApiServer, before: set[Object], kept: set[str]) -> None:
    """What an uninstall may leave are the CRDs in `kept`."""
    allowed = before | {("CustomResourceDefinition", "", name) for name in kept}

    def left() -> set[Object]:
        release_deleted_claims(server)
        return {found for found in objects(server) if found not in allowed and found[0] != "APIService"}

    end = time.monotonic() + 40
    while left() and time.monotonic() < end:
        time.sleep(0.5)
    assert left() == set()
    assert {name for kind, _, name in objects(server, ("crd",)) if kind == "CustomResourceDefinition"} & CRDS == kept


@contextmanager
def operator(server: ApiServer, folder: Path) -> Iterator[Path]:
    """The operator as a process here, with the environment and the service account of its Deployment. Yields its log."""
    ports = operator_ports()
    pod = server.get("-n", SYSTEM, "deployment", "slipway-operator")["spec"]["template"]["spec"]
    settings = {entry["name"]: entry.get("value", "") for entry in pod["containers"][0]["env"]}
    mounted = folder / "servingruntimes.yaml"
    mounted.write_text(server.get("-n", SYSTEM, "configmap", "slipway-servingruntimes")["data"]["servingruntimes.yaml"])
    config = yaml.safe_load(server.kubeconfig.read_text())
    config["users"] = [{"name": "admin", "user": {"token": server.kubectl("-n", SYSTEM, "create", "token", "slipway-operator").strip()}}]
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "KUBECONFIG": str(folder / "kubeconfig"), "PYTHONSAFEPATH": "1"}
    environment |= settings | ports | {"SLIPWAY_SERVING_RUNTIMES": str(mounted), "PYTHONPATH": str(ROOT / "operator/src")}
    log = folder / "operator.log"
    process = fork_operator(environment, log)
    try:
        until(lambda: is_ready(process, ports["SLIPWAY_HEALTH_PORT"], log), "the operator is ready")
        yield log
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def is_ready(process: Forked, port: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def refusals(server: ApiServer) -> set[tuple[str, str]]:
    """Verb and resource of every request of the operator that was forbidden, by the audit log."""
    lines = (json.loads(line) for line in (server.kubeconfig.parent / "audit.log").read_text().splitlines() if ACCOUNT in line)
    return {
        (line["verb"], line["objectRef"]["resource"])
        for line in lines
        if line["user"]["username"] == ACCOUNT and line.get("responseStatus", {}).get("code") == 403
    }


def shipped_runtime(server: ApiServer) -> Any:
    try:
        return server.get("servingruntime", "slipway")
    except NotFound:
        return None


def deploy_digits(server: ApiServer, namespace: str) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "digits", "namespace": namespace}}
    server.apply(config, {**DIGITS, "metadata": {"name": "digits", "namespace": namespace}})


def has_artifact(server: ApiServer, namespace: str) -> bool:
    return {"ModelArtifact", "Job", "Pod"} <= {kind for kind, space, _ in objects(server, ("mart", "job", "pod")) if space == namespace}


@pytest.mark.nightly
def test_install_run_upgrade_uninstall(server: ApiServer, tmp_path: Path) -> None:
    before = objects(server)
    assert "slipway push" in install(server)
    server.kubectl("wait", "--for=condition=established", "crd", *CRDS, "--timeout=30s")
    # the replica sets may make the pods: the namespace enforces `restricted`
    until(lambda: len([o for o in objects(server, ("pods",)) if o[1] == SYSTEM]) == 3, "three pods admitted")
    with operator(server, tmp_path):
        until(lambda: shipped_runtime(server), "the ServingRuntime is applied")
        owners = shipped_runtime(server)["metadata"]["ownerReferences"]
        assert [(owner["kind"], owner["name"]) for owner in owners] == [("ClusterRole", "slipway-operator")]
        deploy_digits(server, "tenant")
        until(lambda: has_artifact(server, "tenant"), "artifact, Job and its pod")
        until(lambda: server.get("-n", "tenant", "mdep", "digits").get("status"), "a status")
        holder = server.get("-n", SYSTEM, "lease", "slipway-operator")["spec"]["holderIdentity"]
        # an upgrade leaves the election and the models alone
        install(server, "operator.replicas=3", "runtime.image=other:2")
        lease = server.get("-n", SYSTEM, "lease", "slipway-operator")
        assert lease["spec"]["holderIdentity"] == holder
        assert has_artifact(server, "tenant")
        server.kubectl("-n", "tenant", "delete", "mdep", "digits")
        until(lambda: not has_artifact(server, "tenant"), "the model's objects are collected")
    assert refusals(server) == set()
    with operator(server, tmp_path):
        until(lambda: shipped_runtime(server)["spec"]["image"] == "other:2", "the ServingRuntime follows the upgrade")
        server.kubectl("-n", "tenant", "delete", "configmap", "digits")
        uninstall(server)  # while the operator runs, as it does for a while after its Deployment is deleted
        nothing_left(server, before, kept=CRDS)
    install(server)  # over the kept CRDs
    uninstall(server)
    nothing_left(server, before, kept=CRDS)


def test_in_one_namespace_only_and_without_kept_crds(server: ApiServer, tmp_path: Path) -> None:
    before, refused_before = objects(server), refusals(server)
    install(server, "operator.watchNamespaces={tenant}", "crds.keep=false")
    with operator(server, tmp_path):
        until(lambda: shipped_runtime(server), "the ServingRuntime is applied")
        deploy_digits(server, "stranger")
        deploy_digits(server, "tenant")
        until(lambda: has_artifact(server, "tenant"), "artifact, Job and its pod")
        assert not has_artifact(server, "stranger")
        # the garbage collector looks for new kinds every 30 s; before it knows ours, a CRD that goes leaves what its objects own
        server.kubectl("-n", "tenant", "delete", "mdep", "digits")
        until(lambda: not has_artifact(server, "tenant"), "the garbage collector knows our kinds", 60)
        deploy_digits(server, "tenant")
        until(lambda: has_artifact(server, "tenant"), "artifact, Job and its pod, again")
    assert refusals(server) - refused_before == set()
    server.kubectl("-n", "tenant", "delete", "configmap", "digits")
    server.kubectl("-n", "stranger", "delete", "configmap", "digits")
    uninstall(server)  # with the CRDs go the models, and with them what they own
    nothing_left(server, before, kept=set())


def test_an_election_older_than_the_chart_s_lease_is_left_alone(server: ApiServer) -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "slipway-operator", "namespace": SYSTEM}}
    server.apply({**lease, "spec": {"holderIdentity": "somebody"}})
    install(server)
    assert server.get("-n", SYSTEM, "lease", "slipway-operator")["spec"]["holderIdentity"] == "somebody"


def test_helm_refuses_a_chart_that_brings_a_crd_and_its_object(server: ApiServer, tmp_path: Path) -> None:
    """Why the operator applies the ServingRuntime: should Helm ever learn it, this fails and the detour can go."""
    shutil.copytree(CHART, tmp_path / "slipway")
    template = "apiVersion: slipway.dev/v1alpha1\nkind: ServingRuntime\nmetadata: {name: x}\nspec: {image: x, formats: [{name: ONNX}]}\n"
    (tmp_path / "slipway/templates/direct.yaml").write_text(template)
    done = run_helm(server, "install", "slipway", str(tmp_path / "slipway"))
    assert done.returncode != 0
    assert 'no matches for kind "ServingRuntime"' in done.stderr
