"""The CRDs in a real API server: what it refuses and with what words, what it accepts, defaults, subresources, documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.api.manifests import INVALID, VALID, artifact, deployment
from integration.conftest import ApiServer

CRDS = sorted((Path(__file__).parents[3] / "crds").glob("*.yaml"))


def schema(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def fields(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in part.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    if "items" in part:
        yield from fields(part["items"], path)


@pytest.mark.parametrize(("manifest", "words"), [row[1:] for row in INVALID], ids=[row[0] for row in INVALID])
def test_invalid_is_refused_with_words(apiserver: ApiServer, manifest: dict[str, Any], words: str) -> None:
    code, answer = apiserver.create_dry(manifest)
    assert code in (400, 422), answer
    assert words in answer["message"]


@pytest.mark.parametrize("manifest", [row[1] for row in VALID], ids=[row[0] for row in VALID])
def test_valid_is_accepted_and_kept(apiserver: ApiServer, manifest: dict[str, Any]) -> None:
    code, stored = apiserver.create_dry(manifest)
    assert code == 201, stored
    assert _contains(stored["spec"], manifest["spec"])


def _contains(stored: Any, written: Any) -> bool:
    if isinstance(written, dict):
        return all(key in stored and _contains(stored[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(stored) == len(written) and all(map(_contains, stored, written))
    return bool(stored == written)


def test_defaults(apiserver: ApiServer) -> None:
    manifest = deployment(conversion={"candidates": [{"target": "ONNX"}], "validation": {}})
    spec = apiserver.create_dry(manifest)[1]["spec"]
    assert spec["serving"] == {"replicas": 1}
    assert spec["revisionHistoryLimit"] == 5
    assert spec["conversion"] == {
        "candidates": [{"target": "ONNX", "precision": "Float32"}],
        "timeout": "10m",
        "validation": {"samples": 64, "minTop1AgreementPercent": 99},
    }


def test_an_artifact_is_stored_as_it_was_hashed(apiserver: ApiServer) -> None:
    manifest = artifact(conversion={"candidates": [{"target": "ONNX"}], "validation": {}})
    assert apiserver.create_dry(manifest)[1]["spec"] == manifest["spec"]


@pytest.mark.parametrize(
    "change",
    [
        {"converterImage": "other:1"},
        {"model": {"uri": "oci://h/m", "arguments": {"classes": 2}}},
        {"conversion": {"timeout": "1m"}},
        {"signingSecret": "slipway-signing"},
    ],
    ids=["image", "arguments", "conversion added", "signing added"],
)
def test_an_artifact_is_immutable(apiserver: ApiServer, change: dict[str, Any]) -> None:
    before = artifact(model={"uri": "oci://h/m", "arguments": {"classes": 1}})
    apiserver.apply(before)
    answer = apiserver.run(
        "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(before | {"spec": before["spec"] | change})
    )
    assert (
        "the spec of a ModelArtifact cannot be changed, because its name is the hash of it; change the ModelDeployment instead"
        in answer.stderr
    )


def test_a_whole_status_is_kept(apiserver: ApiServer) -> None:
    row = {
        "target": "ONNX",
        "verdict": "Passed",
        "maxAbsoluteError": "2.4e-07",
        "maxRelativeError": "0.0001",
        "cosine": "0.99999",
        "top1AgreementPercent": 100,
        "latencyP50": "0.21ms",
        "latencyP99": "0.4ms",
        "throughput": "5120",
        "loadSeconds": "0.04",
        "peakMemory": "143Mi",
        "sizeBytes": 2**40,
        "seconds": "1.5",
    }
    signature = {"inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 8]}], "outputs": []}
    status = {
        "observedGeneration": 1,
        "digest": f"sha256:{'a' * 64}",
        "format": "ONNX",
        "candidates": [row],
        "provenance": {"predicateType": "https://slsa.dev/provenance/v1", "signedBy": "3f9a" * 16},
        "signature": signature,
        "tools": {"torch": "2.9.1"},
        "cacheHit": False,
        "attempts": 2,
        "retryAt": "2026-01-31T12:00:00Z",
        "lastFailure": {"reason": "RegistryUnavailable", "message": "m", "exitCode": 50, "container": "publish"},
    }
    apiserver.apply({**artifact(), "metadata": {"name": "mart-ffffffffffff"}})
    apiserver.kubectl("patch", "mart", "mart-ffffffffffff", "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    assert apiserver.get("mart", "mart-ffffffffffff")["status"] == status


def test_scale(apiserver: ApiServer) -> None:
    apiserver.apply(deployment("scaled"))
    apiserver.kubectl("scale", "mdep/scaled", "--replicas=3")
    assert apiserver.get("mdep", "scaled")["spec"]["serving"]["replicas"] == 3
    status = '{"status": {"replicas": 2, "selector": "slipway.dev/deployment=scaled"}}'
    apiserver.kubectl("patch", "mdep", "scaled", "--subresource=status", "--type=merge", "-p", status)
    scale = yaml.safe_load(apiserver.kubectl("get", "--raw", "/apis/slipway.dev/v1alpha1/namespaces/default/modeldeployments/scaled/scale"))
    assert scale["status"] == {"replicas": 2, "selector": "slipway.dev/deployment=scaled"}


def test_columns_fit_80_characters(apiserver: ApiServer) -> None:
    apiserver.apply(deployment("columns"))
    condition = {"type": "Ready", "status": "False", "reason": "ParityFailed", "message": "m", "lastTransitionTime": "2026-01-31T12:00:00Z"}
    status = {
        "conditions": [condition],
        "stable": {"revision": "columns-5d41402a", "format": "TorchScript"},
        "url": "http://columns.default.svc",
    }
    apiserver.kubectl(
        "patch",
        "mdep",
        "columns",
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    table = apiserver.kubectl("get", "mdep").splitlines() + apiserver.kubectl("get", "mart").splitlines()
    assert all(len(line.rstrip()) <= 80 for line in table), table
    assert "modeldeployment.slipway.dev/columns" in apiserver.kubectl("get", "inference", "-o", "name")
    header, row = apiserver.kubectl("get", "mdep", "columns").splitlines()
    assert header.split() == ["NAME", "READY", "STABLE", "CANARY", "WEIGHT", "FORMAT", "AGE"]
    assert row.split()[:4] == ["columns", "False", "columns-5d41402a", "TorchScript"]
    assert "ParityFailed" in apiserver.kubectl("get", "mdep", "columns", "-o", "wide")


def test_the_longest_columns_fit_80_characters(apiserver: ApiServer) -> None:
    """A rollout in its middle and the longest format; a name of 63 characters, which appears three times, cannot fit."""
    name = "digits"
    apiserver.apply(deployment(name))
    condition = {"type": "Ready", "status": "False", "reason": "Progressing", "message": "m", "lastTransitionTime": "2026-01-31T12:00:00Z"}
    sides = {"stable": {"revision": f"{name}-5d41402a", "format": "ONNX"}, "canary": {"revision": f"{name}-0a1b2c3d", "weight": 100}}
    status = {"conditions": [condition], **sides}
    apiserver.kubectl("patch", "mdep", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    table = apiserver.kubectl("get", "mdep", name).splitlines()
    assert all(len(line.rstrip()) <= 79 for line in table), table  # an age has up to 4 characters, AGE has 3


def test_columns_of_a_runtime(apiserver: ApiServer) -> None:
    formats = [{"name": "ONNX"}, {"name": "TorchScript"}]
    apiserver.apply(
        {
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": "mine"},
            "spec": {"image": "i:1", "formats": formats},
        }
    )
    header, row = apiserver.kubectl("get", "srt", "mine").splitlines()
    assert header.split() == ["NAME", "IMAGE", "PORT", "AGE"]
    assert row.split()[:3] == ["mine", "i:1", "8080"]
    wide = apiserver.kubectl("get", "srt", "mine", "-o", "wide")
    assert "ONNX" in wide
    assert "TorchScript" in wide
    apiserver.kubectl("delete", "srt", "mine")  # it claims formats that models of other tests have


@pytest.mark.parametrize("path", CRDS, ids=[path.stem for path in CRDS])
def test_every_field_is_described(path: Path) -> None:
    unexplained = [name for name, field in fields(schema(path), "") if not field.get("description") and name != ".metadata"]
    assert unexplained == []
    assert path.stat().st_size < 50_000


@pytest.mark.parametrize("path", CRDS, ids=[path.stem for path in CRDS])
def test_kubectl_explains_every_field(apiserver: ApiServer, path: Path) -> None:
    singular = path.stem.removesuffix("s")
    recursive = apiserver.kubectl("explain", f"{singular}.spec", "--recursive")
    names = {name.rsplit(".", 1)[1] for name, _ in fields(schema(path)["properties"]["spec"], "spec")}
    assert [name for name in names if f"  {name}\t" not in recursive] == []
    spec = schema(path)["properties"]["spec"]["properties"]
    objects = [f"spec.{name}" for name, field in spec.items() if "properties" in (field.get("items") or field)]
    for name in ["spec", *objects]:  # deeper ones have the texts that the server publishes: the next test
        assert "<no description>" not in apiserver.kubectl("explain", f"{singular}.{name}"), name


@pytest.mark.parametrize("kind", ["ModelDeployment", "ModelArtifact", "ServingRuntime"])
def test_the_server_publishes_a_text_for_every_field(apiserver: ApiServer, kind: str) -> None:
    published = json.loads(apiserver.kubectl("get", "--raw", "/openapi/v3/apis/slipway.dev/v1alpha1"))
    root = published["components"]["schemas"][f"dev.slipway.v1alpha1.{kind}"]
    found = list(fields(root, kind))
    assert {f"{kind}.spec", f"{kind}.metadata"} <= {path for path, _ in found}
    assert [path for path, field in found if not field.get("description", "").strip()] == []
    texts = {path.removeprefix(kind): field["description"] for path, field in found}
    own = next(schema(path) for path in CRDS if path.stem == f"{kind.lower()}s")
    written = {path: field["description"] for path, field in fields(own, "") if path.startswith((".spec", ".status"))}
    assert written.items() <= texts.items()


def test_kubectl_explain_shows_the_text(apiserver: ApiServer) -> None:
    shown = " ".join(apiserver.kubectl("explain", "modeldeployment.spec.model.uri").split())
    text = schema(next(path for path in CRDS if path.stem == "modeldeployments"))
    for part in ("spec", "model", "uri"):
        text = text["properties"][part]
    assert " ".join(text["description"].split()) in shown
