"""Model folders that are refused, with the words; references; a registry that does not answer."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from slipway.cli.errors import CliError
from slipway.cli.folder import read_folder
from slipway.cli.main import main
from slipway.cli.registry import model_manifest, parse_reference, service_of


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


def test_a_registry_that_does_not_answer(folder):
    done = CliRunner().invoke(main, ["push", str(folder), "oci://127.0.0.1:1/a:b"])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: 127.0.0.1:1 does not answer: Connection refused. Next: ")
