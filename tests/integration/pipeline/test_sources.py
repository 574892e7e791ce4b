"""fetch from object stores and from a hub: what each accepts, what it says, and that a cut connection goes on where it was."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.pipeline.stores import ACCESS, SECRET, CuttingProxy, HubShapedServer, Store, start_gcs, start_s3, upload_gcs

FETCH = ("fetch",)
S3_KEYS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-test-1"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = start_s3(tmp_path_factory.mktemp("s3"))
    yield store
    store.process.kill()


@pytest.fixture(scope="module")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = start_gcs(tmp_path_factory.mktemp("gcs"))
    yield store
    store.process.kill()


@pytest.fixture
def hub() -> Iterator[str]:
    HubShapedServer.commits, HubShapedServer.branches, HubShapedServer.lfs = {}, {}, set()
    HubShapedServer.lies, HubShapedServer.seen = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HubShapedServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def secret(pipeline, **keys):
    folder = pipeline.work / "source-credentials"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, value in keys.items():
        (folder / name).write_text(value)


def fetch(pipeline, uri, pin=None, **environment):
    spec = {"model": {"uri": uri, "credentialsSecretRef": {"name": "read"}} | ({"digest": pin} if pin else {})}
    got = pipeline.run(spec, FETCH, **environment)
    assert SECRET not in got.log
    assert HubShapedServer.token not in got.log
    return got


def tree_digest(folder):
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in folder.rglob("*")
        if path.is_file()
    ]
    return f"sha256:{hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}"


def packed(folder, target):
    with tarfile.open(target, "w:gz") as archive:
        archive.add(folder, arcname="m")
    return f"sha256:{hashlib.sha256(target.read_bytes()).hexdigest()}"


def same_files(pipeline, folder):
    got = pipeline.work / "source" / "model"
    return tree_digest(got) == tree_digest(folder)


def put(store, model_folder, name):
    target = store.data / "models" / name
    shutil.copytree(model_folder, target, dirs_exist_ok=True)
    (target / "sub").mkdir(exist_ok=True)
    (target / "sub" / "big.bin").write_bytes(os.urandom(3 << 20))
    return target


def test_s3_folder_and_file(pipeline, s3, model_folder):
    folder = put(s3, model_folder, "digits/v1")
    (s3.data / "models" / "digits" / "v10").mkdir(exist_ok=True)
    (s3.data / "models" / "digits" / "v10" / "other").write_text("not of v1")
    secret(pipeline, AWS_ENDPOINT_URL=s3.endpoint, **S3_KEYS)
    want = tree_digest(folder)
    got = fetch(pipeline, "s3://models/digits/v1", want)
    assert (got.code, got.message["sourceDigest"]) == (0, want), got.log
    assert same_files(pipeline, folder)
    digest = packed(model_folder, s3.data / "models" / "m.tar.gz")
    got = fetch(pipeline, "s3://models/m.tar.gz", digest)
    assert (got.code, got.message["sourceDigest"]) == (0, digest), got.log
    assert same_files(pipeline, model_folder)
    wrong = fetch(pipeline, "s3://models/digits/v1", f"sha256:{'0' * 64}")
    assert (wrong.reason, want in wrong.text) == ("DigestMismatch", True)


def test_s3_with_the_keys_of_kserve(pipeline, s3, model_folder):
    put(s3, model_folder, "kserve")
    host = s3.endpoint.partition("://")[2]
    keys = {"awsAccessKeyID": ACCESS, "awsSecretAccessKey": SECRET, "AWS_DEFAULT_REGION": "eu-test-1"}
    secret(pipeline, S3_ENDPOINT=host, S3_USE_HTTPS="0", **keys)
    assert (got := fetch(pipeline, "s3://models/kserve")).code == 0, got.log


def test_s3_what_goes_wrong(pipeline, s3, model_folder):
    put(s3, model_folder, "digits/v1")
    good = S3_KEYS | {"AWS_ENDPOINT_URL": s3.endpoint}
    rows = [
        ("s3://models/none", good, "SourceNotFound", "models/none"),
        ("s3://models/none.tar.gz", good, "SourceNotFound", "none.tar.gz"),
        ("s3://absent/digits", good, "SourceNotFound", "absent"),
        ("s3://models/digits/v1", good | {"AWS_SECRET_ACCESS_KEY": "wrong-marker"}, "CredentialsRejected", "SignatureDoesNotMatch"),
        ("s3://models/digits/v1", good | {"AWS_ACCESS_KEY_ID": "nobody"}, "CredentialsRejected", "refuses the credentials"),
        ("s3://models/digits/v1", {"AWS_ENDPOINT_URL": s3.endpoint}, "CredentialsMissing", "without an account"),
        ("s3://models/digits/v1", {"AWS_ACCESS_KEY_ID": "a"}, "CredentialsMissing", "AWS_SECRET_ACCESS_KEY"),
        ("s3://models/digits/v1", good | {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "SourceUnreachable", "127.0.0.1:1"),
    ]
    for uri, keys, reason, words in rows:
        secret(pipeline, **keys)
        got = fetch(pipeline, uri)
        assert (got.reason, words in got.text) == (reason, True), (uri, got.text)
        assert "wrong-marker" not in got.log
    secret(pipeline, **good)
    large = fetch(pipeline, "s3://models/digits/v1", SLIPWAY_MAX_SOURCE_BYTES="100000")
    assert large.reason == "SourceTooLarge"
    assert not list((pipeline.work / "source" / "model").rglob("*")), "refused before the first byte"


def test_s3_goes_on_after_a_cut(pipeline, s3, model_folder):
    folder = put(s3, model_folder, "digits/cut")
    with CuttingProxy(s3.endpoint, after=1 << 20, cuts=2) as proxy:
        secret(pipeline, **(S3_KEYS | {"AWS_ENDPOINT_URL": proxy.address}))
        got = fetch(pipeline, "s3://models/digits/cut", tree_digest(folder))
    assert got.code == 0, got.log
    assert proxy.cuts == 0
    starts = [int(text.removeprefix("bytes=").split("-")[0]) for text in proxy.ranges]
    assert starts, "the rest was asked for, not all of it"
    assert all(start > 0 for start in starts)
    assert same_files(pipeline, folder)


@pytest.mark.nightly  # its server takes three minutes of CPU to compile
def test_gs(pipeline, gcs, model_folder):
    folder = model_folder
    for path in folder.iterdir():
        upload_gcs(gcs, f"digits/v1/{path.name}", path.read_bytes())
    secret(pipeline, STORAGE_EMULATOR_HOST=gcs.endpoint)
    got = fetch(pipeline, "gs://models/digits/v1", tree_digest(folder))
    assert got.code == 0, got.log
    assert same_files(pipeline, folder)
    digest = packed(model_folder, gcs.data / "m.tgz")
    upload_gcs(gcs, "m.tgz", (gcs.data / "m.tgz").read_bytes())
    assert (got := fetch(pipeline, "gs://models/m.tgz", digest)).code == 0, got.log
    for uri in ("gs://models/none", "gs://models/none.zip"):
        assert (got := fetch(pipeline, uri)).reason == "SourceNotFound", (uri, got.text)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"}, "SourceUnreachable"),
        ({"other": "x"}, "CredentialsMissing"),
        ({"key.json": "{}"}, "CredentialsRejected"),
        ({"key.json": json.dumps({"private_key": "no key", "client_email": "a@b"})}, "CredentialsRejected"),
    ],
)
def test_gs_what_goes_wrong_before_anything_is_asked(pipeline, keys, reason):
    secret(pipeline, **keys)
    assert (got := fetch(pipeline, "gs://models/digits/v1")).reason == reason, got.text


def commit(folder: Path, name: str = "a" * 40) -> None:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    HubShapedServer.commits[name] = {"fp32/" + path: data for path, data in files.items()} | {".gitattributes": b"*", "README.md": b"#"}
    HubShapedServer.lfs = {"fp32/weights.safetensors"}
    HubShapedServer.branches["main"] = name


def test_hf(pipeline, hub, model_folder):
    commit(model_folder)
    secret(pipeline, HF_ENDPOINT=hub, HF_TOKEN=HubShapedServer.token)
    got = fetch(pipeline, "hf://private/digits/fp32", tree_digest(model_folder))
    assert got.code == 0, got.log
    assert same_files(pipeline, model_folder)
    assert f"commit {'a' * 40}" in got.log
    report = json.loads((pipeline.work / "report" / "fetch.json").read_text())
    assert report["sourceRevision"] == "a" * 40
    downloads = [(path, token) for path, token in HubShapedServer.seen if "/api/" not in path]
    assert all(f"/resolve/{'a' * 40}/" in path or path.startswith("/lfs/") for path, _ in downloads), "by commit, not by branch"
    assert [token for path, token in downloads if path.startswith("/lfs/")] == [None], "no token for another host"


def test_hf_revision_is_pinned_for_the_whole_download(pipeline, hub, model_folder):
    commit(model_folder)
    HubShapedServer.branches["v1"] = "a" * 40
    (model_folder / "extra.txt").write_text("new")
    commit(model_folder, "b" * 40)
    secret(pipeline, HF_ENDPOINT=hub)
    assert fetch(pipeline, "hf://acme/digits@v1/fp32").message["sourceRevision"] == "a" * 40
    assert fetch(pipeline, f"hf://acme/digits@{'b' * 40}/fp32").message["sourceRevision"] == "b" * 40
    assert (pipeline.work / "source" / "model" / "extra.txt").is_file()


def test_hf_what_goes_wrong(pipeline, hub, model_folder):
    commit(model_folder)
    token = {"HF_TOKEN": HubShapedServer.token}
    rows = [
        ("hf://acme/none", {}, "CredentialsMissing", "has no acme/none"),
        ("hf://acme/none", token, "CredentialsRejected", "has no acme/none"),
        ("hf://private/digits", {"HF_TOKEN": "hf_wrong"}, "CredentialsRejected", "not for this account"),
        ("hf://acme/gated", token, "CredentialsRejected", "gated"),
        ("hf://acme/digits@v9", {}, "SourceNotFound", "v9"),
        ("hf://acme/digits/int8", {}, "SourceNotFound", "int8"),
        ("hf://digits", {}, "InvalidArguments", "hf://OWNER/NAME"),
        ("hf://acme/digits", {"HF_ENDPOINT": "http://127.0.0.1:1"}, "SourceUnreachable", "127.0.0.1:1"),
    ]
    for uri, keys, reason, words in rows:
        secret(pipeline, **({"HF_ENDPOINT": hub} | keys))
        got = fetch(pipeline, uri)
        assert (got.reason, words in got.text) == (reason, True), (uri, got.text)
    secret(pipeline, HF_ENDPOINT=hub)
    assert fetch(pipeline, "hf://acme/digits/fp32", SLIPWAY_MAX_SOURCE_BYTES="100").reason == "SourceTooLarge"
    for name in ("model.py", "weights.safetensors"):
        sent = HubShapedServer.commits["a" * 40][f"fp32/{name}"]
        HubShapedServer.lies = {f"fp32/{name}": bytes([sent[0] ^ 1]) + sent[1:]}
        assert (got := fetch(pipeline, "hf://acme/digits/fp32")).reason == "DigestMismatch", got.text
