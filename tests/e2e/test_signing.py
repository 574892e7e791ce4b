"""Converted models in the registry are signed, and verified before they are loaded, where a key is configured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from e2e.kit import Cluster, Manifest, Namespace, install, mdep, onnx_folder

pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.timeout(1200)]
SECRET = "slipway-signing"


@contextmanager
def installed(cluster: Cluster, *settings: str) -> Iterator[None]:
    """Slipway with these settings, and afterwards as it was."""
    try:
        install(cluster, *settings)
        yield
    finally:
        install(cluster)


def key_pair() -> tuple[Manifest, str]:
    """A Secret with a new pair, and the id of its key as openssl tells it."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    data = {
        "private.pem": private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        "public.pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": data}
    return secret, hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def test_a_model_is_signed_and_what_another_key_signed_is_not_loaded(slipway: Cluster, namespace: Namespace) -> None:
    secret, key = key_pair()
    with installed(slipway, f"signing.keySecret={SECRET}"):
        namespace.apply(onnx_folder("v1"), mdep("tiny", "configmap://v1"))
        assert SECRET in namespace.wait_reason("tiny", "SigningKeyUnusable")["message"]
        namespace.apply(secret)
        stable = namespace.wait_ready("tiny")["status"]["stable"]
        assert namespace.get("mart", stable["artifact"])["status"]["provenance"]["signedBy"] == key

        namespace.apply(key_pair()[0])
        namespace.kubectl("scale", "mdep/tiny", "--replicas=2")
        assert "Next:" in namespace.wait_reason("tiny", "ProvenanceUnverified")["message"]
        with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
            assert namespace.infer(url, "tiny", [[1.0, 2.0, 3.0, 4.0]]).shape == (1, 3), "the pod that is there keeps serving"
        namespace.kubectl("delete", "mdep", "tiny")
