"""What predictions cost: node prices, shared by what pods reserve, over what the pods counted. Pure.

A pod costs the part of its node that nobody else can have: the largest of its shares of CPU, memory and devices. It costs that from the
start of its process on, whether it is asked or not, since the counters begin there too. Pods that are gone took their counters along.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from slipway.analysis.exposition import Usage
from slipway.api.common import parse_quantity
from slipway.plan.nodes import occupied
from slipway.plan.objects import name_of, status_of
from slipway.snapshot import Manifest

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
MILLION = 1_000_000
NO_PRICES = "no node prices: set cost.nodePrices in the chart's values"
NO_TRAFFIC = "no traffic yet"
_NOT_SHARED = ("pods", "ephemeral-storage")  # what a node has plenty of says nothing about what is left for others


@dataclass(frozen=True, slots=True)
class Prices:
    """What an hour of a node costs: rows of labels that it must have and a price; the first row that fits counts."""

    currency: str
    rows: tuple[tuple[Mapping[str, str], Decimal], ...]

    def of(self, node: Manifest) -> Decimal | None:
        """Return the price of an hour of the node, None when no row fits."""
        labels = node["metadata"].get("labels") or {}
        fitting = (price for wanted, price in self.rows if all(labels.get(key) == value for key, value in wanted.items()))
        return next(fitting, None)


@dataclass(frozen=True, slots=True)
class Cost:
    """What the pods of a revision that run now cost, and for what.

    Attributes:
        pods, counted: how many there are, and of how many everything is known; the numbers are about these.
        currency: of all amounts.
        per_hour: of the counted pods together.
        hours: how long they have run, added up.
        predictions: that they made in this time.
        per_million: None without traffic or without a price.
        notes: what is missing, and why.
    """

    pods: int
    counted: int = 0
    currency: str = ""
    per_hour: Decimal | None = None
    hours: float = 0.0
    predictions: float = 0.0
    per_million: Decimal | None = None
    notes: tuple[str, ...] = field(default=())


def parse_prices(text: str) -> Prices:
    """Read what the chart wrote: `{"currency": …, "nodePrices": [{"nodeSelector": {…} or "instanceType": …, "pricePerHour": …}]}`.

    Raises:
        ValueError: with the row that cannot be read.
    """
    try:
        document = json.loads(text, parse_float=str)
        rows = [_row(number, row) for number, row in enumerate(document.get("nodePrices") or ())]
        return Prices(str(document.get("currency") or ""), tuple(rows))
    except (AttributeError, TypeError) as error:
        raise ValueError("the node prices are not an object with a list nodePrices") from error


def _row(number: int, row: Mapping[str, Any]) -> tuple[Mapping[str, str], Decimal]:
    labels = {INSTANCE_TYPE: str(row["instanceType"])} if row.get("instanceType") else dict(row.get("nodeSelector") or {})
    try:
        price = Decimal(str(row.get("pricePerHour")))
    except InvalidOperation as error:
        raise ValueError(f"nodePrices[{number}].pricePerHour is {row.get('pricePerHour')!r}, not a number") from error
    if not price.is_finite() or price < 0:
        raise ValueError(f"nodePrices[{number}].pricePerHour is {price}, which no node costs")
    return labels, price


def share_of(pod_spec: Mapping[str, Any], node: Manifest) -> Decimal | None:
    """Return the part of the node that the pod takes from others, 0 to 1; None when it reserves nothing or devices by a claim."""
    if pod_spec.get("resourceClaims"):
        return None  # what a DRA driver handed out is not in the node's allocatable
    offered = {key: parse_quantity(value) for key, value in (status_of(node).get("allocatable") or {}).items() if key not in _NOT_SHARED}
    shares = [occupied(pod_spec, key) / total for key, total in offered.items() if total > 0]
    found = max(shares, default=Decimal(0))
    return min(found, Decimal(1)) if found > 0 else None


def revision_cost(pods: Iterable[tuple[Manifest, Usage | str]], nodes: Mapping[str, Manifest], prices: Prices | None) -> Cost:
    """Return what the pods cost.

    Args:
        pods: each with what it did, or why that is not known.
        nodes: by name; one that could not be read is absent.
        prices: None when the chart has none.
    """
    pods = list(pods)
    if not pods:
        return Cost(0, notes=("no pods",))
    if prices is None or not prices.rows:
        return Cost(len(pods), notes=(NO_PRICES,))
    bills = [_bill(pod, use, nodes, prices) for pod, use in pods]
    known = [bill for bill in bills if not isinstance(bill, str)]
    notes = list(dict.fromkeys(bill for bill in bills if isinstance(bill, str)))
    predictions, hours = sum(bill.predictions for bill in known), sum(bill.hours for bill in known)
    spent = sum((bill.per_hour * Decimal(bill.hours) for bill in known), Decimal(0))
    if known and not predictions:
        notes.append(NO_TRAFFIC)
    return Cost(
        pods=len(pods),
        counted=len(known),
        currency=prices.currency,
        per_hour=sum((bill.per_hour for bill in known), Decimal(0)) if known else None,
        hours=hours,
        predictions=predictions,
        per_million=spent / Decimal(predictions) * MILLION if predictions else None,
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Bill:
    per_hour: Decimal
    hours: float
    predictions: float


def _bill(pod: Manifest, use: Usage | str, nodes: Mapping[str, Manifest], prices: Prices) -> _Bill | str:
    """Return one pod's part, or what is not known about it."""
    name = name_of(pod)
    rate = _rate(pod, nodes, prices)
    if isinstance(rate, str):
        return rate
    if isinstance(use, str):
        return f"pod {name}: {use}"
    if use.seconds is None:
        return f"pod {name} does not say when it started"
    return _Bill(rate, use.seconds / 3600, use.predictions)


def _rate(pod: Manifest, nodes: Mapping[str, Manifest], prices: Prices) -> Decimal | str:
    """Return what an hour of the pod costs, or what is not known about it."""
    name, place = name_of(pod), pod["spec"].get("nodeName")
    if not place:
        return f"pod {name} has no node yet"
    node = nodes.get(place)
    if node is None:
        return f"no right to read node {place}, or it is gone"
    price, share = prices.of(node), share_of(pod["spec"], node)
    if price is None:
        kind = (node["metadata"].get("labels") or {}).get(INSTANCE_TYPE)
        return f"no price for node {place}" + (f" (instance type {kind})" if kind else "")
    if share is None:
        why = "claims devices" if pod["spec"].get("resourceClaims") else "requests no resources"
        return f"pod {name} {why}, so its share of node {place} is not known"
    return price * share
