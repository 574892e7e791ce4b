"""What a ModelDeployment's serving part makes of the pod and its Services."""

from __future__ import annotations

import pytest

from slipway.plan.rollout import Plan
from slipway.plan.traffic import revision_service, stable_service
from slipway.plan.workload import existing_deployment, revision_deployment, revision_shape
from slipway.snapshot import Config
from unit.operator.world import model_deployment

ARTIFACT = {"metadata": {"name": "mart-1"}, "status": {"digest": "sha256:1", "format": "ONNX", "repository": "r:5000/a"}}


def runtime(**spec):
    return {"metadata": {"name": "slipway"}, "spec": {"image": "i", "args": ["--grpc-port={{grpcPort}}"], **spec}}


def server_of(serving, **spec):
    deployment = revision_deployment(model_deployment(serving=serving), "digits-1", ARTIFACT, runtime(**spec), CONFIG)
    return next(c for c in deployment["spec"]["template"]["spec"]["containers"] if c["name"] == "server")


CONFIG = Config()


@pytest.mark.parametrize(
    ("batching", "env"),
    [
        (None, {}),
        ({"maxBatchSize": 32}, {"SLIPWAY_MAX_BATCH_SIZE": "32", "SLIPWAY_MAX_DELAY": "0ms"}),
        ({"maxBatchSize": 8, "maxDelay": "2ms"}, {"SLIPWAY_MAX_BATCH_SIZE": "8", "SLIPWAY_MAX_DELAY": "2ms"}),
    ],
)
def test_batching_reaches_the_server(batching, env):
    got = {item["name"]: item["value"] for item in server_of({"batching": batching} if batching else {})["env"]}
    assert {name: value for name, value in got.items() if name.startswith("SLIPWAY_MAX")} == env


def test_the_user_s_own_variable_wins():
    own = {"name": "SLIPWAY_MAX_DELAY", "value": "9ms"}
    got = server_of({"batching": {"maxBatchSize": 8, "maxDelay": "2ms"}, "env": [own]})["env"]
    assert [item["value"] for item in got if item["name"] == "SLIPWAY_MAX_DELAY"] == ["9ms"]


def test_a_runtime_with_grpc_has_a_second_port():
    server = server_of({}, grpcPort=9000)
    assert [(port["name"], port["containerPort"]) for port in server["ports"]] == [("http", 8080), ("grpc", 9000)]
    assert server["args"] == ["--grpc-port=9000"]
    without = server_of({})
    assert [port["name"] for port in without["ports"]] == ["http"]
    assert without["args"] == ["--grpc-port=0"]


@pytest.mark.parametrize(
    "service",
    [
        revision_service(model_deployment(), "digits-1"),
        stable_service(model_deployment(), Plan("digits-1", {"digits-1": 100}, {"digits-1": 1}), has_gateway=False),
    ],
    ids=["revision", "stable"],
)
def test_both_services_reach_both_ports(service):
    ports = service["spec"]["ports"]
    assert [(port["name"], port["port"], port["targetPort"]) for port in ports] == [("http", 80, "http"), ("grpc", 9000, "grpc")]
    assert ports[1]["appProtocol"] == "kubernetes.io/h2c"


@pytest.mark.parametrize("empty", [{"env": []}, {"env": None}, {"tolerations": []}, {"nodeSelector": {}}], ids=str)
def test_an_emptied_field_is_the_same_revision_as_none(empty):
    """A list from which the last item was taken by server-side apply is stored as empty, as null, or not at all."""
    spec = {"model": {"uri": "oci://reg:5000/digits:v1"}}
    shape = revision_shape({**spec, "serving": {"replicas": 2, "runtime": "slipway"}})
    assert revision_shape({**spec, "serving": {"replicas": 2, "runtime": "slipway", **empty}}) == shape
    assert revision_shape({**spec, "serving": {"replicas": 1, **empty}}) == revision_shape(spec)


def pod_of(serving=None, accelerator=None, **spec):
    resource = model_deployment(serving=serving or {}, **({"accelerator": accelerator} if accelerator else {}))
    return revision_deployment(resource, "digits-1", ARTIFACT, runtime(**spec), CONFIG)["spec"]["template"]


def pull_of(pod):
    (container,) = pod["spec"]["initContainers"]
    return container["command"], {item["name"]: item for item in container["env"]}


GPU = {"resourceName": "nvidia.com/gpu", "count": 1}


@pytest.mark.parametrize(
    ("serving", "accelerator", "spec", "words"),
    [
        ({}, None, {}, None),
        ({}, None, {"layout": "Slipway"}, None),
        ({}, None, {"layout": "Triton"}, []),
        ({}, None, {"layout": "Triton", "metrics": {"port": 8002}}, ["--metrics-port", "8002"]),
        ({"batching": {"maxBatchSize": 8}}, None, {"layout": "Triton"}, ["--max-batch-size", "8", "--max-delay", "0ms"]),
        (
            {"batching": {"maxBatchSize": 8, "maxDelay": "2ms"}},
            GPU,
            {"layout": "TorchServe"},
            ["--max-batch-size", "8", "--max-delay", "2ms", "--gpu"],
        ),
    ],
)
def test_pull_is_told_the_layout(serving, accelerator, spec, words):
    command, variables = pull_of(pod_of(serving, accelerator, **spec))
    if words is None:
        assert "--layout" not in command
        assert "SLIPWAY_SERVER_MILLICPUS" not in variables
        return
    start = ["--layout", spec["layout"], "--layout-output", "/models/layout", "--model-name", "digits", "--port", "8080"]
    assert command[command.index("--layout") :] == [*start, *words]
    source = {"containerName": "server", "resource": "limits.cpu", "divisor": "1m"}
    assert variables["SLIPWAY_SERVER_MILLICPUS"]["valueFrom"] == {"resourceFieldRef": source}


@pytest.mark.parametrize(
    ("claimed", "accelerator", "image"),
    [
        ({}, None, "i"),
        ({}, GPU, "i"),
        ({"image": "f"}, GPU, "f"),
        ({"acceleratorImage": "a"}, None, "i"),
        ({"acceleratorImage": "a"}, GPU, "a"),
        ({"image": "f", "acceleratorImage": "a"}, None, "f"),
        ({"image": "f", "acceleratorImage": "a"}, GPU, "a"),
    ],
)
def test_the_image_is_that_of_the_format_and_of_what_it_runs_on(claimed, accelerator, image):
    others = [{"name": "TorchScript", "image": "t", "acceleratorImage": "u"}]
    pod = pod_of(accelerator=accelerator, formats=[*others, {"name": ARTIFACT["status"]["format"], **claimed}])
    assert pod["spec"]["containers"][0]["image"] == image


@pytest.mark.parametrize("layout", ["Slipway", "Triton"])
def test_class_names_go_to_who_reads_them(layout):
    pod = pod_of({"labels": ["zero", "one"]}, layout=layout)
    _, variables = pull_of(pod)
    told = {"name": "SLIPWAY_LABELS", "value": '["zero", "one"]'}
    assert variables.get("SLIPWAY_LABELS") == (told if layout == "Triton" else None), "pull writes them for a server that is not ours"
    assert told in pod["spec"]["containers"][0]["env"]


@pytest.mark.parametrize(("layout", "folder"), [({}, "/models/artifact"), ({"layout": "Triton"}, "/models/layout")])
def test_the_model_folder_is_the_layout_s(layout, folder):
    assert server_of({}, args=["{{modelDir}}"], **layout)["args"] == [folder]


def test_metrics_on_a_port_of_their_own():
    pod = pod_of(metrics={"path": "/metrics", "port": 8002}, args=["{{metricsPort}}"])
    (server,) = pod["spec"]["containers"]
    assert [(port["name"], port["containerPort"]) for port in server["ports"]] == [("http", 8080), ("metrics", 8002)]
    assert server["args"] == ["8002"]
    assert pod["metadata"]["annotations"] == {"prometheus.io/port": "8002", "prometheus.io/path": "/metrics"}
    same = pod_of(metrics={"port": 8080}, args=["{{metricsPort}}"])
    assert [port["name"] for port in same["spec"]["containers"][0]["ports"]] == ["http"]
    assert same["spec"]["containers"][0]["args"] == ["8080"]
    assert same["metadata"]["annotations"]["prometheus.io/port"] == "8080"


def test_a_server_that_stops_at_once_is_kept_while_its_endpoints_go():
    assert server_of({}, drainSeconds=5)["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "5"]}}}
    assert "lifecycle" not in server_of({})


def test_a_command_may_tell_that_the_server_has_started():
    server = server_of({}, probes={"startupCommand": ["ask", "{{modelName}}"], "readinessPath": "/ping"})
    assert server["startupProbe"]["exec"] == {"command": ["ask", "digits"]}
    assert "httpGet" not in server["startupProbe"]
    assert [server[f"{probe}Probe"]["httpGet"]["path"] for probe in ("readiness", "liveness")] == ["/ping", "/v2/health/live"]


def annotations(config, **spec):
    template = revision_deployment(model_deployment(), "digits-1", ARTIFACT, runtime(**spec), config)["spec"]["template"]
    return template["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("spec", "port", "path"),
    [
        ({}, "8080", "/metrics"),
        ({"port": 8000, "metrics": {"path": "/m"}}, "8000", "/m"),
        ({"port": 8000, "metrics": {"path": "/metrics", "port": 8002}}, "8002", "/metrics"),
    ],
)
def test_a_pod_says_where_its_metrics_are(spec, port, path):
    place = {"prometheus.io/port": port, "prometheus.io/path": path}
    assert annotations(CONFIG, **spec) == place
    assert annotations(Config(scrape_annotations=True), **spec) == {"prometheus.io/scrape": "true", **place}


def test_the_setting_changes_neither_revisions_nor_pods_that_run():
    made = revision_deployment(model_deployment(), "digits-1", ARTIFACT, runtime(), CONFIG)
    assert existing_deployment(model_deployment(), made) == made, "a revision keeps its template, whatever the settings have become"
    older = {**made, "spec": {**made["spec"], "template": {"metadata": {"labels": {}}, "spec": {"containers": []}}}}
    older["metadata"] = {**made["metadata"], "annotations": {}}
    assert existing_deployment(model_deployment(), older)["spec"]["template"] == older["spec"]["template"]
