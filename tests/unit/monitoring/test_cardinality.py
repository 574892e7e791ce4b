"""Series are bounded by the models there are, not by the revisions there were: 200 ModelDeployments of 10 revisions each.

`tests/integration/operator/test_cardinality.py` does the same to the operator as a process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest

from slipway import metrics
from slipway_runtime.serve.metrics import MAX_EXPERIMENTS, Metrics
from slipway_runtime.shadow.metrics import ShadowMetrics

MODELS, REVISIONS = 200, 10
CONDITIONS = ("Ready", "ArtifactReady", "Available", "Progressing", "Degraded", "Reconciling", "Stalled")
CLOSED = {"result", "verb", "code", "resource", "version"}  # labels whose values no user chooses
SERVER_SERIES = 140  # of one pod at most, when it answers with five different statuses and is in no experiment
SHADOW_SERIES = 70


def status(revision: int) -> dict[str, object]:
    conditions = [{"type": kind, "status": ("True", "False", "Unknown")[revision % 3]} for kind in CONDITIONS]
    return {
        "conditions": conditions,
        "stable": {"revision": f"r{revision}", "weight": 90},
        "canary": {"revision": f"r{revision + 1}", "weight": 10},
    }


def series(text: str) -> set[str]:
    """What identifies each series on a page."""
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def operator_series() -> set[str]:
    return series(metrics.page(is_leader=True).decode())


@pytest.fixture
def before() -> Iterator[set[str]]:
    yield operator_series()
    for model in range(MODELS):
        metrics.forget("bound", f"m{model}")


def test_the_operator_with_two_hundred_models_of_ten_revisions(before: set[str]) -> None:
    for revision in range(REVISIONS):
        for model in range(MODELS):
            metrics.show("bound", f"m{model}", status(revision))
        assert len(operator_series() - before) == MODELS * (len(CONDITIONS) + 2)
    assert {line for line in operator_series() if re.search(r'revision="r[0-8]"', line)} == set()
    for model in range(MODELS // 2):
        metrics.forget("bound", f"m{model}")
    assert len(operator_series() - before) == MODELS // 2 * (len(CONDITIONS) + 2)
    for model in range(MODELS // 2, MODELS):
        metrics.forget("bound", f"m{model}")
    assert operator_series() == before, "what is deleted leaves no series"


def test_no_other_metric_of_the_operator_has_a_label_that_users_fill() -> None:
    own = [line for line in series(metrics.page(is_leader=False).decode()) if line.startswith("slipway_")]
    assert own
    assert {name for line in own for name in re.findall(r"(\w+)=\"", line)} <= CLOSED | {"le"}


def server(revision: str, statuses: tuple[int, ...] = (200, 400, 429, 500, 503)) -> Metrics:
    found = Metrics(revision.partition("-")[0], revision, lambda: 0)
    for answered in statuses:
        found.count(answered)
        found.probes.add(answered, 0.01)
    found.set_artifact("sha256:0", "ONNX", "Float32")
    return found


def test_the_pods_of_two_hundred_models_of_ten_revisions() -> None:
    """All at once, which is more than ever runs: a ModelDeployment has pods of two revisions at most."""
    pages = [series(server(revision).render().decode()) for revision in ("m0-r0", "m199-r9")]
    anonymous = [{re.sub(r'(model|revision)="[^"]*"', r"\1", line) for line in page} for page in pages]
    assert anonymous[0] == anonymous[1], "nothing but these two labels tells the pages of two pods apart"
    total = 0
    for model, revision in product(range(MODELS), range(REVISIONS)):
        total += sum(len(family.samples) for family in server(f"m{model}-r{revision}").collect())
    assert total <= MODELS * REVISIONS * len(pages[0])
    assert len(pages[0]) <= SERVER_SERIES


def test_statuses_and_experiments_that_somebody_makes_up_are_bounded() -> None:
    names = [f"e{number}" for number in range(10_000)]
    found = server("m0-r0", tuple(range(-10, 100_000, 7)))
    for name in names:
        found.experiment(name, 200, 0.01)
    page = series(found.render().decode())
    assert len({line for line in page if line.startswith("slipway_requests_total{")}) <= 500
    assert 'slipway_requests_total{code="599",model="m0",revision="m0-r0"}' in page
    assert len({line for line in page if line.startswith("slipway_experiment_requests_total{")}) == MAX_EXPERIMENTS


def test_a_comparator_has_all_its_series_from_the_beginning() -> None:
    assert len(series(ShadowMetrics("m0", "m0-r1", "m0-r0", lambda: 0).render().decode())) <= SHADOW_SERIES
