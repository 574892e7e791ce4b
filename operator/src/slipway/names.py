"""Every name, label and annotation that Slipway uses, and the hashes that names are made of.

Nothing else may spell out a label or build an object's name: what finds an object again after a crash is its name alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

GROUP = "slipway.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "slipway"
HANDOVER_MANAGER = "slipway-autoscaling"  # holds a size between us and the autoscaler

MANAGED_BY = "app.kubernetes.io/managed-by"
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
DEPLOYMENT = f"{GROUP}/deployment"
REVISION = f"{GROUP}/revision"
ARTIFACT = f"{GROUP}/artifact"
ROLE = f"{GROUP}/role"

RECONCILE = f"{GROUP}/reconcile"  # annotation: "disabled" takes the operator's hands off
POD_TEMPLATE = f"{GROUP}/pod-template"  # annotation: the pod template as it was rendered for this revision
DIGEST = f"{GROUP}/artifact-digest"  # annotation: what the revision serves
FORMAT = f"{GROUP}/format"  # annotation
ACCELERATOR = f"{GROUP}/accelerator"  # annotation of a pod template: spec.accelerator as it was rendered
MANIFEST = f"{GROUP}/manifest"  # annotation of a shipped ServingRuntime: hash of the chart's manifest
SHAPE = f"{GROUP}/shape"  # annotation: the part of the spec that the revision was made of, so that one can go back to it
STABLE = f"{GROUP}/stable"  # annotation of the stable Service: which revision is stable
EXPOSED = f"{GROUP}/exposed"  # annotation of the stable Service: the other revision that it leads to, while there is one
COMPARES = f"{GROUP}/compares"  # label of a comparator's pods: its name
PROMOTE = f"{GROUP}/promote"  # annotation: a revision, all the way; or <revision>/<n>, past its step n, counted from 1
ABORT = f"{GROUP}/abort"  # annotation: a revision to give up
GARBAGE = f"{GROUP}/garbage-since"  # annotation of the embedded registry: when blobs were left behind that a restart frees
FREED = f"{GROUP}/freed-at"  # annotation of its pod template: when the operator last restarted it for that
METRICS_PATH = "/metrics"
SCRAPE = "prometheus.io/scrape"  # annotations of a pod, by the convention of Prometheus' own example configuration
SCRAPE_PORT = "prometheus.io/port"
SCRAPE_PATH = "prometheus.io/path"

SELECTOR = f"{MANAGED_BY}={FIELD_MANAGER}"
MAX_LABEL = 63  # of a label's value and of a Service's name (RFC 1123)

PORT_NAME = "http"
GRPC_PORT_NAME = "grpc"
METRICS_PORT_NAME = "metrics"  # of a server whose metrics have a port of their own
PUBLISH = "publish"
PIPELINE = ("fetch", "convert", "validate", PUBLISH)
SERVER = "server"
COMPARATOR = "comparator"  # component and container
PULL = "pull"


def digest_of(value: object) -> str:
    """Return the sha256 (64 hex digits) of a JSON value in canonical form: sorted keys, no blanks."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def artifact_name(artifact_spec: Mapping[str, Any]) -> str:
    """Name a ModelArtifact by what its spec says, so that equal specs share one."""
    return f"mart-{digest_of(artifact_spec)[:12]}"


def revision_name(deployment: str, shape: Mapping[str, Any]) -> str:
    """Name a revision `<deployment>-<8 hex>`; a name too long for a label is cut, and the hash then covers the whole of it."""
    room = MAX_LABEL - 9
    hashed: object = shape if len(deployment) <= room else [deployment, shape]
    return f"{deployment[:room].rstrip('-')}-{digest_of(hashed)[:8]}"


def revision_pattern(deployment: str) -> str:
    """Return a regular expression that matches the names of all revisions of a deployment."""
    return re.escape(deployment[: MAX_LABEL - 9].rstrip("-")) + "-[0-9a-f]{8}"


def job_name(artifact: str, attempt: int) -> str:
    """Name the Job of one attempt, counted from 1, so that an attempt is never started twice."""
    return f"{artifact}-{attempt}"


def shadow_name(deployment: str, stable: str, canary: str) -> str:
    """Name the comparator of two revisions: its Deployment and Service."""
    return f"{deployment[: MAX_LABEL - 16].rstrip('-')}-shadow-{digest_of([stable, canary])[:8]}"


def shadow_pattern(deployment: str) -> str:
    """Return a regular expression that matches the names of all comparators of a deployment."""
    return re.escape(deployment[: MAX_LABEL - 16].rstrip("-")) + "-shadow-[0-9a-f]{8}"


def experiments_route(deployment: str) -> str:
    """Name the HTTPRoute of A/B experiments; with a dot, which no ModelDeployment's own route has in its name."""
    return f"{deployment}.experiments"


def stable_url(name: str, namespace: str) -> str:
    """Return the address of a ModelDeployment's stable Service inside the cluster."""
    return f"http://{name}.{namespace}.svc"


def labels(name: str, component: str, **more: str) -> dict[str, str]:
    """Return the labels that every owned object carries; `more` maps deployment, revision, artifact or role to a value."""
    return {
        NAME: name[:MAX_LABEL].rstrip("-."),
        MANAGED_BY: FIELD_MANAGER,
        COMPONENT: component,
        **{f"{GROUP}/{key}": value for key, value in more.items()},
    }
