"""Unreferenced artifacts leave a real registry, by the real operator; and the disk, by registry-gc."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from integration.operator.conftest import PATIENCE, Operator, Tenant, ready_status, until
from integration.pipeline.conftest import HTPASSWD, ROOT, RegistryProcess, push_model, registry_binary, start_registry
from slipway import names
from slipway.cli.registry import MODEL_TYPE
from slipway.plan.artifact import artifact_manifest, artifact_spec
from slipway.plan.garbage import ARTIFACT_TYPE, MARK_TYPE, mark_annotations, mark_tag
from slipway.registry import DeleteForbiddenError, Registry, RejectedError
from slipway.snapshot import Config

pytestmark = [pytest.mark.slow]
GRACE = 4


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    running = start_registry(tmp_path_factory.mktemp("registry"), deletes=True)
    yield running
    running.process.kill()


def push(registry: RegistryProcess, tmp_path: Path, repository: str, tag: str, *content: str) -> str:
    """Push a file with this content as a manifest, of an artifact unless a type follows; returns its digest."""
    folder = tmp_path / f"pushed-{content[0]}"
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_text(content[0])
    return push_model(registry.host, repository, tag, folder, kind=(*content, ARTIFACT_TYPE)[1])


def tags(registry: RegistryProcess, repository: str) -> set[str]:
    try:
        with urllib.request.urlopen(f"http://{registry.host}/v2/{repository}/tags/list", timeout=5) as answer:
            return set(json.load(answer)["tags"] or ())
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return set()


def marks(registry: RegistryProcess, repository: str) -> set[str]:
    return {tag for tag in tags(registry, repository) if tag.startswith("unreferenced-")}


def has(registry: RegistryProcess, repository: str, digest: str) -> bool:
    request = urllib.request.Request(f"http://{registry.host}/v2/{repository}/manifests/{digest}", method="HEAD")
    request.add_header("Accept", "application/vnd.oci.image.manifest.v1+json")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return False


def settings(registry: RegistryProcess, **more: str) -> dict[str, str]:
    own = {"SLIPWAY_REGISTRY": f"{registry.host}/artifacts", "SLIPWAY_PLAIN_HTTP": registry.host}
    return own | {"SLIPWAY_REGISTRY_GRACE_SECONDS": str(GRACE)} | more


def artifact(tenant: Tenant, name: str, digest: str | None) -> str:
    """Make a ModelArtifact that names a digest; without one, it is being converted."""
    spec = artifact_spec({"model": {"uri": f"oci://registry:5000/models/{name}:v1"}}, Config())
    manifest = artifact_manifest(tenant.name, spec, [], None)
    tenant.apply(manifest)
    if digest is not None:
        finish(tenant, manifest["metadata"]["name"], digest)
    return str(manifest["metadata"]["name"])


def finish(tenant: Tenant, name: str, digest: str) -> None:
    tenant.server.kube.patch(tenant.name, "mart", name, {"status": ready_status(name) | {"digest": digest}}, subresource="status")


def log(operator: Operator) -> str:
    return operator.log.read_text()[-3000:]


def test_an_unreferenced_artifact_goes_after_the_grace_period_and_nothing_else_does(
    tenant: Tenant, registry: RegistryProcess, tmp_path: Path
) -> None:
    repository = f"artifacts/{tenant.name}"
    used = push(registry, tmp_path, repository, "1" * 64, "used")
    unused = push(registry, tmp_path, repository, "2" * 64, "unused")
    signature = push(registry, tmp_path, repository, f"sha256-{unused[7:]}.att", "signature", "application/vnd.example.attestation")
    model = push(registry, tmp_path, repository, "v1", "model", MODEL_TYPE)
    likewise = push(registry, tmp_path, repository, "3" * 64, "tagged-like-an-artifact", MODEL_TYPE)
    elsewhere = push(registry, tmp_path, "artifacts/another-namespace", "2" * 64, "elsewhere")
    artifact(tenant, "used", used)
    operator = tenant.lead(**settings(registry))
    until(lambda: marks(registry, repository), PATIENCE, lambda: log(operator))
    first = marks(registry, repository)
    assert len(first) == 1
    since = int(next(iter(first)).split("-")[1])
    assert has(registry, repository, unused)
    operator.end()
    time.sleep(1)
    operator = tenant.lead(**settings(registry))
    seen: set[str] = set()

    def is_gone() -> bool:
        seen.update(marks(registry, repository))
        return not has(registry, repository, unused)

    until(is_gone, PATIENCE, lambda: log(operator))
    assert time.time() - since >= GRACE
    assert seen <= first, "the restart began anew"
    left = {"1" * 64, "v1", "3" * 64}
    until(lambda: tags(registry, repository) == left, PATIENCE, lambda: tags(registry, repository))
    assert not has(registry, repository, signature)
    assert all(has(registry, repository, digest) for digest in (used, model, likewise))
    time.sleep(2.5)
    assert tags(registry, repository) == left
    assert has(registry, "artifacts/another-namespace", elsewhere), "that namespace is not watched"
    assert marks(registry, "artifacts/another-namespace") == set()
    assert "slipway_registry_artifacts_deleted_total 1.0" in operator.metrics()
    assert "slipway_registry_unreferenced_artifacts 0.0" in operator.metrics()
    assert "WARNING slipway" not in operator.log.read_text()


def test_one_that_is_referenced_again_or_may_soon_be_stays(tenant: Tenant, registry: RegistryProcess, tmp_path: Path) -> None:
    repository = f"artifacts/{tenant.name}"
    again = push(registry, tmp_path, repository, "1" * 64, "again")
    operator = tenant.lead(**settings(registry, SLIPWAY_REGISTRY_GRACE_SECONDS="8"))
    until(lambda: marks(registry, repository), PATIENCE, lambda: log(operator))
    artifact(tenant, "again", again)
    until(lambda: not marks(registry, repository), PATIENCE, lambda: log(operator))
    waiting = push(registry, tmp_path, repository, "2" * 64, "waiting")
    converting = artifact(tenant, "converting", None)  # its Job may find `waiting` in the registry any time
    until(lambda: marks(registry, repository), PATIENCE, lambda: log(operator))
    time.sleep(11)
    assert has(registry, repository, waiting)
    finish(tenant, converting, again)
    until(lambda: not has(registry, repository, waiting), PATIENCE, lambda: log(operator))
    assert has(registry, repository, again)


def test_the_embedded_registry_is_restarted_once(tenant: Tenant, registry: RegistryProcess, tmp_path: Path) -> None:
    container = {"name": "registry", "image": "registry"}
    template = {"metadata": {"labels": {"app": "r"}, "annotations": {"note": "theirs"}}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "r"}}, "template": template}
    tenant.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "slipway-registry"}, "spec": spec})
    repository = f"artifacts/{tenant.name}"
    gone = push(registry, tmp_path, repository, "1" * 64, "gone")
    operator = tenant.lead(**settings(registry, SLIPWAY_REGISTRY_DEPLOYMENT="slipway-registry"))

    def deployment() -> Any:
        return tenant.get("deployment", "slipway-registry")

    until(lambda: not has(registry, repository, gone), PATIENCE, lambda: log(operator))
    until(lambda: names.FREED in deployment()["spec"]["template"]["metadata"]["annotations"], PATIENCE, lambda: log(operator))
    found = deployment()
    assert names.GARBAGE not in found["metadata"].get("annotations", {})
    assert found["spec"]["template"]["metadata"]["annotations"]["note"] == "theirs"
    second = push(registry, tmp_path, repository, "2" * 64, "second")
    until(lambda: not has(registry, repository, second), PATIENCE, lambda: log(operator))
    until(lambda: names.GARBAGE in deployment()["metadata"].get("annotations", {}), PATIENCE, lambda: log(operator))
    time.sleep(2)
    assert deployment()["spec"] == found["spec"], "once a day"


def test_a_registry_that_forbids_deletion_is_told_once(tenant: Tenant, tmp_path: Path) -> None:
    forbidding = start_registry(tmp_path)
    try:
        repository = f"artifacts/{tenant.name}"
        kept = push(forbidding, tmp_path, repository, "1" * 64, "kept")
        operator = tenant.lead(**settings(forbidding, SLIPWAY_REGISTRY_GRACE_SECONDS="2"))
        until(
            lambda: 'slipway_registry_collections_total{result="DeleteForbidden"} 3.0' in operator.metrics(),
            PATIENCE,
            lambda: log(operator),
        )
        assert operator.log.read_text().count("does not delete manifests (HTTP 405)") == 1
        assert has(forbidding, repository, kept)
        forbidding.process.kill()
        until(lambda: 'result="Unavailable"' in operator.metrics(), PATIENCE, lambda: log(operator))
        assert operator.leads()
    finally:
        forbidding.process.kill()


async def test_the_client_on_a_real_registry(registry: RegistryProcess, tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        client = Registry(session, registry.host, is_plain=True)
        assert await client.repositories() == []
        assert await client.tags("artifacts/a") == []
        assert await client.manifest("artifacts/a", "x") is None
        digest = push(registry, tmp_path, "artifacts/a", "1" * 64, "one")
        push(registry, tmp_path, "models/digits", "v1", "two", MODEL_TYPE)
        assert await client.repositories() == ["artifacts/a", "models/digits"]
        tag = mark_tag(digest, 1_800_000_000)
        await client.put_empty("artifacts/a", tag, MARK_TYPE, mark_annotations(digest, datetime.now(UTC)))
        assert sorted(await client.tags("artifacts/a")) == sorted(["1" * 64, tag])
        mark = await client.manifest("artifacts/a", tag)
        assert mark is not None
        assert (mark.artifact_type, digest in json.dumps(mark.value["annotations"])) == (MARK_TYPE, True)
        assert await client.delete("artifacts/a", mark.digest)
        assert not await client.delete("artifacts/a", mark.digest)
        assert await client.tags("artifacts/a") == ["1" * 64]
        assert await client.delete("artifacts/a", digest)
        assert await client.tags("artifacts/a") == []


async def test_the_client_with_a_password_and_without_the_right_to_delete(tmp_path: Path) -> None:
    private = start_registry(tmp_path, f"user:{HTPASSWD}\n")
    try:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(RejectedError, match="HTTP 401"):
                await Registry(session, private.host, is_plain=True).tags("artifacts/a")
            secret = {"auths": {private.host: {"username": "user", "password": "secret"}}}
            (tmp_path / ".dockerconfigjson").write_text(json.dumps(secret))
            client = Registry(session, private.host, is_plain=True, credentials=tmp_path)
            await client.put_empty("artifacts/a", "unreferenced", MARK_TYPE, {})
            mark = await client.manifest("artifacts/a", "unreferenced")
            assert mark is not None
            with pytest.raises(DeleteForbiddenError):
                await client.delete("artifacts/a", mark.digest)
    finally:
        private.process.kill()


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def collect(folder: Path, data: Path) -> str:
    """What the registry's pod does before the registry starts; it must end well."""
    environment = os.environ | {"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(data), "OTEL_TRACES_EXPORTER": "none"}
    command = [str(ROOT / "build/bin/registry-gc"), registry_binary(), "garbage-collect", str(folder / "config.yml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


async def test_the_disk_is_freed_before_the_registry_starts(tmp_path: Path) -> None:
    running = start_registry(tmp_path, deletes=True)
    try:
        kept = push(running, tmp_path, "artifacts/a", "1" * 64, "k" * 10)
        gone = push(running, tmp_path, "artifacts/a", "2" * 64, "g" * 200)
        model = push(running, tmp_path, "models/m", "v1", "m" * 30, MODEL_TYPE)
        untagged = push(running, tmp_path, "models/m", "v2", "u" * 40, MODEL_TYPE)
        assert push(running, tmp_path, "models/m", "v2", "w" * 40, MODEL_TYPE) != untagged
        async with aiohttp.ClientSession() as session:
            assert await Registry(session, running.host, is_plain=True).delete("artifacts/a", gone)
    finally:
        running.process.kill()
        running.process.wait()
    before = size(running.data)
    said = collect(tmp_path, running.data)
    assert "2 blobs and 0 manifests eligible for deletion" in said, "its manifest and its file; the config is everybody's"
    assert before - size(running.data) > 200
    assert "0 blobs and 0 manifests eligible for deletion" in collect(tmp_path, running.data)
    again = start_registry(tmp_path, deletes=True)
    try:
        assert [has(again, "artifacts/a", digest) for digest in (kept, gone)] == [True, False]
        assert [has(again, "models/m", digest) for digest in (model, untagged)] == [True, True]
        assert push(again, tmp_path, "artifacts/a", "2" * 64, "g" * 200) == gone, "what was freed can be pushed again"
        assert has(again, "artifacts/a", gone)
    finally:
        again.process.kill()


def test_registry_gc_passes_its_own_tests() -> None:
    # -trimpath: what another clone has compiled will do
    environment = os.environ | {"PATH": f"{os.environ['PATH']}:/usr/local/go/bin", "GOFLAGS": "-mod=readonly -trimpath"}
    folder = ROOT / "hack/tools/registry-gc"
    done = subprocess.run(["go", "test", "./..."], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_empty_volume_and_a_damaged_one_do_not_keep_the_registry_from_starting(tmp_path: Path) -> None:
    running = start_registry(tmp_path)
    running.process.kill()
    assert "no repositories yet" in collect(tmp_path, running.data)
    running.data.mkdir(exist_ok=True)
    assert "no repositories yet" in collect(tmp_path, running.data)
    running = start_registry(tmp_path)
    digests = [push(running, tmp_path, "artifacts/a", str(number) * 64, f"content {number}") for number in range(4)]
    running.process.kill()
    running.process.wait()
    blobs = [running.data / f"docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data" for digest in digests]
    blobs[1].unlink()
    assert "1 blobs and 0 manifests eligible for deletion" in collect(tmp_path, running.data), "the file of the manifest that is lost"
    blobs[2].write_text("damaged")
    everything = size(running.data)
    assert "the registry starts all the same" in collect(tmp_path, running.data)
    assert size(running.data) == everything
    running = start_registry(tmp_path)
    assert [has(running, "artifacts/a", digests[number]) for number in (0, 1, 3)] == [True, False, True]
    running.process.kill()
