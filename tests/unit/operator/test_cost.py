"""What predictions cost, row by row: prices, shares, uses, and what is said where one of them is missing."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from slipway.analysis.exposition import ScrapeError, Usage, usage
from slipway.plan.cost import INSTANCE_TYPE, NO_PRICES, NO_TRAFFIC, Prices, parse_prices, revision_cost, share_of
from slipway_runtime.serve.metrics import Metrics

SMALL, GPU_NODE = {INSTANCE_TYPE: "m5.large"}, {INSTANCE_TYPE: "p5.48xlarge", "pool": "gpu"}
PRICES = Prices("USD", ((GPU_NODE, Decimal(80)), (SMALL, Decimal("0.1"))))
HOUR = Usage(3600, 1000, 4000)


def node(name: str = "a", labels: dict[str, str] | None = None, **allocatable: str) -> dict[str, Any]:
    offered = {"cpu": "2", "memory": "8Gi", "pods": "10", "ephemeral-storage": "1Gi", **allocatable}
    return {"metadata": {"name": name, "labels": SMALL if labels is None else labels}, "status": {"allocatable": offered}}


def pod(name: str = "p", place: str | None = "a", init: dict[str, str] | None = None, **requests: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "server", "resources": {"requests": requests}}]}
    spec |= {"nodeName": place} if place else {}
    spec |= {"initContainers": [{"name": "pull", "resources": {"requests": init}}]} if init else {}
    return {"metadata": {"name": name}, "spec": spec}


HALF = pod(cpu="1")
CLAIMS = {**HALF, "spec": {**HALF["spec"], "resourceClaims": [{"name": "accelerator"}]}}


@pytest.mark.parametrize(
    ("name", "pod", "node", "share"),
    [
        ("half of the CPU", pod(cpu="1"), node(), "0.5"),
        ("a quarter of the memory is more than a tenth of the CPU", pod(cpu="200m", memory="2Gi"), node(), "0.25"),
        ("one of two devices", pod(**{"cpu": "100m", "nvidia.com/gpu": "1"}), node(**{"nvidia.com/gpu": "2"}), "0.5"),
        ("all devices: the whole node, idle CPUs too", pod(**{"cpu": "100m", "nvidia.com/gpu": "2"}), node(**{"nvidia.com/gpu": "2"}), "1"),
        ("an init container that reserves more", pod(init={"cpu": "1500m"}, cpu="1"), node(), "0.75"),
        ("never more than the node", pod(cpu="3"), node(), "1"),
        ("a resource that the node does not have", pod(**{"cpu": "1", "amd.com/gpu": "1"}), node(), "0.5"),
        ("a device that fell ill", pod(**{"cpu": "1", "nvidia.com/gpu": "1"}), node(**{"nvidia.com/gpu": "0"}), "0.5"),
        ("storage is not counted", pod(**{"cpu": "200m", "ephemeral-storage": "1Gi"}), node(), "0.1"),
        ("nothing reserved", pod(), node(), None),
        ("devices by claim", CLAIMS, node(), None),
        ("a node that says nothing", pod(cpu="1"), {"metadata": {"name": "a"}}, None),
    ],
)
def test_share(name: str, pod: dict[str, Any], node: dict[str, Any], share: str | None) -> None:
    assert share_of(pod["spec"], node) == (None if share is None else Decimal(share)), name


@pytest.mark.parametrize(
    ("name", "labels", "price"),
    [
        ("by instance type", SMALL, "0.1"),
        ("all labels of the row", GPU_NODE, "80"),
        ("one label is not enough", {"pool": "gpu"}, None),
        ("a node without labels", {}, None),
    ],
)
def test_price(name: str, labels: dict[str, str], price: str | None) -> None:
    assert PRICES.of(node(labels=labels)) == (None if price is None else Decimal(price)), name


def test_the_first_row_that_fits_counts_and_an_empty_selector_fits_all() -> None:
    prices = parse_prices(
        json.dumps({"currency": "EUR", "nodePrices": [{"instanceType": "m5.large", "pricePerHour": 0.096}, {"pricePerHour": "9"}]})
    )
    assert (prices.currency, prices.of(node()), prices.of(node(labels={}))) == ("EUR", Decimal("0.096"), Decimal(9))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ("[]", "not an object"),
        ('{"nodePrices": [7]}', "not an object"),
        ('{"nodePrices": [{"nodeSelector": {}}]}', r"nodePrices\[0\].pricePerHour is None"),
        ('{"nodePrices": [{"pricePerHour": "1"}, {"pricePerHour": "cheap"}]}', r"nodePrices\[1\].pricePerHour is 'cheap'"),
        ('{"nodePrices": [{"pricePerHour": "-1"}]}', "no node costs"),
        ('{"nodePrices": [{"pricePerHour": "NaN"}]}', "no node costs"),
    ],
)
def test_prices_that_cannot_be_read_name_the_row(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_prices(text)


B = pod("q", "b", cpu="1")
EMPTY: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("pods", "nodes", "counted", "per_million", "notes"),
    [
        # 0.1 an hour, half a node, one hour, 4000 predictions: 0.05 / 4000 * 1e6
        pytest.param([(HALF, HOUR)], [node()], 1, "12.5", EMPTY, id="one pod"),
        pytest.param([(HALF, HOUR), (B, HOUR)], [node(), node("b", GPU_NODE)], 2, "5006.25", EMPTY, id="two kinds of nodes"),
        pytest.param([(HALF, HOUR), (HALF, Usage(3600, 0, 0))], [node()], 2, "25", EMPTY, id="an idle pod costs too"),
        pytest.param([(HALF, Usage(3600, 0, 0))], [node()], 1, None, (NO_TRAFFIC,), id="no traffic"),
        pytest.param([(HALF, HOUR)], [node(labels={INSTANCE_TYPE: "x1"})], 0, None, ("no price for node a (instance type x1)",), id="type"),
        pytest.param([(HALF, HOUR)] * 3, [node(labels={})], 0, None, ("no price for node a",), id="once for all pods of a node"),
        pytest.param([(HALF, HOUR), (B, HOUR)], [node()], 1, "12.5", ("no right to read node b, or it is gone",), id="one of two"),
        pytest.param([(HALF, "timed out")], [node()], 0, None, ("pod p: timed out",), id="a pod that does not answer"),
        pytest.param([(HALF, Usage(None, 1, 1))], [node()], 0, None, ("pod p does not say when it started",), id="unknown age"),
        pytest.param([(pod(place=None), HOUR)], [], 0, None, ("pod p has no node yet",), id="waits for a node"),
        pytest.param(
            [(pod(), HOUR)], [node()], 0, None, ("pod p requests no resources, so its share of node a is not known",), id="no requests"
        ),
        pytest.param([(CLAIMS, HOUR)], [node()], 0, None, ("pod p claims devices, so its share of node a is not known",), id="DRA"),
        pytest.param([], [], 0, None, ("no pods",), id="no pods"),
    ],
)
def test_cost(pods: Any, nodes: Any, counted: int, per_million: str | None, notes: tuple[str, ...]) -> None:
    found = revision_cost(pods, {n["metadata"]["name"]: n for n in nodes}, PRICES)
    assert (found.pods, found.counted, found.notes) == (len(pods), counted, notes)
    assert found.per_million == (None if per_million is None else Decimal(per_million))


@pytest.mark.parametrize("prices", [None, Prices("USD", ())])
def test_without_prices_the_report_says_what_to_set(prices: Prices | None) -> None:
    found = revision_cost([(HALF, HOUR)], {"a": node()}, prices)
    assert (found.per_million, found.notes) == (None, (NO_PRICES,))
    assert "cost.nodePrices" in NO_PRICES


def test_the_hours_of_all_pods_are_added_up() -> None:
    found = revision_cost([(HALF, HOUR), (pod("q", cpu="500m"), Usage(1800, 10, 10))], {"a": node()}, PRICES)
    assert (found.per_hour, found.hours, found.predictions, found.currency) == (Decimal("0.075"), 1.5, 4010, "USD")


def test_use_is_read_from_what_the_server_exports() -> None:
    metrics = Metrics("digits", "digits-1", lambda: 0)
    for code, rows in ((200, 32), (200, 1), (200, 1), (500, 2)):
        metrics.count(code)
        metrics.batch(rows)
        metrics.seconds(0.01)
    text = metrics.render().decode()
    started = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("process_start_time_seconds "))
    assert usage(text, "digits-1", started + 90) == Usage(pytest.approx(90), 3, 36 * 3 / 4)
    assert usage(text, "digits-2", started).answers == 0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('slipway_requests_total{code="OK"} 5\nslipway_requests_total{code="INTERNAL"} 5\n', Usage(None, 5, 5)),
        ('slipway_requests_total{code="429"} 7\nslipway_batch_size_sum 0\n', Usage(None, 0, 0)),
        ("# TYPE slipway_requests_total counter\nprocess_start_time_seconds 70\n", Usage(30, 0, 0)),
        ("# TYPE slipway_requests_total counter\nprocess_start_time_seconds 170\n", Usage(0, 0, 0)),
        (
            'slipway_requests_total{code="200"} 2\nslipway_batch_size_sum{lane="1"} 3\nslipway_batch_size_sum{lane="2"} 5\n',
            Usage(None, 2, 8),
        ),
    ],
)
def test_use_of_other_runtimes(text: str, want: Usage) -> None:
    assert usage(text, "r", 100.0) == want


@pytest.mark.parametrize("text", ["", "<html>", 'slipway_requests_total{code="200"} 1\nslipway_batch_size_sum many\n'])
def test_what_is_no_scrape_says_so(text: str) -> None:
    with pytest.raises(ScrapeError):
        usage(text, "r", 100.0)
