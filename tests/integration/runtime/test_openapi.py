"""Schemathesis (in an environment of its own) against what the server says of itself in /openapi.json."""

from __future__ import annotations

import re
import subprocess

import pytest

from integration.runtime.test_other_clients import python_with
from unit.runtime.serve.artifacts import Draft, digits_draft, dtypes_draft, mlp_draft

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(900)]

# JSON Schema cannot say that `data` has as many values as `shape` says, nor that bytes are an image or an array: of what has such parts,
# data that fit the schema need not be accepted. That they are refused with 4xx, and everything else, is checked there too.
CONFIG = """
[[operations]]
include-path-regex = "/infer$|/predict$"
phases.coverage.checks.positive_data_acceptance.enabled = false
phases.fuzzing.checks.positive_data_acceptance.enabled = false
"""
MODELS = {"rows": mlp_draft, "images": digits_draft, "every type": lambda: dtypes_draft()[0]}


@pytest.mark.parametrize("model", MODELS)
def test_the_server_is_as_it_says(start, tmp_path, model):
    draft: Draft = MODELS[model]()
    server = start(draft).wait_ready()
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    program = [str(python_with("schemathesis").with_name("st")), "--config-file", str(tmp_path / "schemathesis.toml"), "run"]
    options = ["--max-examples", "30", "--continue-on-failure", "--no-color", "--request-timeout", "20"]
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    done = subprocess.run([*program, url, *options], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout[-12_000:]
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases is not None
    assert int(cases[1]) > 300, "it did not ask much"
    assert server.process.poll() is None
    assert server.infer("m", [[1.0]]).status in (200, 400)
