"""A/B experiments: users whom a header or a cookie pins to a revision. Pure.

Their rules are in an HTTPRoute of their own, beside the one with the weights: gateways merge the routes of a host, and of two matches that
with more headers wins (Gateway API, HTTPRouteRule.matches). So nothing that users add to the other route is hit, and what is no longer
wanted goes with the object. The rules set a header by which the servers count the requests of an experiment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slipway import names
from slipway.api.reasons import Reason
from slipway.plan import traffic
from slipway.plan.diagnose import Problem
from slipway.plan.objects import name_of, owner
from slipway.plan.rollout import Plan
from slipway.snapshot import Manifest

HEADER = "x-slipway-experiment"
_OURS = ("matches", "backendRefs", "filters", "name")


def experiments_of(resource: Manifest) -> list[Mapping[str, Any]]:
    """Return the experiments that the spec asks for."""
    return list((resource["spec"].get("routing") or {}).get("experiments") or ())


def is_routed(resource: Manifest) -> bool:
    """Say whether there should be a route for experiments."""
    return bool(experiments_of(resource) and (resource["spec"].get("routing") or {}).get("gateway"))


def side(experiment: Mapping[str, Any], plan: Plan, target: str) -> str:
    """Return the revision that the experiment's users get: the canary only while it has a weight, so that it was checked before."""
    stable = plan.stable or target
    wants_canary = experiment.get("revision", "Canary") == "Canary"
    if plan.weights.get(target) and (wants_canary or stable not in plan.weights):
        return target
    return stable


def route(resource: Manifest, plan: Plan, target: str, main: Manifest | None) -> dict[str, Any]:
    """Return the HTTPRoute of all experiments; a rule each, with the paths, filters and timeouts of our rule in the route `main`."""
    metadata, routing, shared = resource["metadata"], resource["spec"]["routing"], traffic.main_rule(main, name_of(resource))
    parent = {key: routing["gateway"][key] for key in ("namespace", "name") if routing["gateway"].get(key)}
    return {
        "apiVersion": traffic.ROUTE_VERSION,
        "kind": "HTTPRoute",
        "metadata": {
            "name": names.experiments_route(metadata["name"]),
            "namespace": metadata["namespace"],
            "labels": names.labels(metadata["name"], "route", deployment=metadata["name"]),
            "ownerReferences": [owner(resource)],
        },
        "spec": {
            "parentRefs": [parent],
            "hostnames": list(routing.get("hostnames", ())),
            "rules": [_rule(experiment, side(experiment, plan, target), shared) for experiment in experiments_of(resource)],
        },
    }


def _rule(experiment: Mapping[str, Any], revision: str, shared: Mapping[str, Any]) -> dict[str, Any]:
    pins = [_exact(experiment["headers"])] if experiment.get("headers") else []
    pins += [[_cookie(cookie)] for cookie in experiment.get("cookies") or ()]
    places = shared.get("matches") or [{}]
    kept = {key: value for key, value in shared.items() if key not in _OURS}
    return {
        **kept,
        "matches": [{**place, "headers": [*(place.get("headers") or ()), *pin]} for place in places for pin in pins],
        "filters": _with_header(shared.get("filters") or (), experiment["name"]),
        "backendRefs": [traffic.backend(revision, 100)],
    }


def _exact(headers: Any) -> list[dict[str, str]]:
    return [{"type": "Exact", "name": header["name"], "value": header["value"]} for header in headers]


def _cookie(cookie: Mapping[str, str]) -> dict[str, str]:
    """Return the match of one cookie among others (RFC 6265, 4.2.1), for gateways that match whole values and for those that search."""
    pair = f"{re.escape(cookie['name'])}={re.escape(cookie['value'])}"
    return {"type": "RegularExpression", "name": "Cookie", "value": f"^(.*; ?)?{pair}(;.*)?$"}


def _with_header(filters: Any, experiment: str) -> list[dict[str, Any]]:
    """Add our header to the users' filters; a rule may have only one filter that changes headers, so theirs gets it too."""
    ours = {"name": HEADER, "value": experiment}
    kind, key = "RequestHeaderModifier", "requestHeaderModifier"
    if not any(f["type"] == kind for f in filters):
        return [*(dict(f) for f in filters), {"type": kind, key: {"set": [ours]}}]
    return [{**f, key: {**f[key], "set": [*(f[key].get("set") or ()), ours]}} if f["type"] == kind else dict(f) for f in filters]


def condition(resource: Manifest, plan: Plan, target: str, observed: Manifest | None) -> tuple[bool, Problem] | None:
    """Return whether users of experiments are pinned, and why; None when there are no experiments."""
    wanted = experiments_of(resource)
    if not wanted:
        return None
    if not is_routed(resource):
        return False, Problem(Reason.GATEWAY_REQUIRED, "experiments match headers and cookies, which only a gateway can")
    refused = traffic.route_problem(observed)
    if refused is not None:
        return False, Problem(Reason.ROUTE_REJECTED, f"the gateway does not take the HTTPRoute of the experiments: {refused}")
    sides = ", ".join(f"{experiment['name']} is answered by {side(experiment, plan, target)}" for experiment in wanted)
    return True, Problem(Reason.UP_TO_DATE, sides)
