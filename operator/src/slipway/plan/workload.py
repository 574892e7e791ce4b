"""What a revision needs to serve: its Deployment. What leads to its pods is in `traffic.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from slipway import names
from slipway.plan import accelerator
from slipway.plan.objects import (
    annotation,
    env,
    mounts,
    name_of,
    owner,
    pod_security_context,
    scraped,
    secret_source,
    security_context,
    status_of,
    verification,
)
from slipway.snapshot import Config, Manifest

MODEL_DIR = "/models/artifact"
LAYOUT_DIR = "/models/layout"  # of another server's
DEFAULT_PORT = 8080
DEFAULT_RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}}
DEFAULT_PROBES = {"startupPath": "/v2/health/ready", "readinessPath": "/v2/health/ready", "livenessPath": "/v2/health/live"}
GRACE_SECONDS = 60
SHAPE_KEYS = ("model", "signature", "conversion", "accelerator")  # and serving, without its size
_POD_FIELDS = ("nodeSelector", "tolerations", "affinity", "runtimeClassName", "serviceAccountName", "priorityClassName")


def revision_shape(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a ModelDeployment's spec whose change makes a new revision.

    What is empty is left out: a list whose last item was taken away is stored as empty or not at all, as it was applied.
    """
    serving = {key: value for key, value in (spec.get("serving") or {}).items() if key != "replicas" and value}
    shape = {key: spec[key] for key in SHAPE_KEYS if spec.get(key)}
    return shape | ({"serving": serving} if serving else {})


def runtime_for(fmt: str, wanted: str | None, runtimes: tuple[Manifest, ...]) -> Manifest | None:
    """Return the ServingRuntime that serves the format, or None if no allowed one claims it.

    With `wanted` only the runtime of that name is allowed. Else it is the one with the highest priority for the format, as in KServe, and
    of equals the first by name: the order in which the runtimes were created or listed says nothing.
    """
    ranks = {
        name_of(runtime): (-int(claim.get("priority", 0)), name_of(runtime))
        for runtime in runtimes
        for claim in runtime["spec"].get("formats", ())
        if claim["name"] == fmt and wanted in (None, name_of(runtime))
    }
    return min((runtime for runtime in runtimes if name_of(runtime) in ranks), key=lambda runtime: ranks[name_of(runtime)], default=None)


def revision_deployment(resource: Manifest, revision: str, artifact: Manifest, runtime: Manifest, config: Config) -> dict[str, Any]:
    """Return a new revision's Deployment; the pod template is kept in an annotation, so that it outlives its spec and this operator."""
    status = status_of(artifact)
    notes = {names.DIGEST: status["digest"], names.FORMAT: status["format"], names.SHAPE: _compact(revision_shape(resource["spec"]))}
    return _deployment(resource, revision, name_of(artifact), notes, _pod_template(resource, revision, artifact, runtime, config))


def existing_deployment(resource: Manifest, observed: Manifest) -> dict[str, Any]:
    """Return a revision's Deployment as it was first rendered: an operator upgrade restarts no healthy pod."""
    revision = name_of(observed)
    template = json.loads(annotation(observed, names.POD_TEMPLATE) or "null") or observed["spec"]["template"]
    artifact = (observed["metadata"].get("labels") or {}).get(names.ARTIFACT, "")
    notes = {key: annotation(observed, key) for key in (names.DIGEST, names.FORMAT, names.SHAPE)}
    return _deployment(resource, revision, artifact, {key: note for key, note in notes.items() if note is not None}, template)


def with_scale(deployment: Mapping[str, Any], replicas: int | None, role: str) -> dict[str, Any]:
    """Return the Deployment with a size and a role; without a size its autoscaler has it."""
    metadata = dict(deployment["metadata"])
    metadata["labels"] = {**metadata["labels"], names.ROLE: role}
    return {**deployment, "metadata": metadata, "spec": {**deployment["spec"], **({} if replicas is None else {"replicas": replicas})}}


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def revision_claims(resource: Manifest, deployment: Manifest) -> dict[str, Any] | None:
    """Return the ResourceClaimTemplate of a revision, as its pods were rendered for, or None when it needs none."""
    labels = names.labels(name_of(resource), "server", deployment=name_of(resource), revision=name_of(deployment))
    return accelerator.claim_template(resource, name_of(deployment), labels, accelerator.recorded(deployment["spec"]["template"]))


def _deployment(resource: Manifest, revision: str, artifact: str, notes: Mapping[str, str], template: Mapping[str, Any]) -> dict[str, Any]:
    name = name_of(resource)
    labels = names.labels(name, "server", deployment=name, revision=revision, artifact=artifact)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": revision,
            "namespace": resource["metadata"]["namespace"],
            "labels": labels,
            "annotations": {**notes, names.POD_TEMPLATE: _compact(template)},
            "ownerReferences": [owner(resource)],
        },
        "spec": {
            "revisionHistoryLimit": 0,  # a revision has one pod template for ever
            "progressDeadlineSeconds": 600,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": {names.DEPLOYMENT: name, names.REVISION: revision}},
            "template": template,
        },
    }


def _pod_template(resource: Manifest, revision: str, artifact: Manifest, runtime: Manifest, config: Config) -> dict[str, Any]:
    name, serving = name_of(resource), resource["spec"].get("serving") or {}
    wish = resource["spec"].get("accelerator")
    image = _image(runtime, status_of(artifact)["format"], has_accelerator=wish is not None)
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security_context(),
        **{key: serving[key] for key in _POD_FIELDS if serving.get(key)},
        "initContainers": [_pull(resource, artifact, runtime, config)],
        "containers": [_server(resource, revision, artifact, runtime, image)],
        "volumes": _volumes(config),
    }
    if config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in config.image_pull_secrets]
    if wish is not None:
        pod["topologySpreadConstraints"] = accelerator.spread({names.DEPLOYMENT: name, names.REVISION: revision})
    notes = scraped(*_metrics_of(runtime), config) | accelerator.as_annotations(wish)
    metadata = {"labels": names.labels(name, "server", deployment=name, revision=revision), "annotations": notes}
    return {"metadata": metadata, "spec": accelerator.equipped(pod, {names.SERVER}, wish, revision)}


def _metrics_of(runtime: Manifest) -> tuple[int, str]:
    """Return port and path of a server's metrics."""
    spec = runtime["spec"]
    place = spec.get("metrics") or {}
    return int(place.get("port") or spec.get("port", DEFAULT_PORT)), str(place.get("path", names.METRICS_PATH))


def _image(runtime: Manifest, fmt: str, *, has_accelerator: bool) -> str:
    spec = runtime["spec"]
    claimed: Mapping[str, Any] = next((f for f in spec.get("formats", ()) if f["name"] == fmt), {})
    return str((has_accelerator and claimed.get("acceleratorImage")) or claimed.get("image") or spec["image"])


def _volumes(config: Config) -> list[dict[str, Any]]:
    credentials = {"name": "registry-credentials", **secret_source(config.registry_secret)}
    scratch = [{"name": "models", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    return [*scratch, credentials, *verification(config.signing_secret).volumes]


def _pull(resource: Manifest, artifact: Manifest, runtime: Manifest, config: Config) -> dict[str, Any]:
    status, keys = status_of(artifact), verification(config.signing_secret)
    arguments = ["--repository", status["repository"], "--digest", status["digest"], "--output", MODEL_DIR]
    rows = [("models", "/models", False), ("tmp", "/tmp", False), ("registry-credentials", "/var/run/slipway/registry-credentials", True)]  # noqa: S108
    variables: list[dict[str, Any]] = list(env({"SLIPWAY_PLAIN_HTTP": ",".join(config.plain_http), **keys.variables}))
    if _is_foreign(runtime):
        arguments += _layout_arguments(resource, runtime)
        limit = {"containerName": names.SERVER, "resource": "limits.cpu", "divisor": "1m"}  # the node's CPUs where there is none
        variables.append({"name": "SLIPWAY_SERVER_MILLICPUS", "valueFrom": {"resourceFieldRef": limit}})
        variables += _labels(resource["spec"].get("serving") or {})
    return {
        "name": names.PULL,
        "image": config.runtime_image,
        "command": ["slipway-runtime", "pull", *arguments],
        "env": variables,
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "securityContext": security_context(),
        "volumeMounts": mounts([*rows, *keys.mounts]),
    }


def _is_foreign(runtime: Manifest) -> bool:
    return str(runtime["spec"].get("layout", "Slipway")) != "Slipway"


def _layout_arguments(resource: Manifest, runtime: Manifest) -> list[str]:
    """Return what `pull` needs to know to lay the artifact out for another server."""
    spec = runtime["spec"]
    batching = (resource["spec"].get("serving") or {}).get("batching") or {}
    words = ["--layout", spec["layout"], "--layout-output", LAYOUT_DIR, "--model-name", name_of(resource)]
    words += ["--port", str(spec.get("port", DEFAULT_PORT))]
    words += ["--metrics-port", str(_metrics_port(runtime))] if _metrics_port(runtime) else []
    words += ["--max-batch-size", str(batching["maxBatchSize"]), "--max-delay", batching.get("maxDelay", "0ms")] if batching else []
    return [*words, "--gpu"] if resource["spec"].get("accelerator") else words


def _metrics_port(runtime: Manifest) -> int:
    """Return the port of the metrics where it is not that of the requests, else 0."""
    port, _ = _metrics_of(runtime)
    return 0 if port == int(runtime["spec"].get("port", DEFAULT_PORT)) else port


def _server(resource: Manifest, revision: str, artifact: Manifest, runtime: Manifest, image: str) -> dict[str, Any]:
    serving, spec = resource["spec"].get("serving") or {}, runtime["spec"]
    ports = _ports(runtime)
    values = {
        "modelDir": LAYOUT_DIR if _is_foreign(runtime) else MODEL_DIR,
        "modelName": name_of(resource),
        "revision": revision,
        "artifactDigest": status_of(artifact)["digest"],
        "port": str(ports[names.PORT_NAME]),
        "grpcPort": str(ports.get(names.GRPC_PORT_NAME, 0)),
        "metricsPort": str(ports.get(names.METRICS_PORT_NAME, ports[names.PORT_NAME])),
    }
    container: dict[str, Any] = {
        "name": names.SERVER,
        "image": image,
        **{key: [_fill(text, values) for text in spec[key]] for key in ("command", "args") if spec.get(key)},
        "env": _server_env(serving, spec, values),
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in ports.items()],
        "resources": serving.get("resources") or DEFAULT_RESOURCES,
        **_probes(DEFAULT_PROBES | (spec.get("probes") or {}), values),
        "securityContext": security_context(),
        "volumeMounts": mounts([("models", "/models", True), ("tmp", "/tmp", False)]),  # noqa: S108
    }
    if spec.get("drainSeconds"):  # the action `sleep` is in no cluster before 1.30
        container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(spec["drainSeconds"])]}}}
    return container


def _ports(runtime: Manifest) -> dict[str, int]:
    spec = runtime["spec"]
    ports = {names.PORT_NAME: int(spec.get("port", DEFAULT_PORT)), names.GRPC_PORT_NAME: int(spec.get("grpcPort") or 0)}
    return {name: port for name, port in (ports | {names.METRICS_PORT_NAME: _metrics_port(runtime)}).items() if port}


def _server_env(serving: Mapping[str, Any], spec: Mapping[str, Any], values: Mapping[str, str]) -> list[dict[str, Any]]:
    own = [{**item, "value": _fill(item["value"], values)} if "value" in item else dict(item) for item in spec.get("env", ())]
    told = _labels(serving)
    batching = serving.get("batching") or {}
    if batching:
        told += env({"SLIPWAY_MAX_BATCH_SIZE": str(batching["maxBatchSize"]), "SLIPWAY_MAX_DELAY": batching.get("maxDelay", "0ms")})
    users = list(serving.get("env", ()))
    theirs = {item["name"] for item in users}
    return [item for item in [*own, *told] if item["name"] not in theirs] + users


def _labels(serving: Mapping[str, Any]) -> list[dict[str, Any]]:
    return env({"SLIPWAY_LABELS": json.dumps(serving["labels"])}) if serving.get("labels") else []


def _fill(text: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def _probes(said: Mapping[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    def probe(check: dict[str, Any], period: int, failures: int) -> dict[str, Any]:
        return {**check, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5}

    def asking(path: str) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": names.PORT_NAME}}

    command = [_fill(word, values) for word in said.get("startupCommand") or ()]
    return {
        "startupProbe": probe({"exec": {"command": command}} if command else asking(said["startupPath"]), 1, 600),
        "readinessProbe": probe(asking(said["readinessPath"]), 2, 2),
        "livenessProbe": probe(asking(said["livenessPath"]), 10, 6),
    }
