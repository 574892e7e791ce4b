"""Who gets the requests: the stable Service, and the route of a gateway. Pure builders, of weights that `rollout.py` decided.

Without a gateway the stable Service selects one revision, or, while two share the traffic, every server pod of the deployment: then the
numbers of ready pods make the shares. With a gateway an HTTPRoute has the weights, and the Service leads to the stable revision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from slipway import names
from slipway.plan.objects import name_of, owner
from slipway.plan.rollout import Plan, Side
from slipway.snapshot import Manifest

ROUTE_VERSION = "gateway.networking.k8s.io/v1"
SERVICE_PORT = 80
GRPC_PORT = 9000  # KServe and Seldon number it so too
# By kind of route: the port of the Services that it leads to, the field of spec.routing with its hostnames, and a rule for every request.
_KINDS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "HTTPRoute": (SERVICE_PORT, "hostnames", {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}),
    "GRPCRoute": (GRPC_PORT, "grpcHostnames", {}),
}


def service(resource: Manifest, name: str, selector: Mapping[str, str], *, revision: str | None = None) -> dict[str, Any]:
    """Return a Service in front of server pods; with `revision`, one that reaches this revision alone."""
    deployment = name_of(resource)
    more = {"revision": revision} if revision else {}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": resource["metadata"]["namespace"],
            "labels": names.labels(deployment, "service", deployment=deployment, **more),
            "ownerReferences": [owner(resource)],
        },
        "spec": {
            "selector": {names.DEPLOYMENT: deployment, **selector},
            "ports": [
                {"name": names.PORT_NAME, "port": SERVICE_PORT, "targetPort": names.PORT_NAME, "protocol": "TCP"},
                # A runtime without gRPC has no port of this name: the Service then has no endpoints for it, and only for it.
                {
                    "name": names.GRPC_PORT_NAME,
                    "port": GRPC_PORT,
                    "targetPort": names.GRPC_PORT_NAME,
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
            ],
        },
    }


def revision_service(resource: Manifest, revision: str) -> dict[str, Any]:
    """Return the Service that reaches one revision's pods."""
    return service(resource, revision, {names.REVISION: revision}, revision=revision)


def stable_service(resource: Manifest, plan: Plan, *, has_gateway: bool) -> dict[str, Any]:
    """Return the Service that users call; it is the one record of which revision is stable, and of whom it lets in besides."""
    stable = plan.stable or ""
    served = [stable] if has_gateway else sorted(plan.weights, key=lambda revision: revision != stable)
    is_shared = len(served) > 1
    selector = {names.COMPONENT: "server"} if is_shared else {names.REVISION: served[0]}
    manifest = service(resource, name_of(resource), selector)
    exposed = [revision for revision in served if revision != stable]
    notes = {names.STABLE: stable} | ({names.EXPOSED: exposed[0]} if exposed else {})
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": notes}}


def route_kinds(resource: Manifest) -> tuple[str, ...]:
    """Return the kinds of routes that the spec asks for. gRPC has hostnames of its own: a gateway accepts one of two kinds for a host."""
    routing = resource["spec"].get("routing") or {}
    if not routing.get("gateway"):
        return ()
    return ("HTTPRoute", "GRPCRoute") if routing.get("grpcHostnames") else ("HTTPRoute",)


def route(
    resource: Manifest, weights: Mapping[str, int], observed: Manifest | None, kind: str = "HTTPRoute", mirror: str | None = None
) -> dict[str, Any]:
    """Return the route with our weights in our rule, and everything else in it as it was found; `mirror`: a Service that gets copies.

    Server-side apply cannot merge here: `rules` and `backendRefs` are atomic lists (gateway-api, apis/v1/httproute_types.go). So what
    users added, rules of their own and filters or timeouts of ours, is read and written back, guarded by the version that was read.
    """
    metadata, routing = resource["metadata"], resource["spec"].get("routing") or {}
    port, hostnames, everything = _KINDS[kind]
    parent = {key: routing["gateway"][key] for key in ("namespace", "name") if routing["gateway"].get(key)}
    found = dict(observed["spec"]) if observed is not None else {}
    rules = [dict(rule) for rule in found.get("rules") or ()]
    index = _our_rule(rules, name_of(resource))
    ours = everything if index is None else rules[index]
    ours = {**ours, "backendRefs": [backend(revision, weight, port) for revision, weight in sorted(weights.items())]}
    filters = [f for f in ours.get("filters") or () if _mirrored(f, name_of(resource)) is None]
    filters += [_mirror(mirror)] if mirror is not None and kind == "HTTPRoute" else []
    ours = {key: value for key, value in ours.items() if key != "filters"} | ({"filters": filters} if filters else {})
    rules = [*rules, ours] if index is None else [*rules[:index], ours, *rules[index + 1 :]]
    desired: dict[str, Any] = {
        "apiVersion": ROUTE_VERSION,
        "kind": kind,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": names.labels(metadata["name"], "route", deployment=metadata["name"]),
            "ownerReferences": [owner(resource)],
        },
        "spec": {"parentRefs": [parent], "hostnames": list(routing.get(hostnames, ())), "rules": rules},
    }
    if observed is not None and observed["metadata"].get("resourceVersion"):
        desired["metadata"]["resourceVersion"] = observed["metadata"]["resourceVersion"]
    return desired


def _our_rule(rules: Sequence[Mapping[str, Any]], deployment: str) -> int | None:
    """Return the place of our rule: one that leads to revisions, and rather one for every request than one for some headers."""
    pattern = names.revision_pattern(deployment)
    ours = [i for i, rule in enumerate(rules) if any(re.fullmatch(pattern, ref["name"]) for ref in rule.get("backendRefs") or ())]
    plain = [i for i in ours if not any(match.get("headers") or match.get("queryParams") for match in rules[i].get("matches") or ())]
    return next(iter(plain or ours), None)


def _mirror(service: str) -> dict[str, Any]:
    reference = {"group": "", "kind": "Service", "name": service, "port": SERVICE_PORT}
    return {"type": "RequestMirror", "requestMirror": {"backendRef": reference}}


def _mirrored(item: Mapping[str, Any], deployment: str) -> str | None:
    """Return the comparator that a filter copies requests to, None for a filter of somebody else."""
    name = str(((item.get("requestMirror") or {}).get("backendRef") or {}).get("name", ""))
    return name if re.fullmatch(names.shadow_pattern(deployment), name) else None


def mirrors(manifest: Manifest, deployment: str) -> list[str]:
    """Return the comparators that our rule copies requests to."""
    rules = manifest["spec"].get("rules") or ()
    index = _our_rule(rules, deployment)
    found = [] if index is None else [_mirrored(item, deployment) for item in rules[index].get("filters") or ()]
    return [name for name in found if name is not None]


def main_rule(observed: Manifest | None, deployment: str) -> Mapping[str, Any]:
    """Return our rule of the HTTPRoute as users may have changed it; one for every request when there is none yet."""
    rules = observed["spec"].get("rules") or () if observed is not None else ()
    index = _our_rule(rules, deployment)
    return _KINDS["HTTPRoute"][2] if index is None else rules[index]


def backend(revision: str, weight: int, port: int = SERVICE_PORT) -> dict[str, Any]:
    """Return the reference of a rule to a revision's Service."""
    return {"group": "", "kind": "Service", "name": revision, "port": port, "weight": weight}


def is_routed(observed: Manifest | None, desired: Manifest) -> bool:
    """Say whether the route gives weights and copies already: who is no longer wanted must not be left in it."""
    if observed is None:
        return False
    is_mirrored = mirrors(observed, name_of(desired)) == mirrors(desired, name_of(desired))
    return is_mirrored and _shares(observed, name_of(desired)) == _shares(desired, name_of(desired))


def _shares(manifest: Manifest, deployment: str) -> dict[str, int]:
    rules = manifest["spec"].get("rules") or ()
    index = _our_rule(rules, deployment)
    return {} if index is None else {ref["name"]: int(ref.get("weight", 1)) for ref in rules[index].get("backendRefs") or ()}


def route_problem(observed: Manifest | None) -> str | None:
    """Return why the gateway does not take the route, or None while it does or has not said anything."""
    for parent in ((observed or {}).get("status") or {}).get("parents") or ():
        for condition in parent.get("conditions") or ():
            if condition.get("type") in ("Accepted", "ResolvedRefs") and condition.get("status") == "False":
                return f"{condition.get('reason')}: {condition.get('message', '')}"
    return None


def real_shares(plan: Plan, sides: Mapping[str, Side], observed: Manifest | None, deployment: str, *, has_gateway: bool) -> dict[str, int]:
    """Return the traffic that each revision really gets, in percent: by the route that there is, or by the numbers of ready pods."""
    if has_gateway:
        return _shares(observed, deployment) if observed is not None else {}
    ready = {revision: sides[revision].ready for revision in plan.weights if revision in sides}
    total = sum(ready.values())
    if total == 0:
        return {}
    return {revision: round(100 * count / total) for revision, count in ready.items()}
