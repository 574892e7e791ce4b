"""200 ModelDeployments of 10 revisions each, on a real API server: the operator's page has the series of those that there are."""

from __future__ import annotations

import re

import pytest

from integration.operator.conftest import Tenant, model_deployment, until

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1800)]
MODELS, REVISIONS = 200, 10
OF_MODELS = re.compile(r"slipway_(?:condition|traffic_weight)\{.*")


def series(page: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")}


def test_the_page_is_bounded_by_what_there_is(tenant: Tenant) -> None:
    tenant.prepare("shared")
    uri = model_deployment("shared")["spec"]["model"]["uri"]  # one artifact for all: converting is not the matter
    operator = tenant.lead()
    before, sizes = series(operator.metrics()), []

    def told() -> set[str]:
        return {line for line in series(operator.metrics()) if OF_MODELS.match(line)}

    for revision in range(REVISIONS):
        wish = {"model": {"uri": uri}, "serving": {"env": [{"name": "REVISION", "value": str(revision)}]}}
        for model in range(MODELS):
            tenant.apply({**model_deployment(f"m{model}"), "spec": wish})

        def is_settled(generation: int = revision + 1) -> bool:
            found = tenant.get("mdep")["items"]
            return all((m.get("status") or {}).get("observedGeneration") == generation for m in found)

        until(is_settled, 300, lambda: operator.log.read_text()[-3000:])
        until(lambda: len({re.search(r'name="([^"]+)"', line)[1] for line in told()}) == MODELS, 60)  # type: ignore[index]
        sizes.append(len(told()))
    print(f"series of {MODELS} models after each of {REVISIONS} revisions: {sizes}; besides {len(before)}")
    assert len(set(sizes[1:])) == 1, "a revision more is no series more"
    assert sizes[-1] <= MODELS * 9, "seven conditions and two weights each"
    tenant.server.kubectl("-n", tenant.name, "delete", "mdep", "--all")
    until(lambda: not told(), 120, lambda: "\n".join(sorted(told())[:20]))
    others = {re.sub(r'"[^"]*"', '""', line) for line in series(operator.metrics()) if line.startswith("slipway_")}
    assert not any("name=" in line or "namespace=" in line for line in others)
