"""The gate must bite: every wrong conversion of faults.py is refused before traffic, and no right one is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from integration.pipeline.conftest import Pipeline, RegistryProcess
from integration.pipeline.faults import FAULTS, SOURCE, Fault, put_faults, spec_of

pytestmark = pytest.mark.timeout(600)


def put_source(pipeline: Pipeline) -> None:
    folder = pipeline.work / "origin" / "m"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(SOURCE)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, registry: RegistryProcess) -> Iterator[list[dict[str, Any]]]:
    """What `validate` says of every fault, put beside each other as candidates of one model; the last is the good one."""
    pipeline = Pipeline(tmp_path_factory.mktemp("faults") / "work", f"{registry.host}/artifacts/faults", registry.host)
    pipeline.environment["SLIPWAY_TIMEOUT_SECONDS"] = "500"
    put_source(pipeline)
    spec = spec_of(0, "TorchScript")
    last = pipeline.run(spec, ("fetch", "convert"))
    assert last.code == 0, last.log
    put_faults(pipeline.work / "candidates")
    found = pipeline.step(["validate"], spec, {})
    assert found.code == 0, found.log
    yield json.loads((pipeline.work / "report/validate.json").read_text())["candidates"]
    shutil.rmtree(pipeline.work)


@pytest.mark.parametrize(("number", "fault"), enumerate(FAULTS), ids=[fault.name for fault in FAULTS])
def test_the_gate_refuses(rows: list[dict[str, Any]], number: int, fault: Fault) -> None:
    row = rows[number]
    assert (row["verdict"], row["reason"]) == ("Failed", fault.reason), row
    assert any(word in row["message"] for word in fault.words.split("|")), row


def test_the_right_one_put_in_the_same_way_passes(rows: list[dict[str, Any]]) -> None:
    assert (rows[-1]["verdict"], rows[-1]["chosen"]) == ("Passed", True)
    assert len(rows) == len(FAULTS) + 1


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 5))])
def test_no_false_alarm(pipeline: Pipeline, seed: int) -> None:
    put_source(pipeline)
    found = pipeline.run(spec_of(seed, "ONNX", "TorchScript", "ExportedProgram"), ("fetch", "convert", "validate"))
    assert [row["verdict"] for row in found.message["candidates"]] == ["Passed"] * 3, json.dumps(found.message)


def test_there_are_enough_and_each_has_its_own_name() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30
