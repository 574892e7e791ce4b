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
    secret_source,
    security_context,
    status_of,
    verification,
)
from slipway.snapshot import Config, Manifest

MODEL_DIR = "/models/artifact"
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
    image = _image(runtime, status_of(artifact)["format"])
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security_context(),
        **{key: serving[key] for key in _POD_FIELDS if serving.get(key)},
        "initContainers": [_pull(artifact, config)],
        "containers": [_server(resource, revision, artifact, runtime, image)],
        "volumes": _volumes(config),
    }
    if config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in config.image_pull_secrets]
    wish = resource["spec"].get("accelerator")
    if wish is not None:
        pod["topologySpreadConstraints"] = accelerator.spread({names.DEPLOYMENT: name, names.REVISION: revision})
    metadata = {"labels": names.labels(name, "server", deployment=name, revision=revision), **accelerator.as_metadata(wish)}
    return {"metadata": metadata, "spec": accelerator.equipped(pod, {names.SERVER}, wish, revision)}


def _image(runtime: Manifest, fmt: str) -> str:
    spec = runtime["spec"]
    claimed: Mapping[str, Any] = next((f for f in spec.get("formats", ()) if f["name"] == fmt), {})
    return str(claimed.get("image") or spec["image"])


def _volumes(config: Config) -> list[dict[str, Any]]:
    credentials = {"name": "registry-credentials", **secret_source(config.registry_secret)}
    scratch = [{"name": "models", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    return [*scratch, credentials, *verification(config.signing_secret).volumes]


def _pull(artifact: Manifest, config: Config) -> dict[str, Any]:
    status, keys = status_of(artifact), verification(config.signing_secret)
    arguments = ["--repository", status["repository"], "--digest", status["digest"], "--output", MODEL_DIR]
    rows = [("models", "/models", False), ("tmp", "/tmp", False), ("registry-credentials", "/var/run/slipway/registry-credentials", True)]  # noqa: S108
    return {
        "name": names.PULL,
        "image": config.runtime_image,
        "command": ["slipway-runtime", "pull", *arguments],
        "env": env({"SLIPWAY_PLAIN_HTTP": ",".join(config.plain_http), **keys.variables}),
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "securityContext": security_context(),
        "volumeMounts": mounts([*rows, *keys.mounts]),
    }


def _server(resource: Manifest, revision: str, artifact: Manifest, runtime: Manifest, image: str) -> dict[str, Any]:
    serving, spec = resource["spec"].get("serving") or {}, runtime["spec"]
    port, grpc_port = int(spec.get("port", DEFAULT_PORT)), int(spec.get("grpcPort") or 0)
    ports = [{"name": names.PORT_NAME, "containerPort": port, "protocol": "TCP"}]
    if grpc_port:
        ports.append({"name": names.GRPC_PORT_NAME, "containerPort": grpc_port, "protocol": "TCP"})
    values = {
        "modelDir": MODEL_DIR,
        "modelName": name_of(resource),
        "revision": revision,
        "artifactDigest": status_of(artifact)["digest"],
        "port": str(port),
        "grpcPort": str(grpc_port),
    }
    container: dict[str, Any] = {
        "name": names.SERVER,
        "image": image,
        **{key: [_fill(text, values) for text in spec[key]] for key in ("command", "args") if spec.get(key)},
        "env": _server_env(serving, spec, values),
        "ports": ports,
        "resources": serving.get("resources") or DEFAULT_RESOURCES,
        **_probes(DEFAULT_PROBES | (spec.get("probes") or {})),
        "securityContext": security_context(),
        "volumeMounts": mounts([("models", "/models", True), ("tmp", "/tmp", False)]),  # noqa: S108
    }
    return container


def _server_env(serving: Mapping[str, Any], spec: Mapping[str, Any], values: Mapping[str, str]) -> list[dict[str, Any]]:
    own = [{**item, "value": _fill(item["value"], values)} if "value" in item else dict(item) for item in spec.get("env", ())]
    labels = env({"SLIPWAY_LABELS": json.dumps(serving["labels"])}) if serving.get("labels") else []
    batching = serving.get("batching") or {}
    if batching:
        labels += env({"SLIPWAY_MAX_BATCH_SIZE": str(batching["maxBatchSize"]), "SLIPWAY_MAX_DELAY": batching.get("maxDelay", "0ms")})
    users = list(serving.get("env", ()))
    theirs = {item["name"] for item in users}
    return [item for item in [*own, *labels] if item["name"] not in theirs] + users


def _fill(text: str, values: Mapping[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return text


def _probes(paths: Mapping[str, str]) -> dict[str, Any]:
    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": names.PORT_NAME},
            "periodSeconds": period,
            "failureThreshold": failures,
            "timeoutSeconds": 5,
        }

    return {
        "startupProbe": probe(paths["startupPath"], 1, 600),
        "readinessProbe": probe(paths["readinessPath"], 2, 2),
        "livenessProbe": probe(paths["livenessPath"], 10, 6),
    }
