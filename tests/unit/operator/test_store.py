from slipway import names
from slipway.plan.artifact import artifact_spec
from slipway.snapshot import Config, Key
from slipway.store import Store
from unit.operator.world import model_deployment


def thing(kind, name, version, *, uid=None, labels=None, owners=()):
    references = [{"kind": "ModelDeployment", "name": owner} for owner in owners]
    metadata = {"name": name, "namespace": "default", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": kind, "metadata": metadata | {"labels": labels or {}, "ownerReferences": references, "managedFields": [1]}}


def mdep(name="digits", version=1):
    manifest = model_deployment(name)
    manifest["metadata"]["resourceVersion"] = str(version)
    return manifest


def test_an_older_version_never_replaces_a_newer_one_and_managed_fields_are_dropped():
    store = Store(Config())
    assert store.observe(thing("Service", "s", 10))
    assert not store.observe(thing("Service", "s", 9))
    assert not store.observe(thing("Service", "s", 9, uid="another"))
    assert not store.observe(thing("Service", "s", 10))
    assert store.observe(thing("Service", "s", 11))
    assert "managedFields" not in store.get("Service", "default", "s")["metadata"]


def test_what_was_deleted_does_not_come_back_by_a_late_event_but_may_be_made_anew():
    store = Store(Config())
    store.observe(thing("Service", "s", 1))
    assert store.remove(thing("Service", "s", 2))
    assert not store.observe(thing("Service", "s", 2))
    assert store.observe(thing("Service", "s", 3, uid="new"))
    assert not store.remove(thing("Service", "s", 2))  # the late event about the old one
    assert store.get("Service", "default", "s") is not None


def test_a_model_deployment_sees_its_artifacts_only_and_hears_of_them():
    store = Store(Config())
    store.observe(mdep())
    needed = names.artifact_name(artifact_spec(model_deployment()["spec"], Config()))
    store.observe(thing("ModelArtifact", needed, 2))
    store.observe(thing("ModelArtifact", "mart-owned", 3, owners=["digits"]))
    store.observe(thing("ModelArtifact", "mart-other", 4, owners=["other"]))
    snapshot = store.gather(Key("ModelDeployment", "default", "digits"))
    assert set(snapshot.artifacts) == {needed, "mart-owned"}
    assert Key("ModelDeployment", "default", "digits") in store.keys_for(thing("ModelArtifact", needed, 5))


def test_labels_that_move_and_the_pods_of_a_server_are_no_part_of_the_artifact():
    store = Store(Config())
    store.observe(mdep())
    store.observe(thing("ModelArtifact", "mart-1", 1))
    store.observe(thing("Pod", "server", 2, labels={names.DEPLOYMENT: "digits", names.ARTIFACT: "mart-1"}))
    store.observe(thing("Job", "mart-1-1", 3, labels={names.ARTIFACT: "mart-1"}))
    artifact = store.gather(Key("ModelArtifact", "default", "mart-1"))
    assert ([j["metadata"]["name"] for j in artifact.jobs], artifact.pods) == (["mart-1-1"], ())
    assert len(store.gather(Key("ModelDeployment", "default", "digits")).pods) == 1
    store.observe(thing("Pod", "server", 4, labels={names.DEPLOYMENT: "other"}))
    assert store.gather(Key("ModelDeployment", "default", "digits")).pods == ()


def test_gone():
    assert Store(Config()).gather(Key("ModelDeployment", "default", "digits")) is None
