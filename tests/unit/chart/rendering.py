"""Renders the chart with the helm of hack/tools.sh, or the one on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
CHART = Path(os.environ.get("SLIPWAY_CHART", ROOT / "charts/slipway"))
NAMESPACE = "slipway-system"
# a helm built from Go modules claims Kubernetes 1.20
KUBE_VERSION = "1.33.0"

Manifest = dict[str, Any]


def helm() -> str:
    """The helm to use; built when there is none."""
    built = ROOT / "build/bin/helm"
    if not built.exists():
        found = shutil.which("helm")
        if found:
            return found
        subprocess.run([str(ROOT / "hack/tools.sh"), "helm"], check=True, timeout=900)
    return str(built)


def run_helm(values: Manifest, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [helm(), "template", "slipway", str(CHART), "-n", NAMESPACE, "--kube-version", KUBE_VERSION, "-f", "-", *arguments]
    return subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, timeout=60, check=False)


def render(values: Manifest | None = None) -> list[Manifest]:
    """All objects of the release."""
    done = run_helm(values or {})
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]  # the safe one, in C


def of_kind(objects: list[Manifest], kind: str) -> dict[str, Manifest]:
    """The objects of a kind, by name; in several namespaces by namespace/name."""
    found = [o for o in objects if o["kind"] == kind]
    names = [o["metadata"]["name"] for o in found]
    if len(set(names)) == len(names):
        return {o["metadata"]["name"]: o for o in found}
    return {f"{o['metadata']['namespace']}/{o['metadata']['name']}": o for o in found}


def pod_specs(objects: list[Manifest]) -> dict[str, Manifest]:
    """The pod of every workload, by name."""
    workloads = [o for o in objects if "template" in (o.get("spec") or {})]
    return {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in workloads}


def environment(objects: list[Manifest]) -> dict[str, Any]:
    """The operator's environment; of what comes from a Secret, where it comes from."""
    return {
        entry["name"]: entry["value"] if "value" in entry else entry["valueFrom"]
        for entry in pod_specs(objects)["slipway-operator"]["containers"][0]["env"]
    }


def granted(role: Manifest) -> dict[str, set[str]]:
    """Verbs by `resource.group`, with the name where a rule is for one object."""
    table: dict[str, set[str]] = {}
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    key = f"{resource}.{group}".rstrip(".") + (f":{name}" if name else "")
                    table.setdefault(key, set()).update(rule["verbs"])
    return table
