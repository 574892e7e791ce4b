"""What a ModelArtifact needs: its manifest, and the Job that fetches, converts, validates and publishes the model.

The four containers share a pod but not their privileges: `fetch` and `publish` hold credentials and run no model code; `convert` and
`validate` run model code and hold nothing; `publish` alone has the key that signs. Secrets and ConfigMaps are mounted as optional, so
that a missing one is an exit code with a reason and not a pod that hangs in ContainerCreating.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slipway import names
from slipway.plan import accelerator
from slipway.plan.objects import (
    KEYS_DIR,
    PRIVATE_KEY,
    PUBLIC_KEY,
    VERIFICATION_KEY,
    env,
    key_volume,
    mounts,
    name_of,
    owner,
    pod_security_context,
    secret_source,
    security_context,
)
from slipway.snapshot import Config, Manifest

DEFAULT_TIMEOUT = "10m"
WORK_LIMIT = "32Gi"
LIGHT = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
HEAVY = {"requests": {"cpu": "250m", "memory": "768Mi"}, "limits": {"memory": "4Gi"}}
_KEYS = {"fetch": VERIFICATION_KEY, names.PUBLISH: "signing-key"}  # volumes; the other containers get no key
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float:
    """Return a duration such as `1h30m`, `90s` or `250ms` in seconds.

    Raises:
        ValueError: the text is not a duration.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration; write for example 90s, 10m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def artifact_spec(spec: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return the spec of the ModelArtifact that a ModelDeployment's spec asks for."""
    shared = {key: spec[key] for key in ("model", "signature", "conversion") if spec.get(key)}
    wish = accelerator.for_conversion(spec)
    size = (((spec.get("serving") or {}).get("batching")) or {}).get("maxBatchSize")
    # no other objective depends on it, and a change of serving alone should not convert anew
    is_asked = size and (spec.get("conversion") or {}).get("objective") == "Throughput"
    more = ({"accelerator": dict(wish)} if wish else {}) | ({"maxBatchSize": size} if is_asked else {})
    signed = {"signingSecret": config.signing_secret} if config.signing_secret else {}  # what was made before signing is another artifact
    return shared | more | {"converterImage": config.converter_image} | signed


def artifact_manifest(namespace: str, spec: Mapping[str, Any], owners: Sequence[Mapping[str, Any]], version: str | None) -> dict[str, Any]:
    """Return the ModelArtifact; `version` guards its owners, which several ModelDeployments may write."""
    name = names.artifact_name(spec)
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "labels": names.labels(name, "artifact"),
        "ownerReferences": [dict(reference) for reference in owners],
    }
    if version is not None:
        metadata["resourceVersion"] = version
    return {"apiVersion": names.API_VERSION, "kind": "ModelArtifact", "metadata": metadata, "spec": dict(spec)}


def conversion_job(artifact: Manifest, attempt: int, config: Config) -> dict[str, Any]:
    """Return the Job of one attempt at building the artifact."""
    name = name_of(artifact)
    timeout = seconds((artifact["spec"].get("conversion") or {}).get("timeout", DEFAULT_TIMEOUT))
    labels = names.labels(name, "converter", artifact=name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.job_name(name, attempt),
            "namespace": artifact["metadata"]["namespace"],
            "labels": labels,
            "ownerReferences": [owner(artifact)],
        },
        "spec": {
            "backoffLimit": 0,  # the operator retries, with backoff and only what may get better
            "activeDeadlineSeconds": int(2 * timeout) + 3600,
            "template": {"metadata": {"labels": labels}, "spec": _pod(artifact, timeout, config)},
        },
    }


def _pod(artifact: Manifest, timeout: float, config: Config) -> dict[str, Any]:
    containers = [_container(step, artifact, timeout, config) for step in names.PIPELINE]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(),
        "initContainers": containers[:-1],
        "containers": containers[-1:],
        "volumes": _volumes(artifact["spec"], config),
    }
    if config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in config.image_pull_secrets]
    # validate loads what convert built, so both get the devices; they run one after the other and hold the same ones
    return accelerator.equipped(pod, {"convert", "validate"}, artifact["spec"].get("accelerator"), name_of(artifact))


def conversion_claims(artifact: Manifest) -> dict[str, Any] | None:
    """Return the ResourceClaimTemplate of the artifact's Jobs, or None when they need none."""
    name = name_of(artifact)
    return accelerator.claim_template(artifact, name, names.labels(name, "converter", artifact=name), artifact["spec"].get("accelerator"))


def _container(step: str, artifact: Manifest, timeout: float, config: Config) -> dict[str, Any]:
    conversion = artifact["spec"].get("conversion") or {}
    runs_model_code = step in ("convert", "validate")
    return {
        "name": step,
        "image": artifact["spec"].get("converterImage", config.converter_image),
        "command": ["slipway-runtime", step],
        "env": env(_environment(artifact, timeout, config) | _signing(step, artifact)),
        "resources": conversion.get("resources") or HEAVY if runs_model_code else LIGHT,
        "securityContext": security_context(),
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts(_mounts(step, artifact)),
    }


def _environment(artifact: Manifest, timeout: float, config: Config) -> dict[str, str]:
    return {
        "SLIPWAY_ARTIFACT_SPEC": json.dumps(artifact["spec"], sort_keys=True),
        "SLIPWAY_REPOSITORY": f"{config.registry}/{artifact['metadata']['namespace']}",
        "SLIPWAY_PLAIN_HTTP": ",".join(config.plain_http),
        "SLIPWAY_TIMEOUT_SECONDS": f"{timeout:g}",
        "SLIPWAY_MAX_SOURCE_BYTES": str(config.max_source_bytes),
        "SLIPWAY_WORK": "/work",
    }


def _signing(step: str, artifact: Manifest) -> dict[str, str]:
    secret = artifact["spec"].get("signingSecret")
    return {"SLIPWAY_SIGNING_SECRET": secret} if secret and step in _KEYS else {}


def _mounts(step: str, artifact: Manifest) -> list[tuple[str, str, bool]]:
    rows = [("tmp", "/tmp", False), ("source", "/work/source", step != "fetch")]  # noqa: S108 - the container's own volume
    if step != "fetch":
        rows.append(("candidates", "/work/candidates", step != "convert"))
    if step != "convert":
        rows.append(("report", "/work/report", False))
    if step in ("fetch", names.PUBLISH):
        rows.append(("registry-credentials", "/var/run/slipway/registry-credentials", True))
    if _signing(step, artifact):
        rows.append((_KEYS[step], KEYS_DIR, True))
    if step == "fetch":
        rows += [("source-credentials", "/var/run/slipway/source-credentials", True), ("origin", "/source", True)]
    return rows


def _volumes(spec: Mapping[str, Any], config: Config) -> list[dict[str, Any]]:
    model, keys = spec["model"], spec.get("signingSecret")
    scratch = [{"name": name, "emptyDir": {"sizeLimit": WORK_LIMIT}} for name in ("tmp", "source", "candidates", "report")]
    credentials = (model.get("credentialsSecretRef") or {}).get("name")
    return [
        *scratch,
        {"name": "registry-credentials", **secret_source(config.registry_secret)},
        {"name": "source-credentials", **secret_source(credentials)},
        {"name": "origin", **_origin(model["uri"])},
        *([key_volume(_KEYS["fetch"], keys, PUBLIC_KEY), key_volume(_KEYS[names.PUBLISH], keys, PRIVATE_KEY, PUBLIC_KEY)] if keys else ()),
    ]


def _origin(uri: str) -> dict[str, Any]:
    scheme, _, rest = uri.partition("://")
    name = rest.partition("/")[0]
    if scheme == "configmap":
        return {"configMap": {"name": name, "optional": True}}
    if scheme == "pvc":
        return {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
    return {"emptyDir": {}}
