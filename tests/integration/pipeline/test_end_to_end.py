"""fetch -> convert -> validate -> publish -> pull, with a real registry, for each target and each source."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from slipway_runtime.artifact import open_artifact
from slipway_runtime.reasons import Failure

ALL = [{"target": "ONNX", "precision": "Float32"}, {"target": "TorchScript"}, {"target": "None"}]


def pulled(pipeline, digest, name="pulled"):
    command = ["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(pipeline.work / name)]
    outcome = pipeline.step(command, {"model": {"uri": "x://"}}, {})
    assert outcome.code == 0, outcome.log
    return open_artifact(pipeline.work / name, digest)


def golden_error(artifact):
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(str(artifact.directory / artifact.entry))
    with np.load(artifact.directory / artifact.golden.inputs) as inputs, np.load(artifact.directory / artifact.golden.outputs) as outputs:
        got = session.run(list(outputs.files), dict(inputs))
        return max(float(np.abs(a - outputs[name]).max()) for a, name in zip(got, outputs.files, strict=True))


def test_oci_source_to_every_target_then_cache_hit(pipeline, registry, model_folder, push):
    source_digest = push(registry.host, "models/cnn", "v1", model_folder)
    spec = {"model": {"uri": f"oci://{registry.host}/models/cnn:v1"}, "conversion": {"candidates": ALL, "timeout": "10m"}}
    last = pipeline.run(spec)
    assert last.reason == "Published", last.log
    convert = pipeline.outcomes[1]
    print(f"\nconvert of a small CNN, 3 targets: {convert.seconds:.1f} s\n{convert.log}")
    rows = last.message["candidates"]
    assert [(row["target"], row["verdict"], row["reason"]) for row in rows] == [(c["target"], "Passed", "Validated") for c in ALL]
    assert all(isinstance(row["maxAbsoluteError"], str) and row["top1AgreementPercent"] == "100" for row in rows)
    assert last.message["sourceDigest"] == source_digest
    assert last.message["format"] == "ONNX"
    artifact = pulled(pipeline, last.message["artifactDigest"])
    assert artifact.labels[0] == "zero"
    assert artifact.preprocessing["image"]["mode"] == "L"
    assert artifact.signature.to_json() == last.message["signature"]
    assert golden_error(artifact) <= artifact.golden.max_absolute_error
    shutil.rmtree(pipeline.work)
    again = pipeline.run(spec)
    assert [outcome.code for outcome in pipeline.outcomes[4:]] == [0, 0, 0, 0]
    assert again.reason == "CacheHit"
    assert again.message["artifactDigest"] == last.message["artifactDigest"]
    assert not (pipeline.work / "source" / "model").exists()  # found before any download


@pytest.mark.parametrize(
    ("target", "format_", "entry"), [("TorchScript", "TorchScript", "model.pt"), ("None", "PyTorch", "weights.safetensors")]
)
def test_other_targets_are_published_and_pulled(pipeline, model_folder, claim, target, format_, entry):  # noqa: PLR0917
    last = pipeline.run({"model": claim(model_folder), "conversion": {"candidates": [{"target": target}]}})
    assert last.reason == "Published", last.log
    artifact = pulled(pipeline, last.message["artifactDigest"])
    assert (artifact.format, artifact.entry) == (format_, entry)
    if target == "None":
        from slipway_runtime.model_source import build_module  # noqa: PLC0415

        assert not build_module(artifact.directory, artifact.entrypoint, artifact.arguments, artifact.weights).training


def test_onnx_source_without_a_signature(pipeline, model_folder, claim, web):
    last = pipeline.run({"model": claim(model_folder)})
    artifact = pulled(pipeline, last.message["artifactDigest"])
    base, folder = web
    shutil.copy(artifact.directory / artifact.entry, folder / "cnn.onnx")
    shutil.rmtree(pipeline.work / "source")
    last = pipeline.run({"model": {"uri": f"{base}/cnn.onnx"}})
    assert last.reason == "Published", last.log
    assert last.message["format"] == "ONNX"
    assert [spec["shape"] for spec in last.message["signature"]["inputs"]] == [["batch", 1, 8, 8]]


def test_validation_data_with_labels_gives_an_accuracy(pipeline, model_folder, claim):
    generator = np.random.default_rng(0)
    np.savez(model_folder / "golden.npz", image=generator.standard_normal((40, 1, 8, 8)), labels=np.zeros(40, dtype=np.int64))
    (model_folder / "model.yaml").write_text((model_folder / "model.yaml").read_text() + "validation: {data: golden.npz}\n")
    spec = {"model": claim(model_folder), "conversion": {"validation": {"samples": 20, "minAccuracyPercent": 100}}}
    last = pipeline.run(spec)
    assert last.reason == "ValidationFailed"
    assert "labelled samples" in last.text
    assert "accuracyPercent" in last.message["candidates"][0]


def test_a_corrupt_blob_in_the_registry_is_detected_and_healed(pipeline, registry, model_folder, claim):
    spec = {"model": claim(model_folder), "conversion": {"candidates": [{"target": "None"}]}}
    last = pipeline.run(spec)
    digest = last.message["artifactDigest"]
    artifact = pulled(pipeline, digest)
    entry = next(file for file in artifact.files if file.path == "model.py")
    blob = registry.data / f"docker/registry/v2/blobs/sha256/{entry.sha256[:2]}/{entry.sha256}/data"
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + b"!")
    command = ["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(pipeline.work / "other")]
    outcome = pipeline.step(command, spec, {})
    blob.write_bytes(good)
    assert (outcome.code, outcome.reason) == (60, "ArtifactCorrupt")
    assert entry.sha256 in outcome.text
    assert not (pipeline.work / "other").exists()
    assert pipeline.step(command, spec, {}).code == 0


def test_pull_of_what_is_not_there(pipeline):
    command = ["pull", "--repository", pipeline.repository, "--digest", f"sha256:{'0' * 64}", "--output", str(pipeline.work / "other")]
    outcome = pipeline.step(command, {"model": {"uri": "x"}}, {})
    assert (outcome.code, outcome.reason) == (61, "ArtifactNotFound")


def test_a_changed_file_is_named_with_both_hashes(pipeline, model_folder, claim):
    last = pipeline.run({"model": claim(model_folder), "conversion": {"candidates": [{"target": "None"}]}})
    artifact = pulled(pipeline, last.message["artifactDigest"])
    path = artifact.directory / "model.py"
    want = next(file.sha256 for file in artifact.files if file.path == "model.py")
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(Failure, match=want) as caught:
        open_artifact(artifact.directory, artifact.digest)
    assert "model.py" in caught.value.message
    (artifact.directory / "slipway.json").write_text(json.dumps(artifact.raw | {"labels": []}))
    with pytest.raises(Failure, match=r"slipway.json has sha256:"):
        open_artifact(artifact.directory, artifact.digest)
