"""The threat catalogue names tests that exist, and covers every hostile file."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml

from integration.pipeline.hostile.corpus import CASES

ROOT = Path(__file__).parents[4]
THREATS = yaml.safe_load((ROOT / "docs/threats.yaml").read_text())["threats"]


def defined_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_threat_names_tests_that_exist():
    for threat in THREATS:
        assert threat["tests"], threat["id"]
        for test in threat["tests"]:
            file, _, name = test.partition("::")
            assert name in defined_in(file), f"{threat['id']}: {test}"


def test_every_threat_is_described_once():
    assert len({threat["id"] for threat in THREATS}) == len(THREATS)
    assert all(set(threat) == {"id", "threat", "control", "tests"} and threat["threat"] and threat["control"] for threat in THREATS)


def test_every_hostile_file_belongs_to_a_threat_and_the_other_way_round():
    tried = {threat["id"] for threat in THREATS if any(test.endswith("::test_hostile") for test in threat["tests"])}
    assert {case.threat for case in CASES} == tried
    assert len({case.name for case in CASES}) == len(CASES) >= 40
