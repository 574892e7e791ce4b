"""What keeps a pod from doing its work, as a reason: read from container states, exit codes and termination messages.

Pure: it only reads manifests. Every way in which a pod can fail that users meet has a row in `tests/unit/operator/test_diagnose.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from slipway import names
from slipway.api.modelartifact import CandidateStatus
from slipway.api.reasons import REASONS, Reason, reason_for_exit_code
from slipway.plan.objects import condition, label, name_of, status_of
from slipway.snapshot import Manifest

# What a pod can do that tells against its model rather than against its node or the registry.
MODEL_FAULTS = frozenset(
    {
        Reason.PODS_CRASHING,
        Reason.OUT_OF_MEMORY,
        Reason.MODEL_LOAD_FAILED,
        Reason.GOLDEN_MISMATCH,
        Reason.INVALID_ARGUMENTS,
        Reason.MODEL_STUCK,
    }
)
_PULL_REASONS = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_INT64 = 2**63
_PROGRESS = {
    "fetch": Reason.FETCHING,
    "convert": Reason.CONVERTING,
    "validate": Reason.VALIDATING,
    names.PUBLISH: Reason.PUBLISHING,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something does not work; `container` and `exit_code` where a container said so."""

    reason: Reason
    message: str
    exit_code: int | None = None
    container: str | None = None

    @property
    def is_retried(self) -> bool:
        """Whether the same work may succeed later without a change of the spec."""
        return REASONS[self.reason].retried

    def as_failure(self) -> dict[str, Any]:
        """Return the problem as `status.lastFailure`."""
        values = {
            "reason": str(self.reason),
            "message": self.message[:1024],
            "exitCode": self.exit_code,
            "container": self.container,
        }
        return {key: value for key, value in values.items() if value is not None}


def termination(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object in a terminated container's message, or an empty one."""
    try:
        message = json.loads(state.get("message") or "{}")
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def container_statuses(pod: Manifest) -> list[Mapping[str, Any]]:
    """Return the statuses of all containers, in the order they run."""
    status = status_of(pod)
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def pod_problem(pod: Manifest) -> Problem | None:
    """Return what is wrong with a pod, or None while it may still come up by itself."""
    status = status_of(pod)
    if status.get("reason") == "Evicted":
        return Problem(Reason.EVICTED, f"pod {name_of(pod)} was evicted: {status.get('message', '')}")
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return _unschedulable(scheduled)
    found = (_container_problem(pod, container) for container in container_statuses(pod))
    return next((problem for problem in found if problem is not None), None)


def _unschedulable(scheduled: Mapping[str, Any]) -> Problem:
    message = str(scheduled.get("message", ""))
    is_claim = "persistentvolumeclaim" in message and "not found" in message
    return Problem(Reason.SOURCE_MISSING if is_claim else Reason.INSUFFICIENT_RESOURCES, f"no node can run the pod: {message}")


def _container_problem(pod: Manifest, container: Mapping[str, Any]) -> Problem | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    if "waiting" in state:
        problem = _waiting_problem(container["name"], state["waiting"])
        if problem is not None:
            return problem
    ended = state.get("terminated") or (last.get("terminated") if not container.get("ready") else None)
    return _exit_problem(pod, container, ended) if ended and ended.get("exitCode") != 0 else None


def _waiting_problem(container: str, waiting: Mapping[str, Any]) -> Problem | None:
    reason, message = waiting.get("reason"), waiting.get("message", "")
    if reason in _PULL_REASONS:
        return Problem(Reason.IMAGE_PULL_FAILED, f"image of container {container} cannot be pulled: {message or reason}", None, container)
    if reason == "CreateContainerConfigError":
        is_secret = "secret" in message
        return Problem(Reason.CREDENTIALS_MISSING if is_secret else Reason.SOURCE_MISSING, message, None, container)
    return None


def _exit_problem(pod: Manifest, container: Mapping[str, Any], ended: Mapping[str, Any]) -> Problem:
    name, code, said = container["name"], ended.get("exitCode"), termination(ended)
    in_job = label(pod, names.COMPONENT) == "converter"
    if ended.get("reason") == "OOMKilled":
        reason = Reason.CONVERSION_OUT_OF_MEMORY if in_job else Reason.OUT_OF_MEMORY
        return Problem(reason, f"container {name} needed more memory than its limit", code, name)
    reason_said = said.get("reason") if said.get("reason") in set(Reason) else None
    reason = Reason(reason_said) if reason_said else (reason_for_exit_code(int(code or 0)) if in_job else None) or _unknown(in_job)
    restarts = container.get("restartCount", 0)
    default = f"container {name} ended with exit code {code}" + (f" after {restarts} restarts" if restarts else "")
    return Problem(reason, str(said.get("message") or default), code, name)


def _unknown(in_job: bool) -> Reason:
    return Reason.INTERNAL_ERROR if in_job else Reason.PODS_CRASHING


def workload_problem(deployment: Manifest, pods: Sequence[Manifest]) -> Problem | None:
    """Return what keeps a revision's Deployment from its size: what the pods say, else what the Deployment says."""
    problems = (pod_problem(pod) for pod in sorted(pods, key=name_of) if not pod["metadata"].get("deletionTimestamp"))
    first = next((problem for problem in problems if problem is not None), None)
    failure = condition(deployment, "ReplicaFailure")
    if first is None and failure is not None and failure.get("status") == "True":
        return refused(str(failure.get("message", "")))
    progressing = condition(deployment, "Progressing")
    if first is None and progressing is not None and progressing.get("reason") == "ProgressDeadlineExceeded":
        return Problem(Reason.PROGRESS_DEADLINE_EXCEEDED, str(progressing.get("message", "")))
    return first


def refused(message: str) -> Problem:
    """Return why the API server refused to make a pod."""
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in message or "quota" in message else Reason.ADMISSION_REJECTED
    return Problem(reason, message)


def job_state(job: Manifest) -> str:
    """Return `Active`, `Succeeded` or `Failed`."""
    if (condition(job, "Complete") or {}).get("status") == "True":
        return "Succeeded"
    return "Failed" if (condition(job, "Failed") or {}).get("status") == "True" else "Active"


def job_progress(pods: Iterable[Manifest], warnings: Sequence[str]) -> Problem:
    """Return where an active Job stands: the container that runs now, or what it waits for."""
    for pod in pods:
        problem = pod_problem(pod)
        if problem is not None:
            return problem
        for container in reversed(container_statuses(pod)):
            if "running" in (container.get("state") or {}) and container["name"] in _PROGRESS:
                step = names.PIPELINE.index(container["name"]) + 1
                return Problem(_PROGRESS[container["name"]], f"step {step} of {len(names.PIPELINE)}: {container['name']} is running")
        return Problem(Reason.PENDING, f"pod {name_of(pod)} is starting")
    return refused(warnings[-1]) if warnings else Problem(Reason.PENDING, "the conversion Job was made; its pod is not there yet")


def job_failure(job: Manifest, pods: Iterable[Manifest]) -> Problem:
    """Return why a failed Job failed."""
    for pod in pods:
        problem = pod_problem(pod)
        if problem is not None:
            return problem
    failed = condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        return Problem(Reason.CONVERSION_TIMEOUT, str(failed.get("message", "the Job ran past its deadline")))
    return Problem(Reason.INTERNAL_ERROR, f"the conversion Job failed and left no reason: {failed.get('message', '')}")


def rejected(pods: Iterable[Manifest]) -> list[dict[str, Any]]:
    """Return the candidates of a container that failed because none of them passed; empty when it failed for another reason.

    Model code can write such a message too, so a row that the CRD would refuse is left out: it would make the status unwritable.
    """
    for pod in pods:
        for container in container_statuses(pod):
            ended = (container.get("state") or {}).get("terminated") or {}
            rows = termination(ended).get("candidates") if ended.get("exitCode") else None
            if isinstance(rows, list):
                return [found for row in rows for found in _valid_row(row)]
    return []


def _valid_row(row: object) -> list[dict[str, Any]]:
    try:
        found = CandidateStatus.model_validate(row, strict=True).model_dump(by_alias=True, exclude_none=True)
    except ValidationError:
        return []
    return [found] if all(abs(value) < _INT64 for value in found.values() if isinstance(value, int)) else []


def published(pods: Iterable[Manifest]) -> dict[str, Any] | None:
    """Return what `publish` reported, or None when its pod is gone or said nothing."""
    for pod in pods:
        for container in container_statuses(pod):
            ended = (container.get("state") or {}).get("terminated")
            if container["name"] == names.PUBLISH and ended and ended.get("exitCode") == 0:
                said = termination(ended)
                if said.get("artifactDigest"):
                    return said
    return None
