"""The schema of the values, and their table in the README."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from unit.chart.rendering import CHART, Manifest, run_helm

REFUSED: dict[str, tuple[Manifest, str]] = {
    "unknown key": ({"operator": {"image": "a", "replica": 2}}, "replica"),
    "unknown section": ({"operators": {}}, "operators"),
    "unknown key in depth": ({"registry": {"storage": {"class": "x"}}}, "class"),
    "unknown key in resources": ({"operator": {"resources": {"limit": {}}}}, "limit"),
    "word for a number": ({"operator": {"replicas": "two"}}, "replicas"),
    "no replicas": ({"operator": {"replicas": 0}}, "replicas"),
    "image without a name": ({"operator": {"image": ""}}, "image"),
    "image as a map": ({"runtime": {"image": {"tag": "x"}}}, "image"),
    "torch image as a number": ({"runtime": {"torchImage": 1}}, "torchImage"),
    "one namespace as a string": ({"operator": {"watchNamespaces": "a"}}, "watchNamespaces"),
    "namespace that cannot be": ({"operator": {"watchNamespaces": ["A_b"]}}, "watchNamespaces"),
    "namespace twice": ({"operator": {"watchNamespaces": ["a", "a"]}}, "watchNamespaces"),
    "log format": ({"operator": {"logFormat": "xml"}}, "logFormat"),
    "qps of nothing": ({"operator": {"qps": 0}}, "qps"),
    "part of a request": ({"operator": {"burst": 1.5}}, "burst"),
    "negative drain": ({"operator": {"drainSeconds": -1}}, "drainSeconds"),
    "size in words": ({"registry": {"storage": {"size": "big"}}}, "size"),
    "url with a scheme": ({"artifactRegistry": {"url": "https://registry.example/x"}}, "url"),
    "a grace period as a duration": ({"artifactRegistry": {"graceSeconds": "24h"}}, "graceSeconds"),
    "a grace period below nothing": ({"artifactRegistry": {"graceSeconds": -1}}, "graceSeconds"),
    "pull secrets as objects": ({"imagePullSecrets": [{"name": "x"}]}, "imagePullSecrets"),
    "string for a switch": ({"crds": {"keep": "false"}}, "keep"),
    "string for networkPolicy": ({"networkPolicy": {"enabled": "yes"}}, "enabled"),
    "budget of nothing": ({"operator": {"podDisruptionBudget": {"maxUnavailable": 0}}}, "maxUnavailable"),
    "node selector as a list": ({"operator": {"nodeSelector": ["a"]}}, "nodeSelector"),
    "label that is a number": ({"operator": {"podLabels": {"a": 1}}}, "podLabels"),
    "prometheus without a scheme": ({"prometheus": {"address": "prometheus:9090"}}, "address"),
    "built-in metrics from nowhere": ({"prometheus": {"builtIn": True}}, "prometheus.address is needed"),
    "an autoscaler that is not known": ({"autoscaling": {"provider": "VPA"}}, "provider"),
    "an autoscaler that never looks": ({"autoscaling": {"pollingSeconds": 0}}, "pollingSeconds"),
    "KEDA without a Prometheus": ({"autoscaling": {"provider": "KEDA"}}, "prometheus.address is needed"),
    "webhook as an address": ({"notifications": {"webhookSecret": "https://hooks.example.com"}}, "webhookSecret"),
    "a price without a node": ({"cost": {"nodePrices": [{"pricePerHour": 1}]}}, "nodePrices"),
    "a node without a price": ({"cost": {"nodePrices": [{"instanceType": "m5.large"}]}}, "pricePerHour"),
    "a price in words": ({"cost": {"nodePrices": [{"instanceType": "m5.large", "pricePerHour": "cheap"}]}}, "pricePerHour"),
    "a price below nothing": ({"cost": {"nodePrices": [{"instanceType": "m5.large", "pricePerHour": -1}]}}, "pricePerHour"),
    "two ways to name nodes": ({"cost": {"nodePrices": [{"instanceType": "a", "nodeSelector": {}, "pricePerHour": 1}]}}, "nodePrices"),
    "a currency that is none": ({"cost": {"currency": "dollars"}}, "currency"),
    "a server of others without its image": ({"servingRuntimes": {"triton": {"enabled": True}}}, "servingRuntimes.triton.image"),
    "no registry at all": ({"artifactRegistry": {"embedded": {"enabled": False}}}, "artifactRegistry.url is needed"),
}


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_values_are_refused_with_their_name(values: Manifest, word: str) -> None:
    done = run_helm(values, "-s", "templates/operator.yaml")
    assert done.returncode != 0
    assert word in done.stderr


def leaves(values: Any, schema: Any, path: str = "") -> dict[str, Any]:
    """Values by path, down to where the schema stops naming keys."""
    if isinstance(values, dict) and schema.get("properties") and not path.endswith(".resources"):
        return {k: v for key, part in values.items() for k, v in leaves(part, schema["properties"][key], f"{path}.{key}").items()}
    return {path.removeprefix("."): values}


def test_schema_values_and_readme_name_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = re.findall(r"^\| `([A-Za-z.]+)` \| `(.+?)` \|", (CHART / "README.md").read_text(), re.MULTILINE)
    assert {path: json.loads(default) for path, default in rows} == leaves(values, schema)

    def every_key(part: Manifest, path: str) -> list[str]:
        if "properties" not in part or path.endswith(".resources"):
            return [path.removeprefix(".")]
        assert part["additionalProperties"] is False, path
        return [found for key, below in part["properties"].items() for found in every_key(below, f"{path}.{key}")]

    assert sorted(set(every_key(schema, "")) - {"global"}) == sorted(leaves(values, schema))
