"""fetch against real servers: each scheme, pins, accounts, broken connections, and what is absent."""

from __future__ import annotations

import base64
import hashlib
import json
import tarfile

import pytest

FETCH = ("fetch",)


def docker_config(folder, host, user, password):
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / ".dockerconfigjson").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def packed(folder, target):
    with tarfile.open(target, "w:gz") as archive:
        archive.add(folder, arcname="m")
    return f"sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}"


def test_oci_pin_absent_and_corrupt(pipeline, registry, model_folder, push):
    digest = push(registry.host, "models/pins", "v1", model_folder)
    base = f"oci://{registry.host}/models/pins"
    got = pipeline.run({"model": {"uri": f"{base}@{digest}", "digest": digest}}, FETCH)
    assert (got.code, got.message["sourceDigest"], got.message["cached"]) == (0, digest, False)
    wrong = pipeline.run({"model": {"uri": f"{base}:v1", "digest": f"sha256:{'0' * 64}"}}, FETCH)
    assert (wrong.code, wrong.reason) == (13, "DigestMismatch")
    assert digest in wrong.text
    assert pipeline.run({"model": {"uri": f"{base}:v2"}}, FETCH).code == 10
    small = pipeline.run({"model": {"uri": f"{base}:v1"}}, FETCH, SLIPWAY_MAX_SOURCE_BYTES="100")
    assert (small.code, small.reason) == (14, "SourceTooLarge")
    data = (model_folder / "model.py").read_bytes()
    hexadecimal = hashlib.sha256(data).hexdigest()
    blob = registry.data / f"docker/registry/v2/blobs/sha256/{hexadecimal[:2]}/{hexadecimal}/data"
    blob.write_bytes(data[:-1] + b"#")
    corrupt = pipeline.run({"model": {"uri": f"{base}:v1"}}, FETCH)
    blob.write_bytes(data)
    assert corrupt.reason == "DigestMismatch"
    assert hexadecimal in corrupt.text


def test_oci_accounts(pipeline, private_registry, model_folder, push):
    push(private_registry.host, "models/secret", "v1", model_folder, ("user", "secret"))
    spec = {"model": {"uri": f"oci://{private_registry.host}/models/secret:v1"}}
    pipeline.plain_http += f",{private_registry.host}"
    assert pipeline.run(spec, FETCH).reason == "CredentialsRejected"
    named = {"model": spec["model"] | {"credentialsSecretRef": {"name": "read"}}}
    (pipeline.work / "source-credentials" / "..data").mkdir(parents=True)  # as the kubelet mounts an optional Secret that is not there
    missing = pipeline.run(named, FETCH)
    assert (missing.code, missing.reason) == (16, "CredentialsMissing")
    assert "the Secret read" in missing.text
    docker_config(pipeline.work / "source-credentials", private_registry.host, "user", "wrong")
    assert pipeline.run(spec, FETCH).code == 12
    docker_config(pipeline.work / "source-credentials", private_registry.host, "user", "secret")
    assert pipeline.run(spec, FETCH).code == 0
    pipeline.repository = f"{private_registry.host}/artifacts"
    assert (got := pipeline.run(spec, FETCH)).reason == "RegistryRejected", got.log


def test_registry_and_source_away(pipeline, model_folder, claim):
    spec = {"model": claim(model_folder)}
    pipeline.repository, pipeline.plain_http = "127.0.0.1:1/artifacts", "127.0.0.1:1"
    away = pipeline.run(spec, FETCH)
    assert (away.code, away.reason) == (50, "RegistryUnavailable")
    assert "Connection refused" in away.text
    assert pipeline.run({"model": {"uri": "oci://127.0.0.1:1/x:y"}}, FETCH).reason == "SourceUnreachable"


def test_http(pipeline, web, model_folder):
    base, folder = web
    digest = packed(model_folder, folder / "m.tgz")
    got = pipeline.run({"model": {"uri": f"{base}/m.tgz", "digest": digest}}, FETCH)
    assert (got.code, got.message["sourceDigest"]) == (0, digest)
    assert (pipeline.work / "source" / "model" / "model.yaml").is_file()
    broken = pipeline.run({"model": {"uri": f"{base}/flaky/m.tgz", "digest": digest}}, FETCH)
    assert broken.code == 0, broken.log
    assert "going on from byte" in broken.log
    rows = {
        "/none.tgz": "SourceNotFound",
        "/error/m.tgz": "SourceUnreachable",
        "/private/m.tgz": "CredentialsRejected",
        "/m.txt": "ModelFolderInvalid",
    }
    for path, reason in rows.items():
        assert pipeline.run({"model": {"uri": base + path}}, FETCH).reason == reason
    assert pipeline.run({"model": {"uri": "http://127.0.0.1:1/m.tgz"}}, FETCH).reason == "SourceUnreachable"
    assert pipeline.run({"model": {"uri": f"{base}/m.tgz"}}, FETCH, SLIPWAY_MAX_SOURCE_BYTES="99").reason == "SourceTooLarge"


@pytest.mark.parametrize("files", [{"username": "user", "password": "secret"}, {"token": "t0ken"}])
def test_http_accounts(pipeline, web, model_folder, files):
    base, folder = web
    packed(model_folder, folder / "m.tgz")
    secret = pipeline.work / "source-credentials"
    secret.mkdir(parents=True)
    for name, value in files.items():
        (secret / name).write_text(value)
    assert pipeline.run({"model": {"uri": f"{base}/private/m.tgz"}}, FETCH).code == 0


def test_configmap_as_kubelet_mounts_it(pipeline, model_folder):
    origin = pipeline.work / "origin"
    dated = origin / "..2026_11_24"
    dated.mkdir(parents=True)
    lines = []
    for path in sorted(model_folder.iterdir()):
        (dated / path.name).write_bytes(path.read_bytes())
        (origin / path.name).symlink_to(f"..data/{path.name}")
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (origin / "..data").symlink_to(dated.name)
    got = pipeline.run({"model": {"uri": "configmap://m"}}, FETCH)
    assert got.message["sourceDigest"] == f"sha256:{hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}"
    (origin / "out").symlink_to("/etc/passwd")
    assert pipeline.run({"model": {"uri": "configmap://m"}}, FETCH).reason == "ModelFolderInvalid"


def test_scheme_and_settings(pipeline):
    assert pipeline.run({"model": {"uri": "ftp://x/y"}}, FETCH).code == 64
    assert pipeline.run({"model": {"uri": "configmap://none"}}, FETCH).reason == "SourceNotFound"
    assert pipeline.run({"model": {}}, FETCH).reason == "InvalidArguments"
