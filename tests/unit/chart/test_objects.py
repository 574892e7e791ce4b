"""What the chart renders: pods, images, settings, CRDs, labels."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from slipway.api.models import ServingRuntime
from slipway.cli.report import PRICES, PRICES_KEY
from slipway.plan.cost import INSTANCE_TYPE, parse_prices
from slipway.plan.workload import runtime_for
from slipway.settings import Settings
from unit.chart.rendering import CHART, NAMESPACE, ROOT, Manifest, environment, of_kind, pod_specs, render

WORKLOADS = {"slipway-operator", "slipway-registry"}
VARIANTS: dict[str, Manifest] = {
    "default": {},
    "namespaced": {"operator": {"watchNamespaces": ["a", "b"]}},
    "external registry": {"artifactRegistry": {"embedded": {"enabled": False}, "url": "registry.example:5000/models", "plainHTTP": True}},
    "nothing optional": {
        "servingRuntimes": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "crds": {"enabled": False},
        "operator": {"podDisruptionBudget": {"enabled": False}},
    },
    "everything set": {
        "cost": {"nodePrices": [{"instanceType": "m5.large", "pricePerHour": 0.096}]},
        "imagePullSecrets": ["pull"],
        "operator": {
            "podLabels": {"team": "ml"},
            "podAnnotations": {"note": "1"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
        },
        "registry": {
            "storage": {"storageClassName": "fast", "size": "1Ti"},
            "podLabels": {"team": "ml"},
            "podAnnotations": {"note": "1"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "high",
        },
        "prePull": {"enabled": True, "nodeSelector": {"gpu": "yes"}},
    },
}


def not_restricted(pod: Manifest) -> list[str]:
    """What the Pod Security Standard `restricted` would refuse, and what we ask for beyond it."""
    faults = [f"pod: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    allowed = {"emptyDir", "configMap", "secret", "projected", "downwardAPI", "persistentVolumeClaim", "csi", "ephemeral"}
    faults += [f"volume {volume['name']}" for volume in pod.get("volumes", []) if not set(volume) - {"name"} <= allowed]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
        checks = {
            "privileged": not context.get("privileged"),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is False,
            "capabilities": context.get("capabilities") == {"drop": ["ALL"]},
            "runAsNonRoot": context.get("runAsNonRoot") is True,
            "runAsUser": context.get("runAsUser") == 65532,
            "seccompProfile": context.get("seccompProfile") == {"type": "RuntimeDefault"},
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is True,
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
            "requests": {"cpu", "memory"} <= set(container["resources"]["requests"]),
            "memory limit": "memory" in container["resources"]["limits"],
        }
        faults += [f"{container['name']}: {name}" for name, is_right in checks.items() if not is_right]
    return faults


@pytest.fixture(scope="module")
def default() -> list[Manifest]:
    return render()


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_pod_is_restricted(values: Manifest) -> None:
    pods = pod_specs(render(values))
    wanted = WORKLOADS if values.get("artifactRegistry") is None else {"slipway-operator"}
    assert set(pods) == wanted | ({"slipway-pre-pull"} if values.get("prePull") else set())
    assert {name: not_restricted(pod) for name, pod in pods.items() if not_restricted(pod)} == {}


def test_the_checker_finds_faults() -> None:
    bad: dict[str, Any] = {"name": "c", "resources": {"requests": {}, "limits": {}}, "ports": [{"hostPort": 1}]}
    faults = not_restricted({"hostNetwork": True, "volumes": [{"name": "v", "hostPath": {}}], "containers": [bad]})
    assert len(faults) == 2 + 9


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_object_is_labelled_and_placed(values: Manifest) -> None:
    cluster_scoped = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    allowed = {NAMESPACE, *values.get("operator", {}).get("watchNamespaces", [])}
    for manifest in render(values):
        metadata = manifest["metadata"]
        if manifest["kind"] != "CustomResourceDefinition":
            assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
            assert metadata["labels"]["app.kubernetes.io/part-of"] == "slipway"
        assert (metadata.get("namespace") in allowed) != (manifest["kind"] in cluster_scoped), metadata


def test_no_kind_of_ours_is_installed_by_helm(default: list[Manifest]) -> None:
    assert not [o for o in default if o["apiVersion"].startswith("slipway.dev/")]
    assert not [o for o in default if "helm.sh/hook" in o["metadata"].get("annotations", {})]


def test_images_are_used_where_they_belong() -> None:
    images = {"image": "r:1", "torchImage": "t:1", "libtorchImage": "l:1"}
    values = {"operator": {"image": "o:1"}, "runtime": images, "registry": {"image": "g:1"}}
    objects = render(values)
    assert {name: pod["containers"][0]["image"] for name, pod in pod_specs(objects).items()} == {
        "slipway-operator": "o:1",
        "slipway-registry": "g:1",
    }
    assert environment(objects)["SLIPWAY_CONVERTER_IMAGE"] == "t:1"
    assert environment(objects)["SLIPWAY_RUNTIME_IMAGE"] == "r:1"
    runtime = shipped_runtimes(objects)["slipway"]
    assert runtime["spec"]["image"] == "r:1"
    assert {entry["name"]: entry.get("image") for entry in runtime["spec"]["formats"]} == {
        "ONNX": None,
        "TorchScript": "t:1",
        "PyTorch": "t:1",
        "ExportedProgram": "t:1",
        "AOTInductor": "t:1",
        "TorchServe": "t:1",
    }
    accelerated = {entry["name"]: entry["acceleratorImage"] for entry in runtime["spec"]["formats"] if "acceleratorImage" in entry}
    assert accelerated == {"ONNX": "t:1"}, "its onnxruntime knows CUDA"
    assert {entry["priority"] for entry in runtime["spec"]["formats"]} == {10}
    assert shipped_runtimes(objects)["libtorch"]["spec"]["image"] == "l:1"


def shipped_runtimes(objects: list[Manifest]) -> dict[str, Manifest]:
    """The ServingRuntimes that the operator applies, by name."""
    text = of_kind(objects, "ConfigMap")["slipway-servingruntimes"]["data"]["servingruntimes.yaml"]
    return {runtime["metadata"]["name"]: runtime for runtime in yaml.safe_load_all(text)}


def test_no_format_has_another_default_than_slipway(default: list[Manifest]) -> None:
    runtimes = tuple(shipped_runtimes(default).values())
    names = {entry["name"] for runtime in runtimes for entry in runtime["spec"]["formats"]}
    chosen = {name: runtime_for(name, None, runtimes) for name in names}
    assert {name: runtime and runtime["metadata"]["name"] for name, runtime in chosen.items()} == dict.fromkeys(names, "slipway")


def test_other_systems_servers_are_shipped_on_request(default: list[Manifest]) -> None:
    assert set(shipped_runtimes(default)) == {"slipway", "libtorch"}
    values = {name: {"enabled": True, "image": f"{name}:1"} for name in ("triton", "torchserve")}
    runtimes = shipped_runtimes(render({"servingRuntimes": values}))
    assert {name: runtimes[name]["spec"]["image"] for name in values} == {"triton": "triton:1", "torchserve": "torchserve:1"}
    for name in values:
        spec = ServingRuntime.model_validate(runtimes[name]).spec
        assert spec.layout.lower() == name
        assert spec.metrics.port not in (None, spec.port, spec.grpc_port)
        assert "{{modelDir}}" in " ".join(spec.args or ())
    ours = {entry["name"] for entry in runtimes["slipway"]["spec"]["formats"]}
    chosen = {name: runtime_for(name, None, tuple(runtimes.values())) for name in ours}
    assert {runtime and runtime["metadata"]["name"] for runtime in chosen.values()} == {"slipway"}, "nobody gets them unasked"


@pytest.mark.parametrize("name", ["slipway", "libtorch"])
def test_the_shipped_serving_runtimes_are_valid(default: list[Manifest], name: str) -> None:
    runtime = shipped_runtimes(default)[name]
    ServingRuntime.model_validate(runtime)
    arguments = " ".join(runtime["spec"]["args"])
    assert [part for part in ("modelDir", "artifactDigest", "modelName", "revision", "port") if f"{{{{{part}}}}}" not in arguments] == []


def test_other_images_restart_the_operator_which_applies_the_runtimes(default: list[Manifest]) -> None:
    def annotations(objects: list[Manifest]) -> Manifest:
        return dict(of_kind(objects, "Deployment")["slipway-operator"]["spec"]["template"]["metadata"]["annotations"])

    assert annotations(default) != annotations(render({"runtime": {"image": "other:1"}}))


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_operator_understands_its_environment(values: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"SLIPWAY_{name}".upper() for name in Settings.model_fields}
    for name, value in environment(render(values)).items():
        assert name in names
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.namespace == NAMESPACE
    assert settings.namespaces == tuple(values.get("operator", {}).get("watchNamespaces", ()))


def test_settings_reach_the_operator_as_they_are() -> None:
    big = {"qps": 1000000, "burst": 2000000, "workers": 3, "resyncSeconds": 7, "drainSeconds": 0}
    found = environment(render({"operator": big | {"maxSourceBytes": 10**15, "logFormat": "text"}}))
    settings = {name.removeprefix("SLIPWAY_").lower(): value for name, value in found.items()}
    assert Settings.model_validate(settings).model_dump(include={"qps", "burst", "workers", "resync_seconds", "drain_seconds"}) == {
        "qps": 1e6, "burst": 2000000, "workers": 3, "resync_seconds": 7, "drain_seconds": 0,
    }  # fmt: skip
    assert found["SLIPWAY_MAX_SOURCE_BYTES"] == "1000000000000000"
    assert found["SLIPWAY_LOG_FORMAT"] == "text"


def test_where_canaries_are_measured_and_who_is_told(default: list[Manifest]) -> None:
    assert not {"SLIPWAY_PROMETHEUS_ADDRESS", "SLIPWAY_WEBHOOK_URL"} & set(environment(default))
    address = "http://prometheus.monitoring:9090"
    found = environment(
        render({"prometheus": {"address": address, "builtIn": True}, "notifications": {"webhookSecret": "rollout-webhook"}})
    )
    assert found["SLIPWAY_WEBHOOK_URL"] == {"secretKeyRef": {"name": "rollout-webhook", "key": "url"}}
    assert found["SLIPWAY_WEBHOOK_SECRET"] == {"secretKeyRef": {"name": "rollout-webhook", "key": "secret"}}
    values = {"prometheus_address": found["SLIPWAY_PROMETHEUS_ADDRESS"], "analysis_source": found["SLIPWAY_ANALYSIS_SOURCE"]}
    assert Settings.model_validate(values).prometheus_address == address
    with pytest.raises(ValueError, match="SLIPWAY_PROMETHEUS_ADDRESS is needed"):
        Settings.model_validate({"analysis_source": "Prometheus"})


def test_who_scales(default: list[Manifest]) -> None:
    assert environment(default)["SLIPWAY_AUTOSCALING_PROVIDER"] == "Auto"
    wish = {"provider": "KEDA", "pollingSeconds": 5, "cooldownSeconds": 10**7}
    found = environment(render({"autoscaling": wish, "prometheus": {"address": "http://prometheus.monitoring:9090"}}))
    config = Settings.model_validate({name.removeprefix("SLIPWAY_").lower(): value for name, value in found.items()}).config()
    assert (config.autoscaling_provider, config.polling_seconds, config.cooldown_seconds) == ("KEDA", 5, 10**7)
    assert config.prometheus_address == "http://prometheus.monitoring:9090"
    with pytest.raises(ValueError, match="SLIPWAY_PROMETHEUS_ADDRESS is needed"):
        Settings.model_validate({"autoscaling_provider": "KEDA"})


def test_an_external_registry() -> None:
    registry = {"embedded": {"enabled": False}, "url": "registry.example:5000/models", "plainHTTP": True, "credentialsSecret": "push"}
    objects = render({"artifactRegistry": registry})
    assert not of_kind(objects, "PersistentVolumeClaim")
    found = environment(objects)
    assert found["SLIPWAY_REGISTRY"] == "registry.example:5000/models"
    assert found["SLIPWAY_PLAIN_HTTP"] == "registry.example:5000"
    assert found["SLIPWAY_REGISTRY_SECRET"] == "push"


def test_what_leaves_a_registry_and_who_may(default: list[Manifest]) -> None:
    found = environment(default)
    assert (found["SLIPWAY_REGISTRY_GRACE_SECONDS"], found["SLIPWAY_REGISTRY_DEPLOYMENT"]) == ("86400", "slipway-registry")
    assert environment(render({"artifactRegistry": {"graceSeconds": 10**7}}))["SLIPWAY_REGISTRY_GRACE_SECONDS"] == "10000000"
    external = {"embedded": {"enabled": False}, "url": "registry.example/x", "operatorCredentialsSecret": "delete"}
    left_alone = environment(render({"artifactRegistry": external}))
    assert not {"SLIPWAY_REGISTRY_GRACE_SECONDS", "SLIPWAY_REGISTRY_DEPLOYMENT"} & left_alone.keys(), "other clusters may use it too"
    objects = render({"artifactRegistry": external | {"collectExternal": True}})
    assert environment(objects)["SLIPWAY_REGISTRY_GRACE_SECONDS"] == "86400"
    pod = pod_specs(objects)["slipway-operator"]
    secret = next(volume["secret"] for volume in pod["volumes"] if volume["name"] == "registry-credentials")
    mount = next(mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "registry-credentials")
    assert (secret["secretName"], mount["mountPath"]) == ("delete", environment(objects)["SLIPWAY_REGISTRY_CREDENTIALS"])


def test_the_embedded_registry_frees_blobs_before_it_starts(default: list[Manifest]) -> None:
    pod = pod_specs(default)["slipway-registry"]
    collect, serve = pod["initContainers"][0], pod["containers"][0]
    assert collect["command"] == ["/usr/bin/registry-gc", "/usr/bin/registry", "garbage-collect", "/etc/distribution/config.yml"]
    assert (collect["image"], collect["volumeMounts"]) == (serve["image"], serve["volumeMounts"])
    assert {entry["name"]: entry["value"] for entry in collect["env"]}.items() <= {e["name"]: e["value"] for e in serve["env"]}.items()
    dockerfile = (ROOT / "hack/registry/Dockerfile").read_text()
    assert "COPY registry registry-gc /usr/bin/\nCOPY config.yml /etc/distribution/config.yml" in dockerfile


@pytest.mark.parametrize(("values", "secret"), [({}, ""), ({"signing": {"keySecret": "slipway-signing"}}, "slipway-signing")])
def test_what_signs_reaches_the_operator_by_name_alone(values: Manifest, secret: str) -> None:
    objects = render(values)
    found = environment(objects)
    assert found["SLIPWAY_SIGNING_SECRET"] == secret
    assert Settings.model_validate({"signing_secret": secret}).config().signing_secret == (secret or None)
    assert not [volume for pod in pod_specs(objects).values() for volume in pod["volumes"] if "secret" in volume]


def test_the_embedded_registry_keeps_its_data_apart(default: list[Manifest]) -> None:
    deployment = of_kind(default, "Deployment")["slipway-registry"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert {"name": "data", "mountPath": "/var/lib/registry"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "slipway-registry"}} in pod["volumes"]
    variables = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    assert variables["REGISTRY_STORAGE_DELETE_ENABLED"] == "true"
    assert environment(default)["SLIPWAY_REGISTRY"] == f"slipway-registry.{NAMESPACE}:5000/artifacts"
    assert of_kind(default, "Service")["slipway-registry"]["spec"]["ports"][0]["port"] == 5000


def test_placement_and_decoration_reach_the_pods() -> None:
    objects = render(VARIANTS["everything set"])
    for name, deployment in of_kind(objects, "Deployment").items():
        template = deployment["spec"]["template"]
        assert template["metadata"]["labels"]["team"] == "ml", name
        assert template["metadata"]["annotations"]["note"] == "1"
        pod = template["spec"]
        assert pod["nodeSelector"] == {"disk": "ssd"}
        assert pod["tolerations"] == [{"operator": "Exists"}]
        assert pod["priorityClassName"] == "high"
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        assert "topologySpreadConstraints" not in pod
        assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert of_kind(objects, "PersistentVolumeClaim")["slipway-registry"]["spec"]["storageClassName"] == "fast"


def test_images_are_pulled_beforehand_where_wanted(default: list[Manifest]) -> None:
    assert "DaemonSet" not in {o["kind"] for o in default}
    values = {"runtime": {"image": "r:1", "torchImage": "t:1"}, "prePull": {"enabled": True, "nodeSelector": {"gpu": "yes"}}}
    pod = pod_specs(render(values))["slipway-pre-pull"]
    assert [c["image"] for c in (*pod["initContainers"], *pod["containers"])] == ["t:1", "r:1"]
    assert pod["nodeSelector"] == {"gpu": "yes"}


def test_services_policies_and_budget_select_the_pods(default: list[Manifest]) -> None:
    labels = [o["spec"]["template"]["metadata"]["labels"] for o in of_kind(default, "Deployment").values()]
    selectors = [o["spec"]["selector"] for o in of_kind(default, "Service").values()]
    selectors += [o["spec"]["podSelector"]["matchLabels"] for o in of_kind(default, "NetworkPolicy").values()]
    selectors += [o["spec"]["selector"]["matchLabels"] for o in of_kind(default, "PodDisruptionBudget").values()]
    assert len(selectors) == 5
    for selector in selectors:
        assert sum(selector.items() <= pod.items() for pod in labels) == 1


def test_the_lease_goes_with_the_release(default: list[Manifest]) -> None:
    assert set(of_kind(default, "Lease")) == {Settings().lease_name}


@pytest.mark.parametrize("keep", [True, False])
def test_crds_are_those_of_the_models(keep: bool) -> None:
    found = of_kind(render({"crds": {"keep": keep}}), "CustomResourceDefinition")
    sources = [yaml.safe_load(path.read_text()) for path in (ROOT / "crds").glob("*.yaml")]
    assert set(found) == {source["metadata"]["name"] for source in sources}
    for source in sources:
        rendered = found[source["metadata"]["name"]]
        assert rendered["metadata"].pop("annotations", None) == ({"helm.sh/resource-policy": "keep"} if keep else None)
        assert rendered == source


def test_the_chart_s_copies_of_the_crds_are_current() -> None:
    def texts(folder: str) -> dict[str, str]:
        return {path.name: path.read_text() for path in (ROOT / folder).glob("*.yaml")}

    assert texts("charts/slipway/files/crds") == texts("crds"), "run `make generate`"


def test_notes_say_what_to_do_next() -> None:
    assert "slipway push" in (CHART / "templates/NOTES.txt").read_text()


ROWS = [{"instanceType": "m5.large", "pricePerHour": 0.096}, {"nodeSelector": {}, "pricePerHour": "12.5"}]


def test_the_prices_are_what_the_command_line_reads(default: list[Manifest]) -> None:
    assert PRICES not in of_kind(default, "ConfigMap"), "no prices, no object and no right"
    data = of_kind(render({"cost": {"currency": "EUR", "nodePrices": ROWS}}), "ConfigMap")[PRICES]["data"][PRICES_KEY]
    prices = parse_prices(data)
    nodes = [{"metadata": {"name": "n", "labels": labels}} for labels in ({INSTANCE_TYPE: "m5.large"}, {})]
    assert (prices.currency, [str(prices.of(node)) for node in nodes]) == ("EUR", ["0.096", "12.5"])
