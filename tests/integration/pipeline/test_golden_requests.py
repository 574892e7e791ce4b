"""The comparator brings golden inputs from the registry without the model, and makes requests of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from slipway_runtime.artifact import open_artifact
from slipway_runtime.oci import Access
from slipway_runtime.reasons import Failure
from slipway_runtime.shadow.golden import fetch


def test_golden_inputs_come_without_the_model(pipeline, registry, model_folder, claim, tmp_path):
    last = pipeline.run({"model": claim(model_folder), "conversion": {"candidates": [{"target": "None"}]}})
    assert last.reason == "Published", last.log
    digest, path = last.message["artifactDigest"], "/v2/models/cnn/infer"
    access = Access((registry.host,), tmp_path / "none")
    command = ["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(pipeline.work / "pulled")]
    assert pipeline.step(command, {"model": {"uri": "x://"}}, {}).code == 0
    golden = open_artifact(pipeline.work / "pulled", digest).golden
    with np.load(pipeline.work / "pulled" / golden.inputs) as file:
        wanted = file["image"]
    requests = fetch(pipeline.repository, digest, access, path)
    assert len(requests) == len(wanted) > 1
    for row, copied in zip(wanted, requests, strict=True):
        (tensor,) = json.loads(copied.body)["inputs"]
        assert (copied.path, copied.source, tensor["shape"]) == (path, "golden", [1, *row.shape])
        assert np.array_equal(np.asarray(tensor["data"], np.float32).reshape(row.shape), row)
    with pytest.raises(Failure, match="ArtifactNotFound"):
        fetch(pipeline.repository, f"sha256:{'0' * 64}", access, path)
