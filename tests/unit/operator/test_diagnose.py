"""Rows: what a pod looks like, and the reason that a user is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipway.plan.diagnose import pod_problem, refused, rejected
from unit.operator.world import container


def pod(component: str, *containers: dict[str, Any], **status: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": component}
    return {"metadata": {"name": "p", "labels": labels}, "status": {"containerStatuses": list(containers), **status}}


def said(reason: str) -> str:
    return json.dumps({"reason": reason, "message": "what happened"})


def unschedulable(message: str) -> dict[str, Any]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}


ROWS = [
    ("running", pod("server", container("server", running={})), None),
    ("starting", pod("server", container("server", waiting={"reason": "ContainerCreating"})), None),
    ("image", pod("server", container("server", waiting={"reason": "ImagePullBackOff"})), "ImagePullFailed"),
    ("image name", pod("server", container("server", waiting={"reason": "InvalidImageName"})), "ImagePullFailed"),
    (
        "secret",
        pod("server", container("server", waiting={"reason": "CreateContainerConfigError", "message": 'secret "a" not found'})),
        "CredentialsMissing",
    ),
    ("no cpu", pod("server", **unschedulable("0/3 nodes are available: 3 Insufficient cpu.")), "InsufficientResources"),
    ("no claim", pod("converter", **unschedulable('persistentvolumeclaim "m" not found')), "SourceMissing"),
    ("evicted", pod("server", reason="Evicted", message="disk"), "Evicted"),
    (
        "conversion out of memory",
        pod("converter", container("convert", exit_code=137, terminated={"reason": "OOMKilled"})),
        "ConversionOutOfMemory",
    ),
    ("server out of memory", pod("server", container("server", exit_code=137, terminated={"reason": "OOMKilled"})), "OutOfMemory"),
    ("said", pod("converter", container("convert", exit_code=21, message=said("EntrypointFailed"))), "EntrypointFailed"),
    ("exit code alone", pod("converter", container("convert", exit_code=23)), "WeightsMismatch"),
    ("unknown exit code", pod("converter", container("convert", exit_code=99)), "InternalError"),
    ("message that is no JSON", pod("converter", container("fetch", exit_code=13, message="oops")), "DigestMismatch"),
    ("reason that we do not know", pod("converter", container("fetch", exit_code=11, message=said("Weird"))), "SourceUnreachable"),
    ("crash", pod("server", container("server", exit_code=1)), "PodsCrashing"),
    ("stuck", pod("server", container("server", exit_code=65, message=said("ModelStuck"))), "ModelStuck"),
    ("corrupt artifact", pod("server", container("pull", exit_code=60, message=said("ArtifactCorrupt"))), "ArtifactCorrupt"),
    ("not signed", pod("server", container("pull", exit_code=66, message=said("ProvenanceUnverified"))), "ProvenanceUnverified"),
    ("no key", pod("converter", container("publish", exit_code=52)), "SigningKeyUnusable"),
    ("golden outputs differ", pod("server", container("server", exit_code=63, message=said("GoldenMismatch"))), "GoldenMismatch"),
]


@pytest.mark.parametrize(("manifest", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_pod(manifest: dict[str, Any], reason: str | None) -> None:
    problem = pod_problem(manifest)
    assert (None if problem is None else str(problem.reason)) == reason


def test_a_crash_that_is_over_is_no_problem() -> None:
    state = container("server", running={})
    state |= {"ready": True, "lastState": {"terminated": {"exitCode": 1}}}
    assert pod_problem(pod("server", state)) is None


def test_a_restarting_container_tells_its_last_exit() -> None:
    state = container("server", waiting={"reason": "CrashLoopBackOff"})
    state |= {"restartCount": 3, "lastState": {"terminated": {"exitCode": 62, "message": said("ModelLoadFailed")}}}
    problem = pod_problem(pod("server", state))
    assert problem is not None
    assert problem.reason == "ModelLoadFailed"
    assert problem.message == "what happened"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: q, requested: cpu=1', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "AdmissionRejected"),
    ],
)
def test_refused(message: str, reason: str) -> None:
    assert refused(message).reason == reason


ROW = {"target": "ONNX", "precision": "Int8Static", "verdict": "Failed", "reason": "ParityFailed", "message": "off", "seconds": "0.5"}


@pytest.mark.parametrize(
    ("name", "message", "rows"),
    [
        ("none passed", {"candidates": [ROW, {**ROW, "verdict": "Unavailable"}]}, [ROW, {**ROW, "verdict": "Unavailable"}]),
        ("another failure", {"reason": "SourceNotFound"}, []),
        ("no list", {"candidates": 7}, []),
        ("an unknown verdict, which the CRD refuses", {"candidates": [{**ROW, "verdict": "Perfect"}, ROW]}, [ROW]),
        ("a float, which the CRD refuses", {"candidates": [{**ROW, "seconds": 0.5}]}, []),
        ("a number beyond int64", {"candidates": [{**ROW, "sizeBytes": 2**63}]}, []),
        ("no row", {"candidates": ["row", None, {}]}, []),
        ("a field that the CRD does not know", {"candidates": [{**ROW, "color": "red"}]}, [ROW]),
    ],
)
def test_the_candidates_of_a_failed_container(name: str, message: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    ended = container("validate", exit_code=40, message=json.dumps(message))
    assert rejected([pod("converter", container("fetch", exit_code=0), ended)]) == rows, name


def test_a_container_that_ended_well_has_rejected_nothing() -> None:
    assert rejected([pod("converter", container("validate", exit_code=0, message=json.dumps({"candidates": [ROW]})))]) == []
