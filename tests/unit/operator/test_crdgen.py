"""The generator: structural schemas, and files that are what the models say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from slipway.crdgen import KINDS, Kind, crd, generated_files, main, root_schema, stale_files

ROOT = Path(__file__).parents[3]


def parts(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for part in schema for found in parts(part)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for value in schema.values() for found in parts(value))]


def test_generated_files_are_up_to_date() -> None:
    assert stale_files(ROOT) == [], "run `make generate`"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_schemas_are_structural(kind: Kind) -> None:
    for part in parts(root_schema(kind)):
        assert not {"$ref", "anyOf", "allOf", "const", "title"} & set(part)


def test_only_an_artifact_has_no_defaults_in_its_spec() -> None:
    having = {kind.name for kind in KINDS if any("default" in part for part in parts(root_schema(kind)["properties"]["spec"]))}
    assert having == {"ModelDeployment", "ServingRuntime"}


def test_a_status_has_no_defaults() -> None:
    for kind in KINDS:
        assert not [part for part in parts(root_schema(kind)["properties"].get("status")) if "default" in part]


def test_numbers_in_strings_stay_strings_in_yaml_1_2() -> None:
    text = generated_files()["crds/modeldeployments.yaml"]
    assert '"1e-3"' in text
    assert yaml.safe_load(text) == crd(KINDS[0])


def test_check_fails_on_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert "crds/modeldeployments.yaml differs from the models; run `make generate`" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--root", str(tmp_path), "--check"]) == 0
