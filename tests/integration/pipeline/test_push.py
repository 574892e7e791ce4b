"""`slipway push` to a real registry: what arrives there, and that a second push sends nothing."""

from __future__ import annotations

import requests
from click.testing import CliRunner

from slipway.cli.main import main
from slipway.cli.registry import MANIFEST_TYPE, bytes_digest


def test_push_to_a_real_registry_and_again(tmp_path, registry):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.py").write_text("def build(): ...\n")
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "model.yaml").write_text("{format: PyTorch, entrypoint: 'model:build', weights: weights.safetensors}\n")
    (folder / "empty.txt").write_bytes(b"")
    command = ["push", str(folder), f"oci://{registry.host}/models/tiny:v1"]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    pinned = first.stdout.strip()
    manifest = requests.get(f"http://{registry.host}/v2/models/tiny/manifests/v1", headers={"Accept": MANIFEST_TYPE}, timeout=5)
    assert pinned == f"oci://{registry.host}/models/tiny@{bytes_digest(manifest.content)}"
    for row in manifest.json()["layers"]:
        blob = requests.get(f"http://{registry.host}/v2/models/tiny/blobs/{row['digest']}", timeout=5).content
        assert blob == (folder / row["annotations"]["org.opencontainers.image.title"]).read_bytes()
    second = CliRunner().invoke(main, command)
    assert second.stdout.strip() == pinned
    assert "pushed" not in second.stderr
