"""What a user reads about a model: the headline, and the tree below it."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from slipway import names
from slipway.cli.tree import View, headline, is_ready, status_tree
from unit.operator.world import World, container, model_deployment


def shown(view: View) -> str:
    console = Console(file=io.StringIO(), width=300, no_color=True)
    console.print(status_tree(view))
    return console.file.getvalue()  # type: ignore[attr-defined]


def view_of(world: World, *pods: dict[str, Any]) -> View:
    resource = world.kind("ModelDeployment")["digits"]
    return View(resource, world.kind("ModelArtifact"), tuple(world.kind("Deployment").values()), (*world.kind("Pod").values(), *pods))


def ready_world() -> World:
    world = World(model_deployment())
    world.settle()
    world.finish_jobs()
    world.settle()
    world.run_pods()
    world.settle()
    return world


def server_pod(revision: str, *containers: dict[str, Any], **status: Any) -> dict[str, Any]:
    labels = {names.REVISION: revision, names.DEPLOYMENT: "digits", names.COMPONENT: "server"}
    return {
        "kind": "Pod",
        "metadata": {"name": f"{revision}-x", "labels": labels},
        "status": {"containerStatuses": list(containers), **status},
    }


def test_nothing_has_happened_yet():
    resource = model_deployment()
    assert headline(resource)[0] == "digits: the operator has not seen it yet"
    assert not is_ready(resource)
    assert "digits" in shown(View(resource))


def test_a_change_that_was_not_seen_is_not_ready():
    resource = ready_world().kind("ModelDeployment")["digits"]
    resource["metadata"]["generation"] += 1
    assert not is_ready(resource)
    assert "has not seen the last change" in headline(resource)[0]


def test_converting_shows_the_containers_of_the_job():
    world = World(model_deployment())
    world.settle()
    mart = next(iter(world.names("ModelArtifact")))
    pod = {
        "kind": "Pod",
        "metadata": {"name": "job-x", "labels": {names.ARTIFACT: mart, names.COMPONENT: "converter"}},
        "status": {"initContainerStatuses": [container("fetch", exit_code=0), container("convert", running={})]},
    }
    text = shown(view_of(world, pod))
    assert "job fetch: done  convert: running  validate: waiting  publish: waiting" in text
    assert mart in text


def test_ready_is_said_first_and_exit_code_zero():
    world = ready_world()
    resource = world.kind("ModelDeployment")["digits"]
    revision = resource["status"]["stable"]["revision"]
    resource["status"]["history"] = [{"revision": "digits-old", "outcome": "Served", "reason": "RevisionSuperseded"}]
    mart = world.kind("ModelArtifact")[resource["status"]["stable"]["artifact"]]
    mart["status"]["provenance"] = {"predicateType": "https://slsa.dev/provenance/v1", "signedBy": "3f9a" * 16}
    mart["status"]["candidates"] = [
        {
            **{"target": "ONNX", "precision": "Float32", "verdict": "Passed", "maxAbsoluteError": "1e-06"},
            **{"top1AgreementPercent": 100, "accuracyPercent": "98.9", "sizeBytes": 45678},
        },
        {
            **{"target": "TorchScript", "precision": "Float32", "method": "Script", "verdict": "Passed", "maxAbsoluteError": "0"},
            **{"latencyP50": "0.21ms", "throughput": "5120", "peakMemory": "143Mi"},
        },
    ]
    server = container("server", running={}) | {"ready": True}
    text = shown(view_of(world, server_pod(revision, container("pull", exit_code=0), server, phase="Running")))
    assert is_ready(resource)
    assert headline(resource) == (f"digits is Ready: revision {revision} serves with 1 replicas", "")
    assert f"stable {revision}  ONNX  100 %  1/1 pods ready" in text
    assert "signed by 3f9a3f9a3f9a…" in text
    assert "candidate ONNX Float32  Passed  max error 1e-06, top-1 100 %, accuracy 98.9 %  45,678 bytes" in text
    assert "candidate TorchScript Float32 Script  Passed  max error 0, p50 0.21ms, throughput 5120/s, memory 143Mi" in text
    assert "pull: done  server: ready" in text
    assert "earlier digits-old  Served" in text


def test_a_rollout_shows_its_step_its_real_share_and_what_was_measured():
    world = ready_world()
    resource = world.kind("ModelDeployment")["digits"]
    resource["status"]["stable"] |= {"weight": 90, "share": 75}
    metric = {"name": "error-rate", "verdict": "Fail", "value": "0.2", "baseline": "0.001", "samples": 500, "message": "limit 0.01"}
    resource["status"]["canary"] = {
        **{"revision": "digits-2", "weight": 10, "share": 25, "phase": "Progressing", "step": 1},
        **{"stepStartedAt": "2026-11-24T12:00:00Z", "metrics": [metric]},
    }
    text = shown(view_of(world))
    assert "90 % (really 75 %)" in text
    assert "rollout Progressing  step 1  since 2026-11-24T12:00:00Z" in text
    assert "metric error-rate  Fail  0.2, stable 0.001 over 500 requests  limit 0.01" in text
    resource["status"]["canary"] |= {"phase": "RolledBack", "reason": "AnalysisFailed", "message": "error-rate is 0.2"}
    assert "AnalysisFailed: error-rate is 0.2" in shown(view_of(world))


def test_a_failed_conversion_names_the_reason_once_and_what_to_do():
    world = World(model_deployment())
    world.settle()
    world.fail_jobs("convert", 23, "WeightsMismatch", "fc.weight is [3, 4], the module wants [3, 5]")
    world.settle()
    text, advice = headline(world.kind("ModelDeployment")["digits"])
    assert text.startswith("digits is not ready: WeightsMismatch: fc.weight is [3, 4]")
    assert "Next:" not in text
    assert advice
    for pod in world.kind("Pod").values():
        pod["metadata"]["labels"][names.ARTIFACT] = next(iter(world.names("ModelArtifact")))
    assert "convert: WeightsMismatch (exit code 23)" in shown(view_of(world))


def test_a_candidate_that_failed_says_why():
    from slipway.cli.tree import candidate_line  # noqa: PLC0415

    row = {"target": "ONNX", "precision": "Float32", "verdict": "Failed", "reason": "ParityFailed", "message": "off by 3"}
    assert candidate_line(row).plain == "candidate ONNX Float32  Failed  ParityFailed: off by 3"


def test_pods_that_crash_or_wait():
    world = ready_world()
    revision = world.kind("ModelDeployment")["digits"]["status"]["stable"]["revision"]
    said = json.dumps({"reason": "GoldenMismatch", "message": "m"})
    crashing = container("server", waiting={"reason": "CrashLoopBackOff"}) | {
        "lastState": {"terminated": {"exitCode": 63, "message": said}},
    }
    assert "server: CrashLoopBackOff: GoldenMismatch (exit code 63)" in shown(view_of(world, server_pod(revision, crashing)))
    pending = server_pod(revision, phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "no cpu"}])
    assert "no cpu" in shown(view_of(world, pending))
