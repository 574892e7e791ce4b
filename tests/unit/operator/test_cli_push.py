"""Model folders that are refused, with the words; references; and a push to a real registry when its binary is there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from slipway.cli.errors import CliError
from slipway.cli.folder import read_folder
from slipway.cli.main import main
from slipway.cli.registry import MANIFEST_TYPE, bytes_digest, model_manifest, parse_reference, service_of

ROOT = Path(__file__).parents[3]
REGISTRY = ROOT / "build/bin/registry"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "model"
    root.mkdir()
    (root / "model.py").write_text("def build(): ...\n")
    (root / "weights.safetensors").write_bytes(b"weights")
    (root / "model.yaml").write_text("{format: PyTorch, entrypoint: 'model:build', weights: weights.safetensors}\n")
    return root


def test_a_good_folder_has_sorted_files_without_caches(folder):
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/model.pyc").write_bytes(b"x")
    (folder / "a").mkdir()
    (folder / "a/b.txt").write_text("")
    (folder / "linked.py").symlink_to("model.py")
    found = read_folder(folder)
    assert found.files == ("a/b.txt", "linked.py", "model.py", "model.yaml", "weights.safetensors")
    assert found.notes == ()


ROWS = [
    ("weights", "{entrypoint: 'model:build', weights: w.pt}", "weights: w.pt is not in"),
    ("weights path", "{weights: ../w.pt}", "no path inside the folder"),
    ("absolute", "{weights: /etc/passwd}", "no path inside the folder"),
    ("golden", "{validation: {data: golden.npz}}", "validation.data: golden.npz is not in"),
    ("module", "{entrypoint: 'net:build'}", "there is no module net"),
    ("entrypoint", "{entrypoint: build}", "is not module:callable"),
    ("field", "{labelz: x}", "labelz: no such field"),
    ("format", "{format: Keras}", "'Keras' is not supported"),
    ("yaml", "{a: [", "is not YAML"),
    ("list", "[1]", "not a mapping"),
]


@pytest.mark.parametrize(("text", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_wrong_model_yaml_is_refused_with_the_field_and_a_next_step(folder, text, words):
    (folder / "model.yaml").write_text(text)
    with pytest.raises(CliError) as error:
        read_folder(folder)
    assert words in error.value.message
    assert "Next: " in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("target", ["/etc/passwd", "/etc", "../outside", "nowhere"])
def test_links_that_lead_out_are_refused(folder, target):
    (folder.parent / "outside").write_text("secret")
    (folder / "link").symlink_to(target)
    with pytest.raises(CliError, match="link"):
        read_folder(folder)


def test_a_folder_without_model_yaml_is_noted(folder):
    (folder / "model.yaml").unlink()
    assert "model.yaml" in read_folder(folder).notes[0]
    (folder / "model.onnx").write_bytes(b"x")
    assert read_folder(folder).notes == ()


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("slipway-registry.slipway-system:5000", ("slipway-registry", "slipway-system", 5000)),
        ("registry.models", ("registry", "models", 80)),
        ("r.n.svc:1", ("r", "n", 1)),
        ("r.n.svc.cluster.local", ("r", "n", 80)),
        ("ghcr.io", None),
        ("docker.com", None),
        ("localhost:5000", None),
        ("127.0.0.1:5000", None),
        ("registry.example.com", None),
    ],
)
def test_hosts_that_look_like_a_service(host, service):
    assert service_of(host) == service


def test_references():
    assert parse_reference("oci://h:5/a/b:v1").pinned("sha256:1") == "oci://h:5/a/b@sha256:1"
    assert parse_reference("oci://h/a").tag == "latest"
    for wrong in ("h/a:v1", "oci://h", "oci://h/A", "oci://h/a@sha256:00"):
        with pytest.raises(CliError, match="oci://"):
            parse_reference(wrong)


def test_the_manifest_depends_on_the_content_alone():
    layers = {"b": ("sha256:2", 2), "a": ("sha256:1", 1)}
    assert model_manifest(layers) == model_manifest(dict(reversed(layers.items())))
    value = json.loads(model_manifest(layers))
    assert value["artifactType"] == "application/vnd.slipway.model.v1+json"
    assert [row["annotations"]["org.opencontainers.image.title"] for row in value["layers"]] == ["a", "b"]


@pytest.fixture
def registry(tmp_path):
    if not REGISTRY.exists():
        pytest.skip("build/bin/registry is absent: run hack/tools.sh registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {"REGISTRY_HTTP_ADDR": host, "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(tmp_path / "registry")}
    command = [str(REGISTRY), "serve", str(ROOT / "hack/registry/config.yml")]
    with subprocess.Popen(command, env={**os.environ, **settings, "OTEL_TRACES_EXPORTER": "none"}, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(host)
            yield host
        finally:
            process.terminate()


def _wait(host):
    for _ in range(200):
        try:
            if requests.get(f"http://{host}/v2/", timeout=1).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.05)
    pytest.fail("the registry does not answer")


def test_push_to_a_real_registry_and_again(folder, registry):
    (folder / "empty.txt").write_bytes(b"")
    command = ["push", str(folder), f"oci://{registry}/models/tiny:v1"]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    pinned = first.stdout.strip()
    manifest = requests.get(f"http://{registry}/v2/models/tiny/manifests/v1", headers={"Accept": MANIFEST_TYPE}, timeout=5)
    assert pinned == f"oci://{registry}/models/tiny@{bytes_digest(manifest.content)}"
    for row in manifest.json()["layers"]:
        blob = requests.get(f"http://{registry}/v2/models/tiny/blobs/{row['digest']}", timeout=5).content
        assert blob == (folder / row["annotations"]["org.opencontainers.image.title"]).read_bytes()
    second = CliRunner().invoke(main, command)
    assert second.stdout.strip() == pinned
    assert "pushed" not in second.stderr


def test_a_registry_that_does_not_answer(folder):
    done = CliRunner().invoke(main, ["push", str(folder), "oci://127.0.0.1:1/a:b"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: 127.0.0.1:1 does not answer: Connection refused. Next: ")
