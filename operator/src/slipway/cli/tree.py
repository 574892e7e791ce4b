"""What `slipway status` shows: from the objects of a cluster to a tree of text. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text
from rich.tree import Tree

from slipway import names
from slipway.api.reasons import REASONS, Reason
from slipway.plan.diagnose import container_statuses, termination
from slipway.plan.objects import condition, is_true, label, name_of, status_of
from slipway.snapshot import Manifest

NEXT = " Next: "
GOOD, BAD, BUSY = "green", "red", "yellow"


@dataclass(frozen=True, slots=True)
class View:
    """The objects that a ModelDeployment's status is about."""

    resource: Manifest
    artifacts: Mapping[str, Manifest] = field(default_factory=dict)
    deployments: tuple[Manifest, ...] = ()
    pods: tuple[Manifest, ...] = ()  # of the servers and of the conversion Jobs

    def servers(self, revision: str) -> list[Manifest]:
        """Return the pods of a revision, by name."""
        return sorted((pod for pod in self.pods if label(pod, names.REVISION) == revision), key=name_of)

    def converters(self, artifact: str) -> list[Manifest]:
        """Return the pods of an artifact's Jobs, the newest first."""
        found = [pod for pod in self.pods if label(pod, names.ARTIFACT) == artifact and label(pod, names.COMPONENT) == "converter"]
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def is_ready(resource: Manifest) -> bool:
    """Say whether the present spec is served in full."""
    found = condition(resource, "Ready") or {}
    return is_true(resource, "Ready") and found.get("observedGeneration") == resource["metadata"].get("generation", 1)


def headline(resource: Manifest) -> tuple[str, str]:
    """Return THE one thing to know, and what to do next (empty when there is nothing to do)."""
    name, found = name_of(resource), condition(resource, "Ready")
    if found is None:
        return f"{name}: the operator has not seen it yet", "check that it runs: kubectl -n slipway-system get pods"
    if found.get("observedGeneration") != resource["metadata"].get("generation", 1):
        return f"{name}: the operator has not seen the last change yet", "wait; if it lasts: kubectl -n slipway-system get pods"
    message, _, advice = str(found.get("message", "")).partition(NEXT)
    if is_ready(resource):
        return f"{name} is Ready: {message}", ""
    reason = str(found.get("reason"))
    known = REASONS[Reason(reason)].fix if reason in set(Reason) else ""
    return f"{name} is not ready: {reason}: {message}", advice or known


def status_tree(view: View) -> Tree:
    """Return deployment → revision → artifact and pods."""
    resource = view.resource
    metadata, status = resource["metadata"], status_of(resource)
    tree = Tree(Text(f"ModelDeployment {metadata.get('namespace', 'default')}/{name_of(resource)}", style="bold"))
    tree.add(_line("model ", (resource["spec"]["model"]["uri"], ""), (_short(_source_digest(status)), "dim")))
    if status.get("url"):
        tree.add(_line("url ", (status["url"], "")))
    for kind in ("Experiments", "Shadow", "Autoscaling"):
        found = condition(resource, kind)
        if found is not None:
            style = GOOD if found["status"] == "True" else BAD
            tree.add(_line(f"{kind.lower()} ", (str(found["reason"]), style), (str(found.get("message", "")).partition(NEXT)[0], "")))
    for role, key in (("stable", "stable"), ("coming", "canary")):
        if status.get(key):
            _add_revision(tree, role, status[key], view)
    for entry in status.get("history") or ():
        tree.add(_line("earlier ", (entry["revision"], ""), (entry["outcome"], "dim"), (entry.get("reason", ""), "dim")))
    return tree


def _source_digest(status: Mapping[str, Any]) -> str:
    return str((status.get("model") or {}).get("sourceDigest", ""))


def _add_revision(tree: Tree, role: str, row: Mapping[str, Any], view: View) -> None:
    revision = str(row["revision"])
    deployment = next((d for d in view.deployments if name_of(d) == revision), None)
    wanted = int(deployment["spec"].get("replicas", 1)) if deployment is not None else 0
    ready = int(row.get("readyReplicas", 0))
    count = f"{ready}/{wanted} pods ready" if deployment is not None else "no pods yet"
    style = GOOD if deployment is not None and ready >= wanted else BUSY
    parts = [(revision, "bold"), (str(row.get("format", "")), ""), (_traffic(row), ""), (count, style)]
    branch = tree.add(_line(f"{role} ", *parts))
    if row.get("phase"):
        branch.add(_rollout_line(row))
    for metric in row.get("metrics") or ():
        branch.add(_metric_line(metric))
    if row.get("artifact"):
        _add_artifact(branch, str(row["artifact"]), view)
    for pod in view.servers(revision):
        _add_pod(branch, pod)


def _traffic(row: Mapping[str, Any]) -> str:
    """Return the wanted share of the traffic, and the real one where it differs."""
    weight, share = row.get("weight", 0), row.get("share")
    return f"{weight} %" if share in (None, weight) else f"{weight} % (really {share} %)"


def _rollout_line(row: Mapping[str, Any]) -> Text:
    phase = str(row["phase"])
    style = {"RolledBack": BAD, "Progressing": GOOD, "Shadowing": GOOD}.get(phase, BUSY)
    since = f"since {row['stepStartedAt']}" if row.get("stepStartedAt") else ""
    why = f"{row['reason']}: {row.get('message', '')}" if row.get("reason") else ""
    return _line("rollout ", (phase, style), (f"step {row['step']}" if row.get("step") else "", ""), (since, "dim"), (why, ""))


def _metric_line(row: Mapping[str, Any]) -> Text:
    verdict = str(row["verdict"])
    style = {"Pass": GOOD, "Fail": BAD}.get(verdict, BUSY)
    against = f", stable {row['baseline']}" if row.get("baseline") else ""
    measured = f"{row['value']}{against} over {row.get('samples', 0)} requests" if row.get("value") else ""
    return _line("metric ", (str(row["name"]), ""), (verdict, style), (measured, ""), (str(row.get("message", "")), "dim"))


def _add_artifact(tree: Tree, name: str, view: View) -> None:
    artifact = view.artifacts.get(name)
    if artifact is None:
        tree.add(_line("artifact ", (name, ""), ("does not exist", BAD)))
        return
    found, status = condition(artifact, "Ready") or {}, status_of(artifact)
    reason, message = str(found.get("reason", "Pending")), str(found.get("message", "")).partition(NEXT)[0]
    style = GOOD if found.get("status") == "True" else (BAD if is_true(artifact, "Stalled") else BUSY)
    signed_by = str((status.get("provenance") or {}).get("signedBy", ""))
    parts = [
        (name, ""),
        (reason, style),
        (_short(str(status.get("digest", ""))), "dim"),
        (signed_by and f"signed by {signed_by[:12]}…", "dim"),
    ]
    branch = tree.add(_line("artifact ", *parts))
    if style != GOOD:
        branch.add(_line("", (message, "")))
        if status.get("retryAt"):
            branch.add(_line("", (f"attempt {status.get('attempts', 0)} failed; the next starts at {status['retryAt']}", BUSY)))
        for pod in view.converters(name)[:1]:
            branch.add(_steps(pod))
    for row in status.get("candidates") or ():
        branch.add(candidate_line(row))


def _steps(pod: Manifest) -> Text:
    """Return the four containers of a conversion on one line."""
    states = {str(status["name"]): status for status in container_statuses(pod)}
    parts = [(f"{step}: {text}", style) for step in names.PIPELINE for text, style in [container_state(states.get(step) or {})]]
    return _line("job ", *parts)


def container_state(status: Mapping[str, Any]) -> tuple[str, str]:
    """Return a container's state in a few words, and its colour."""
    state = status.get("state") or {}
    if "running" in state:
        restarts = status.get("restartCount", 0)
        text = "ready" if status.get("ready") else "running"
        return (f"{text}, {restarts} restarts" if restarts else text), GOOD if status.get("ready") else BUSY
    if "terminated" in state:
        return _ended(state["terminated"])
    waiting = str((state.get("waiting") or {}).get("reason", "waiting"))
    last = (status.get("lastState") or {}).get("terminated")
    if last and last.get("exitCode"):
        return f"{waiting}: {_ended(last)[0]}", BAD
    if waiting == "PodInitializing":  # an earlier container of the pod has not ended
        return "waiting", BUSY
    return waiting, BUSY if waiting in ("waiting", "ContainerCreating") else BAD


def _ended(state: Mapping[str, Any]) -> tuple[str, str]:
    code, said = state.get("exitCode", 0), termination(state)
    if code == 0:
        return "done", GOOD
    reason = said.get("reason") or state.get("reason") or "Error"
    return f"{reason} (exit code {code})", BAD


def candidate_line(row: Mapping[str, Any]) -> Text:
    """Return one row of the candidate table."""
    measured = [
        ("max error", row.get("maxAbsoluteError"), ""),
        ("top-1", row.get("top1AgreementPercent"), " %"),
        ("accuracy", row.get("accuracyPercent"), " %"),
        ("p50", row.get("latencyP50"), ""),
        ("throughput", row.get("throughput"), "/s"),
        ("memory", row.get("peakMemory"), ""),
    ]
    numbers = ", ".join(f"{title} {value}{unit}" for title, value, unit in measured if value is not None)
    size = f"{int(row['sizeBytes']):,} bytes" if row.get("sizeBytes") is not None else ""
    verdict = str(row.get("verdict", ""))
    why = "" if verdict == "Passed" else f"{row.get('reason', '')}: {row.get('message', '')}"
    title = (" ".join(str(row[key]) for key in ("target", "precision", "method") if row.get(key)), "")
    return _line("candidate ", title, (verdict, GOOD if verdict == "Passed" else BAD), (numbers, ""), (size, "dim"), (why, ""))


def _add_pod(tree: Tree, pod: Manifest) -> None:
    status = status_of(pod)
    states = [(f"{row['name']}: {text}", style) for row in container_statuses(pod) for text, style in [container_state(row)]]
    scheduled = condition(pod, "PodScheduled") or {}
    is_stuck = scheduled.get("status") == "False"
    waits = [(str(scheduled.get("message", "")), BAD)] if is_stuck else []
    phase = "Terminating" if pod["metadata"].get("deletionTimestamp") else str(status.get("phase", ""))
    words = states or waits or [(phase, BUSY)]
    if phase in ("Terminating", "Failed") and states:
        words = [*states, (phase, BUSY)]
    tree.add(_line("pod ", (name_of(pod), ""), *words))


def _short(digest: str) -> str:
    return digest[:19] + "…" if len(digest) > 20 else digest


def _line(title: str, *parts: tuple[str, str]) -> Text:
    """Return a line of parts; empty ones are left out."""
    text = Text(title, style="dim")
    for index, (part, style) in enumerate(_filled(parts)):
        text.append("  " if index else "", style="")
        text.append(part, style=style or "not dim")
    return text


def _filled(parts: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((part, style) for part, style in parts if part.strip(" :"))
