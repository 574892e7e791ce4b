"""Who gets which key of the Secret that artifacts are signed with, and what becomes another artifact by it."""

from __future__ import annotations

from typing import Any

import pytest

from slipway import names
from slipway.api.reasons import REASONS, Reason
from slipway.plan.artifact import artifact_manifest, artifact_spec, conversion_job
from slipway.plan.rollout import Phase, Plan, Rollout
from slipway.plan.shadow import objects
from slipway.plan.workload import revision_deployment
from slipway.snapshot import Config
from unit.operator.test_workload import ARTIFACT, runtime
from unit.operator.world import CONFIG, World, model_deployment

SIGNED = Config(signing_secret="slipway-signing")
MODEL = {"model": {"uri": "oci://reg:5000/digits:v1"}}


def keys_of(pod: dict[str, Any]) -> dict[str, list[str]]:
    """Container → the files of the Secret that it can read, checked to be mounted where and as they should be."""
    volumes = {
        volume["name"]: volume["secret"] for volume in pod["volumes"] if volume.get("secret", {}).get("secretName") == "slipway-signing"
    }
    found = {}
    for container in [*pod.get("initContainers", ()), *pod["containers"]]:
        mounted = [mount for mount in container["volumeMounts"] if mount["name"] in volumes]
        variables = {item["name"]: item.get("value") for item in container.get("env", ())}
        assert variables.get("SLIPWAY_SIGNING_SECRET") == ("slipway-signing" if mounted else None), container["name"]
        for mount in mounted:
            assert (mount["mountPath"], mount["readOnly"]) == ("/var/run/slipway/signing", True)
            assert volumes[mount["name"]]["optional"] is True
            found[container["name"]] = sorted(item["key"] for item in volumes[mount["name"]]["items"])
    return found


def job_pod(config: Config) -> dict[str, Any]:
    artifact = artifact_manifest("default", artifact_spec(MODEL, config), [], None)
    return conversion_job(artifact, 1, config)["spec"]["template"]["spec"]


def server_pod(config: Config) -> dict[str, Any]:
    return revision_deployment(model_deployment(), "digits-1", ARTIFACT, runtime(), config)["spec"]["template"]["spec"]


def comparator_pod(config: Config) -> dict[str, Any]:
    resource = model_deployment(rollout={"shadow": {"percent": 100}})
    plan = Plan("digits-1", {}, {}, rollout=Rollout("digits-2", Phase.SHADOWING))
    artifact = artifact_manifest("default", artifact_spec(MODEL, config), [], None) | {"status": ARTIFACT["status"]}
    return objects(resource, plan, artifact, config)[0]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("pod", "keys"),
    [
        (job_pod, {"fetch": ["public.pem"], "publish": ["private.pem", "public.pem"]}),
        (server_pod, {"pull": ["public.pem"]}),
        (comparator_pod, {"comparator": ["public.pem"]}),
    ],
    ids=["conversion", "server", "comparator"],
)
def test_the_private_key_is_publish_s_alone(pod: Any, keys: dict[str, list[str]]) -> None:
    assert keys_of(pod(SIGNED)) == keys
    unsigned = pod(CONFIG)
    assert keys_of(unsigned) == {}
    assert not [volume for volume in unsigned["volumes"] if volume["name"].endswith("-key")]


def test_what_was_made_before_signing_is_another_artifact() -> None:
    before, after = artifact_spec(MODEL, CONFIG), artifact_spec(MODEL, SIGNED)
    assert names.artifact_name(before) != names.artifact_name(after)
    assert names.artifact_name(after) != names.artifact_name(artifact_spec(MODEL, Config(signing_secret="another")))
    assert artifact_spec(MODEL, Config(signing_secret=None)) == before


def test_a_job_of_an_artifact_from_before_signing_stays_as_it_was() -> None:
    artifact = artifact_manifest("default", artifact_spec(MODEL, CONFIG), [], None)
    assert conversion_job(artifact, 2, SIGNED) == conversion_job(artifact, 2, CONFIG)


@pytest.mark.parametrize("provenance", [None, {"predicateType": "https://slsa.dev/provenance/v1", "signedBy": "3f9a"}])
def test_the_status_says_who_signed(provenance: dict[str, str] | None) -> None:
    world = World(model_deployment())
    world.settle()
    world.finish_jobs(**({"provenance": provenance} if provenance else {}))
    world.settle()
    (artifact,) = world.kind("ModelArtifact").values()
    assert artifact["status"].get("provenance") == provenance


def test_an_artifact_that_is_not_signed_waits_for_a_person() -> None:
    assert not REASONS[Reason.PROVENANCE_UNVERIFIED].retried
    assert REASONS[Reason.SIGNING_KEY_UNUSABLE].retried
