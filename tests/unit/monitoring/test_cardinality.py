"""The operator's series are bounded by the models there are, not by the revisions there were."""

from __future__ import annotations

from prometheus_client import generate_latest

from slipway import metrics

MODELS, REVISIONS = 200, 10
CONDITIONS = ("Ready", "ArtifactReady", "Available", "Progressing", "Degraded")


def status(revision: int) -> dict[str, object]:
    conditions = [{"type": kind, "status": "True" if revision % 2 else "False"} for kind in CONDITIONS]
    return {
        "conditions": conditions,
        "stable": {"revision": f"r{revision}", "weight": 90},
        "canary": {"revision": f"r{revision + 1}", "weight": 10},
    }


def series() -> int:
    lines = generate_latest().decode().splitlines()
    return sum(line.startswith(("slipway_condition{", "slipway_traffic_weight{")) and 'namespace="bound"' in line for line in lines)


def test_two_hundred_models_with_ten_revisions_each() -> None:
    for revision in range(REVISIONS):
        for model in range(MODELS):
            metrics.show("bound", f"m{model}", status(revision))
    assert series() == MODELS * (len(CONDITIONS) + 2)
    for model in range(MODELS):
        metrics.forget("bound", f"m{model}")
    assert series() == 0
