"""Converted models in the registry: signed and verified where a key is configured, and gone when nothing names them any more."""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from e2e.kit import PATIENCE, SYSTEM, Cluster, Manifest, Namespace, install, mdep, onnx_folder, until
from keys import make_keys, openssl
from slipway import names

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1200)]
SECRET = "slipway-signing"
REGISTRY = "deployment/slipway-registry"
TITLE = "org.opencontainers.image.title"
ANY_MANIFEST = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


@contextmanager
def installed(cluster: Cluster, *settings: str) -> Iterator[None]:
    """Slipway with these settings, and afterwards as it was."""
    try:
        install(cluster, *settings)
        yield
    finally:
        install(cluster)


def key_pair(folder: Path) -> tuple[Manifest, str]:
    """A Secret with a new pair, and the id of its key."""
    files = make_keys(folder)
    data = {name: (files / name).read_text() for name in ("private.pem", "public.pem")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": data}
    der = openssl("pkey", "-pubin", "-in", str(files / "public.pem"), "-outform", "DER")
    return secret, hashlib.sha256(der).hexdigest()


def test_a_model_is_signed_and_what_another_key_signed_is_not_loaded(slipway: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    secret, key = key_pair(tmp_path / "first")
    with installed(slipway, f"signing.keySecret={SECRET}"):
        namespace.apply(onnx_folder("v1"), mdep("tiny", "configmap://v1"))
        assert SECRET in namespace.wait_reason("tiny", "SigningKeyUnusable")["message"]
        namespace.apply(secret)
        stable = namespace.wait_ready("tiny")["status"]["stable"]
        assert namespace.get("mart", stable["artifact"])["status"]["provenance"]["signedBy"] == key

        namespace.apply(key_pair(tmp_path / "second")[0])
        namespace.kubectl("scale", "mdep/tiny", "--replicas=2")
        assert "Next:" in namespace.wait_reason("tiny", "ProvenanceUnverified")["message"]
        with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
            assert namespace.infer(url, "tiny", [[1.0, 2.0, 3.0, 4.0]]).shape == (1, 3), "the pod that is there keeps serving"
        namespace.kubectl("delete", "mdep", "tiny")


def model_of(cluster: Cluster, space: str, digest: str) -> str | None:
    """The digest of an artifact's model file in the embedded registry, None when the artifact is not there."""
    cluster.kubectl("-n", SYSTEM, "rollout", "status", REGISTRY, "--timeout=180s", timeout=200)
    with cluster.forward(SYSTEM, "service/slipway-registry", 5000) as url:
        request = urllib.request.Request(f"{url}/v2/artifacts/{space}/manifests/{digest}", headers=ANY_MANIFEST)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                layers = {layer["annotations"][TITLE]: str(layer["digest"]) for layer in json.load(answer)["layers"]}
                return layers["model.onnx"]
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None


def test_a_model_that_nothing_names_leaves_the_registry_and_its_volume(slipway: Cluster, namespace: Namespace) -> None:
    with installed(slipway, "artifactRegistry.graceSeconds=20"):
        own = np.full((3, 4), time.time() % 1000, np.float32)
        namespace.apply(onnx_folder("v1", own), mdep("tiny", "configmap://v1"))
        digest = namespace.wait_ready("tiny")["status"]["stable"]["digest"]
        model = model_of(slipway, namespace.name, digest)
        assert model is not None
        time.sleep(40)
        assert model_of(slipway, namespace.name, digest) == model, "what serves stays, however old"

        # a volume is freed once a day, and what other tests left may have been it
        template = {"metadata": {"annotations": {names.FREED: None}}}
        patch = {"metadata": {"annotations": {names.GARBAGE: None}}, "spec": {"template": template}}
        slipway.kubectl("-n", SYSTEM, "patch", REGISTRY, "--type=merge", "-p", json.dumps(patch))
        slipway.kubectl("-n", SYSTEM, "rollout", "status", REGISTRY, "--timeout=180s", timeout=200)
        namespace.kubectl("delete", "mdep", "tiny")

        def is_freed() -> bool:
            # as distribution tells it
            return f"blob eligible for deletion: {model}" in slipway.run("-n", SYSTEM, "logs", REGISTRY, "-c", "collect").stdout

        until(is_freed, PATIENCE, lambda: slipway.run("-n", SYSTEM, "logs", REGISTRY, "-c", "collect").stdout, every=5)
        assert model_of(slipway, namespace.name, digest) is None

        namespace.apply(mdep("tiny", "configmap://v1"))
        namespace.wait_ready("tiny")
