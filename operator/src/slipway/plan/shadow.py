"""The comparator of a shadow rollout: who needs one, its objects, and what the status tells about it. Pure.

It lives from the moment that a revision comes up until its answers were compared: one small pod and a Service that the gateway copies
requests to. It is no server of the model, so it carries no revision label and no Service of the model leads to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slipway import names
from slipway.api.reasons import Reason
from slipway.plan import traffic
from slipway.plan.diagnose import Problem
from slipway.plan.objects import (
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
from slipway.plan.revisions import is_complete
from slipway.plan.rollout import Phase, Plan, Policy, needs_shadow
from slipway.snapshot import Config, DeploymentSnapshot, Manifest

PORT = 8080
RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}


def comparator_of(resource: Manifest, plan: Plan, policy: Policy, revisions: Sequence[str]) -> str | None:
    """Return the name of the comparator that should be there; None when nothing is to be compared, or nobody to compare with.

    Args:
        resource: the ModelDeployment.
        plan: what this pass decided.
        policy: the user's wish.
        revisions: those with a Deployment.
    """
    rollout = plan.rollout
    if rollout is None or plan.stable is None or rollout.revision not in revisions or not needs_shadow(rollout, policy):
        return None
    return names.shadow_name(name_of(resource), plan.stable, rollout.revision)


def mirror_of(resource: Manifest, plan: Plan) -> str | None:
    """Return the Service that requests are copied to now."""
    rollout = plan.rollout
    if rollout is None or rollout.phase is not Phase.SHADOWING or plan.stable is None:
        return None
    return names.shadow_name(name_of(resource), plan.stable, rollout.revision)


def is_ready(snapshot: DeploymentSnapshot, stable: str | None, target: str) -> bool:
    """Say whether the comparator of these two revisions is up."""
    wanted = names.shadow_name(name_of(snapshot.resource), stable or "", target)
    return any(name_of(d) == wanted and is_complete(d, 1) for d in snapshot.comparators)


def objects(resource: Manifest, plan: Plan, artifact: Manifest | None, config: Config) -> tuple[dict[str, Any], ...]:
    """Return Deployment and Service of the comparator of stable and the revision that comes; `artifact` has its golden inputs."""
    stable, canary = plan.stable or "", plan.rollout.revision if plan.rollout is not None else ""
    name, deployment = names.shadow_name(name_of(resource), stable, canary), name_of(resource)
    labels = names.labels(deployment, names.COMPARATOR, deployment=deployment)
    selector = {names.DEPLOYMENT: deployment, names.COMPONENT: names.COMPARATOR, names.COMPARES: name}
    metadata = {"name": name, "namespace": resource["metadata"]["namespace"], "labels": labels, "ownerReferences": [owner(resource)]}
    pod: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 15,
        "securityContext": pod_security_context(),
        "containers": [_container(resource, (stable, canary), artifact, config)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "registry-credentials", **secret_source(config.registry_secret)},
            *verification(_keys_of(artifact)).volumes,
        ],
    }
    if config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in config.image_pull_secrets]
    made = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": labels | selector, "annotations": scraped(PORT, names.METRICS_PATH, config)}, "spec": pod},
        },
    }
    service = traffic.service(resource, name, selector)
    http = [port for port in service["spec"]["ports"] if port["name"] == names.PORT_NAME]
    return made, {**service, "spec": {**service["spec"], "ports": http}}


def _container(resource: Manifest, pair: tuple[str, str], artifact: Manifest | None, config: Config) -> dict[str, Any]:
    namespace, wish = resource["metadata"]["namespace"], resource["spec"]["rollout"]["shadow"]
    arguments = ["shadow", f"--model-name={name_of(resource)}", f"--percent={wish.get('percent', 100)}", f"--port={PORT}"]
    for side, revision in zip(("stable", "canary"), pair, strict=True):
        arguments += [f"--{side}=http://{revision}.{namespace}.svc:{traffic.SERVICE_PORT}", f"--{side}-revision={revision}"]
    source = status_of(artifact) if artifact is not None else {}
    if source.get("repository") and source.get("digest"):
        arguments += [f"--repository={source['repository']}", f"--digest={source['digest']}"]
    probe = {"httpGet": {"path": "/v2/health/ready", "port": names.PORT_NAME}, "periodSeconds": 2}
    keys = verification(_keys_of(artifact))
    rows = [("tmp", "/tmp", False), ("registry-credentials", "/var/run/slipway/registry-credentials", True)]  # noqa: S108
    return {
        "name": names.COMPARATOR,
        "image": config.runtime_image,
        "command": ["slipway-runtime", *arguments],
        "env": env({"SLIPWAY_PLAIN_HTTP": ",".join(config.plain_http), **keys.variables}),
        "ports": [{"name": names.PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": probe,
        "resources": RESOURCES,
        "securityContext": security_context(),
        "volumeMounts": mounts([*rows, *keys.mounts]),
    }


def _keys_of(artifact: Manifest | None) -> str | None:
    """Return the Secret whose key signed the golden inputs; None for an artifact from before signing, which may still be the canary."""
    return artifact["spec"].get("signingSecret") if artifact is not None else None


def condition(resource: Manifest, policy: Policy) -> tuple[bool, Problem] | None:
    """Return whether requests of users can be compared, and why; None when nothing is to be."""
    if policy.shadow is None:
        return None
    if policy.has_gateway:
        return True, Problem(Reason.UP_TO_DATE, "the gateway copies requests to a comparator before the first step of a rollout")
    probes = probes_of(resource)
    instead = (
        "golden inputs are compared instead" if probes else "so nothing is; analysis.onInsufficientTraffic: Probe compares golden inputs"
    )
    return False, Problem(Reason.GATEWAY_REQUIRED, f"without a gateway no requests of users are compared, {instead}")


def probes_of(resource: Mapping[str, Any]) -> bool:
    """Say whether golden inputs are sent while requests are lacking."""
    analysis = (resource["spec"].get("rollout") or {}).get("analysis") or {}
    return analysis.get("onInsufficientTraffic") == "Probe"
