"""Statements and signatures in a real registry, read by requests and openssl; who may load what, and what counts as converted."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import uuid
from dataclasses import replace

import pytest
import requests

from integration.pipeline.conftest import CNN, YAML, Pipeline
from integration.pipeline.test_end_to_end import pulled
from keys import make_keys, openssl
from slipway_runtime.oci import Access
from slipway_runtime.reasons import EXIT_CODES, Failure
from slipway_runtime.settings import Signing
from slipway_runtime.shadow.golden import fetch

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
STATEMENT = "application/vnd.in-toto+json"


def signing(folder):
    return {"SLIPWAY_SIGNING_SECRET": "slipway-signing", "SLIPWAY_SIGNING_DIR": str(folder)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def public(keys, tmp_path_factory):
    """What the kubelet mounts where only public.pem may be seen."""
    folder = tmp_path_factory.mktemp("public")
    shutil.copy(keys / "public.pem", folder)
    return folder


class Repository:
    """A repository, read and written with requests alone."""

    def __init__(self, name):
        host, _, path = name.partition("/")
        self.root = f"http://{host}/v2/{path}"

    def manifest(self, reference, kind=MANIFEST):
        answer = requests.get(f"{self.root}/manifests/{reference}", headers={"Accept": kind}, timeout=5)
        answer.raise_for_status()
        return answer

    def blob(self, row):
        data = requests.get(f"{self.root}/blobs/{row['digest']}", timeout=5).content
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == row["digest"]
        assert len(data) == row["size"]
        return data

    def put_blob(self, data):
        location = requests.post(f"{self.root}/blobs/uploads/", timeout=5).headers["Location"]
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        requests.put(location, params={"digest": digest}, data=data, timeout=5).raise_for_status()
        return {"digest": digest, "size": len(data)}

    def put(self, reference, data, kind=MANIFEST):
        requests.put(f"{self.root}/manifests/{reference}", data=data, headers={"Content-Type": kind}, timeout=5).raise_for_status()
        return f"sha256:{hashlib.sha256(data).hexdigest()}"

    def attestation(self, digest):
        """The manifest under cosign's tag, which is about this artifact, and its one layer."""
        manifest = self.manifest(att(digest)).json()
        subject = self.manifest(digest)
        assert (manifest["subject"]["digest"], manifest["subject"]["size"]) == (digest, len(subject.content))
        (layer,) = manifest["layers"]
        assert manifest["artifactType"] == layer["mediaType"]
        assert self.blob(manifest["config"]) == b"{}"
        return manifest, layer

    def unattested(self, digest):
        """The same artifact under another digest, as whoever can write to the registry may put it there."""
        copy = self.manifest(digest).json() | {"annotations": {"by": uuid.uuid4().hex}}
        other = self.put("copy", json.dumps(copy).encode())
        assert other != digest
        return other


def att(digest):
    return digest.replace(":", "-") + ".att"


def spec_of(model):
    return {"model": model, "conversion": {"candidates": [{"target": "None"}]}, "converterImage": "reg.example/torch:1"}


@pytest.fixture(scope="module")
def published(tmp_path_factory, registry, cnn_weights, keys):
    """A signed artifact for the tests of this file: pipeline, spec, digest."""
    folder = tmp_path_factory.mktemp("published")
    pipeline = Pipeline(folder / "work", f"{registry.host}/artifacts/published", registry.host)
    origin = pipeline.work / "origin" / "m"
    origin.mkdir(parents=True)
    (origin / "model.py").write_text(CNN)
    (origin / "model.yaml").write_text(YAML)
    shutil.copy(cnn_weights, origin)
    spec = spec_of({"uri": "pvc://models/m"})
    last = pipeline.run(spec, **signing(keys))
    assert last.reason == "Published", last.log
    return pipeline, spec, last.message["artifactDigest"]


@pytest.fixture
def signed(published):
    """That artifact; its statement is put back after a test that spoils it."""
    pipeline, spec, digest = published
    statement = Repository(pipeline.repository).manifest(att(digest)).content
    yield pipeline, spec, digest
    Repository(pipeline.repository).put(att(digest), statement)
    shutil.rmtree(pipeline.work / "pulled", ignore_errors=True)


def pull(pipeline, digest, folder):
    command = ["pull", "--repository", pipeline.repository, "--digest", digest, "--output", str(pipeline.work / "pulled")]
    return pipeline.step(command, {"model": {"uri": "x://"}}, signing(folder))


def test_provenance_is_attached_and_read_by_anybody_and_a_key_makes_it_be_converted_again(pipeline, model_folder, claim, keys, public):
    spec = spec_of(claim(model_folder))
    first = pipeline.run(spec)
    assert first.reason == "Published", first.log
    assert first.message["provenance"] == {"predicateType": "https://slsa.dev/provenance/v1"}
    digest, repository = first.message["artifactDigest"], Repository(pipeline.repository)
    manifest, layer = repository.attestation(digest)
    assert layer["mediaType"] == STATEMENT
    said = json.loads(repository.blob(layer))
    assert said["subject"] == [{"name": pipeline.repository, "digest": {"sha256": digest.removeprefix("sha256:")}}]
    build, run = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert build["externalParameters"]["model"] == spec["model"]
    assert build["internalParameters"]["contentKey"] == first.message["contentKey"]
    (source,) = build["resolvedDependencies"]
    assert f"sha256:{source['digest']['sha256']}" == first.message["sourceDigest"]
    assert run["builder"]["id"] == "oci://reg.example/torch:1"
    assert run["metadata"]["startedOn"] <= run["metadata"]["finishedOn"]
    config = repository.manifest(digest).json()["config"]["digest"]
    assert f"sha256:{run['byproducts'][0]['digest']['sha256']}" == config
    (row,) = repository.manifest(digest.replace(":", "-"), INDEX).json()["manifests"]  # OCI's list where there is no referrers API
    assert row["digest"] == f"sha256:{hashlib.sha256(repository.manifest(att(digest)).content).hexdigest()}"
    assert row["artifactType"] == manifest["artifactType"]

    assert pipeline.run(spec).reason == "CacheHit"
    assert pipeline.outcomes[-1].message["provenance"] == first.message["provenance"]
    refused = pull(pipeline, digest, public)
    assert (refused.code, refused.reason) == (EXIT_CODES["ProvenanceUnverified"], "ProvenanceUnverified")
    assert "nothing in the registry that is signed says where" in refused.text

    again = pipeline.run(spec, **signing(keys))
    assert again.reason == "Published", again.log
    assert "converting again" in pipeline.outcomes[-4].log
    assert again.message["contentKey"] == first.message["contentKey"]
    tagged = repository.manifest(first.message["contentKey"])
    assert f"sha256:{hashlib.sha256(tagged.content).hexdigest()}" == again.message["artifactDigest"]
    hit = pipeline.run(spec, **signing(keys))
    assert (hit.reason, hit.message["provenance"]) == ("CacheHit", again.message["provenance"])
    assert hit.message["artifactDigest"] == again.message["artifactDigest"]
    assert pull(pipeline, again.message["artifactDigest"], public).code == 0


def test_the_signature_is_one_for_openssl_and_the_pod_that_starts_again_needs_no_registry(signed, public, tmp_path):
    pipeline, _, digest = signed
    repository = Repository(pipeline.repository)
    _, layer = repository.attestation(digest)
    assert layer["mediaType"] == ENVELOPE
    assert layer["annotations"]["dev.cosignproject.cosign/signature"] == ""
    assert layer["annotations"]["predicateType"] == "https://slsa.dev/provenance/v1"
    envelope = json.loads(repository.blob(layer))
    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload)["subject"][0]["digest"] == {"sha256": digest.removeprefix("sha256:")}
    signed_bytes = f"DSSEv1 {len(STATEMENT)} {STATEMENT} {len(payload)} ".encode() + payload
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    arguments = ("-verify", str(public / "public.pem"), "-signature", str(tmp_path / "signature"))
    assert openssl("dgst", "-sha256", *arguments, data=signed_bytes).strip() == b"Verified OK"
    der = openssl("pkey", "-pubin", "-in", str(public / "public.pem"), "-outform", "DER")
    assert pipeline.outcomes[3].message["provenance"]["signedBy"] == hashlib.sha256(der).hexdigest()

    assert pull(pipeline, digest, public).code == 0
    pulled(pipeline, digest)  # every byte, and without a key as well
    away = replace(pipeline, plain_http="none.invalid")
    assert pull(away, digest, public).code == 0
    stranger = make_keys(tmp_path / "stranger")
    assert pull(away, digest, stranger).reason == "RegistryUnavailable"  # what another key signed is not taken from the disk either


def forged(repository, digest):
    """A statement of the signer whose payload was changed afterwards."""
    manifest, layer = repository.attestation(digest)
    envelope = json.loads(repository.blob(layer))
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["predicate"]["buildDefinition"]["resolvedDependencies"] = []
    envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
    repository.put(att(digest), json.dumps(manifest | {"layers": [layer | repository.put_blob(json.dumps(envelope).encode())]}).encode())
    return digest


def swapped(repository, digest):
    """The statement about another artifact, under the tag of this one."""
    other = repository.unattested(digest)
    manifest, _ = repository.attestation(digest)
    repository.put(att(other), json.dumps(manifest).encode())
    return other


def emptied(repository, digest):
    """A statement whose envelope is not JSON."""
    manifest, layer = repository.attestation(digest)
    repository.put(att(digest), json.dumps(manifest | {"layers": [layer | repository.put_blob(b"none")]}).encode())
    return digest


def listed(repository, digest):
    """An index where the statement was."""
    repository.put(att(digest), json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode(), INDEX)
    return digest


def lost(repository, digest):
    """Nothing is said about the artifact."""
    return repository.unattested(digest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (forged, "it is not signed by the key"),
        (swapped, "its statement is about {'sha256'"),
        (emptied, "its envelope is malformed"),
        (listed, "is no artifact"),
        (lost, "nothing in the registry that is signed says where"),
    ],
)
def test_what_is_not_loaded(signed, registry, public, tmp_path, change, words):  # noqa: PLR0917
    pipeline, spec, digest = signed
    target = change(Repository(pipeline.repository), digest)
    refused = pull(pipeline, target, public)
    assert (refused.code, refused.reason) == (66, "ProvenanceUnverified"), refused.log
    assert words in refused.text
    assert not (pipeline.work / "pulled").exists()
    access = Access((registry.host,), tmp_path / "none", Signing("slipway-signing", public))
    with pytest.raises(Failure, match="ProvenanceUnverified"):
        fetch(pipeline.repository, target, access, "/v2/models/cnn/infer")
    if target == digest:  # neither does it count as converted
        fetched = pipeline.run(spec, ("fetch",), **signing(public))
        assert (fetched.code, fetched.message["cached"]) == (0, False)
        assert "converting again" in fetched.log


def test_the_key_of_somebody_else(signed, tmp_path):
    pipeline, spec, digest = signed
    stranger = make_keys(tmp_path / "stranger")
    refused = pull(pipeline, digest, stranger)
    assert (refused.code, refused.reason) == (66, "ProvenanceUnverified")
    assert "it is not signed by the key" in refused.text
    assert pipeline.run(spec, ("fetch",), **signing(stranger)).message["cached"] is False


def test_keys_that_are_not_there(pipeline, model_folder, claim, public, tmp_path):
    spec, empty = spec_of(claim(model_folder)), tmp_path / "empty"
    empty.mkdir()
    last = pipeline.run(spec, **signing(empty))
    assert (last.step, last.code, last.reason) == ("fetch", 52, "SigningKeyUnusable")  # before anything was converted
    assert "Secret slipway-signing" in last.text
    assert "public.pem" in last.text
    last = pipeline.run(spec, **signing(public))
    assert (last.step, last.code, last.reason) == ("publish", 52, "SigningKeyUnusable"), last.log
    assert "private.pem" in last.text
    key = pipeline.outcomes[1].message["contentKey"]
    with pytest.raises(requests.HTTPError):
        Repository(pipeline.repository).manifest(key)  # nothing unsigned was left under the tag
    assert pull(pipeline, f"sha256:{'0' * 64}", public).reason == "ArtifactNotFound"
