"""The models read what the API server accepts and refuse what it refuses, with the same words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from integration.api.manifests import INVALID, VALID
from slipway.api.common import parse_duration, parse_quantity
from slipway.api.models import ModelArtifact, ModelDeployment, ModelDeploymentSpec, ModelDeploymentStatus, ServingRuntime
from slipway.api.rules import ApiModel

KINDS: dict[str, type[ApiModel]] = {"ModelDeployment": ModelDeployment, "ModelArtifact": ModelArtifact, "ServingRuntime": ServingRuntime}


def parse(manifest: dict[str, Any]) -> ApiModel:
    return KINDS[manifest["kind"]].model_validate(manifest)


@pytest.mark.parametrize("manifest", [row[1] for row in VALID], ids=[row[0] for row in VALID])
def test_valid(manifest: dict[str, Any]) -> None:
    parse(manifest)


@pytest.mark.parametrize(("manifest", "words"), [row[1:] for row in INVALID], ids=[row[0] for row in INVALID])
def test_invalid(manifest: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(manifest)
    if any(
        word in words
        for word in ("Invalid value", "should ", "Unsupported", "Duplicate", "Required", "in body", "Too long", "unknown field")
    ):
        return  # the words are the API server's own
    assert words in str(caught.value)


def test_defaults_of_the_shortest_spec() -> None:
    spec = ModelDeploymentSpec.model_validate({"model": {"uri": "configmap://digits"}})
    assert spec.serving.replicas == 1
    assert spec.revision_history_limit == 5
    assert spec.conversion is None


def test_a_spec_survives_the_round_trip() -> None:
    for _, manifest in VALID:
        once = parse(manifest)
        assert type(once).model_validate(once.model_dump(mode="json", by_alias=True, exclude_unset=True)) == once


def test_status_ignores_what_a_newer_operator_wrote() -> None:
    assert ModelDeploymentStatus.model_validate({"observedGeneration": 1, "later": True}).observed_generation == 1


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h30m", 5400), ("1h1s", 3601)])
def test_parse_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "number"), [("500m", "0.5"), ("4Gi", str(4 * 1024**3)), (2, "2"), ("1e3", "1000"), ("1k", "1000"), (".5", "0.5")]
)
def test_parse_quantity(text: int | str, number: str) -> None:
    assert str(parse_quantity(text).normalize()) == str(parse_quantity(number).normalize())


@pytest.mark.parametrize("text", ["", "4 GB", "1.2.3", "Gi", "1K"])
def test_not_a_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)
