"""`rollout.analysis` in a real API server: the CEL rules accept and refuse what the Python rules do. The kind is made up for the test."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import Field

from integration.conftest import ApiServer
from slipway.api.analysis import Analysis, AnalysisRecord
from slipway.api.rules import ApiModel, StatusModel
from slipway.crdgen import Kind, crd
from unit.analysis.test_api import ACCEPTED, REFUSED


class ProbeSpec(ApiModel):
    """A spec."""

    analysis: Analysis = Field(default=Analysis(), description="How it is judged.")


class ProbeStatus(StatusModel):
    """A status."""

    last: AnalysisRecord | None = Field(default=None, description="What was found.")


class Probe(ApiModel):
    """A kind that has nothing but an analysis."""

    api_version: Literal["slipway.dev/v1alpha1"] = Field(default="slipway.dev/v1alpha1", description="slipway.dev/v1alpha1.")
    kind: Literal["Probe"] = Field(default="Probe", description="Probe.")
    metadata: dict[str, Any] = Field(description="Its name.")
    spec: ProbeSpec = Field(description="The wish.")
    status: ProbeStatus | None = Field(default=None, description="What is.")


@pytest.fixture(scope="module")
def probes(apiserver: ApiServer) -> Iterator[ApiServer]:
    manifest = crd(Kind(model=Probe, plural="probes", short="prb", columns=()))
    apiserver.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    apiserver.kubectl("wait", "--for=condition=established", f"crd/{manifest['metadata']['name']}", "--timeout=60s")
    for _ in range(100):  # it is served a moment after it is established
        try:
            apiserver.create_dry(probe({}))
        except AssertionError:
            time.sleep(0.1)
        else:
            break
    yield apiserver
    apiserver.kubectl("delete", f"crd/{manifest['metadata']['name']}")


def probe(section: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": "Probe", "metadata": {"name": "x"}, "spec": {"analysis": section}}


@pytest.mark.parametrize("section", ACCEPTED)
def test_accepted(probes: ApiServer, section: dict[str, Any]) -> None:
    code, answer = probes.create_dry(probe(section))
    assert code == 201, answer


@pytest.mark.parametrize(("section", "message"), [(row[0], row[2]) for row in REFUSED])
def test_refused(probes: ApiServer, section: dict[str, Any], message: str) -> None:
    code, answer = probes.create_dry(probe(section))
    assert code in (400, 422), answer
    assert message in answer["message"]
