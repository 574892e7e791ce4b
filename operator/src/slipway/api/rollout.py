"""How a new revision takes over, and how requests reach the model: `spec.rollout` and `spec.routing`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from slipway.api.analysis import Analysis
from slipway.api.common import ATOMIC, Duration, ObjectName
from slipway.api.rules import ApiModel, Rule, matches

Hostname = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(
        r"(?:\*\.)?[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*",
        "a hostname has lower-case letters, digits, '-' and '.', and may start with '*.'; for example digits.example.com",
    ),
]


Hostnames = Annotated[tuple[Hostname, ...], Field(max_length=16, json_schema_extra=ATOMIC)]


class RolloutStep(ApiModel):
    """A share of the requests, and for how long."""

    weight: int = Field(ge=1, le=100, description="Share of the requests that the new revision gets, in percent. Example: 10.")
    duration: Duration | None = Field(default=None, description="How long the step lasts. Example: 5m. Default: until it is promoted.")


def _ascends(steps: tuple[RolloutStep, ...]) -> bool:
    return all(one.weight < two.weight for one, two in pairwise(steps))


Steps = Annotated[
    tuple[RolloutStep, ...],
    Field(max_length=20, json_schema_extra=ATOMIC),
    Rule(
        "self.map(s, s.weight).isSorted() && self.all(s, self.exists_one(t, t.weight == s.weight))",
        "the weights of the steps must rise; for example [{weight: 10, duration: 1m}, {weight: 50, duration: 5m}]",
        _ascends,
    ),
]


class Rollout(ApiModel):
    """How a new revision takes over."""

    rules = (
        Rule(
            "self.strategy != 'Canary' || has(self.steps) && size(self.steps) > 0",
            "a Canary needs steps; for example [{weight: 10, duration: 1m}, {weight: 50, duration: 5m}]",
            lambda rollout: rollout.strategy != "Canary" or bool(rollout.steps),
        ),
        Rule(
            "self.strategy != 'BlueGreen' || !has(self.steps) || self.steps.size() < 2 && self.steps.all(s, s.weight == 100)",
            "BlueGreen has one step at most, of weight 100: how long the old revision is kept at full size after the switch",
            lambda rollout: rollout.strategy != "BlueGreen" or [step.weight for step in rollout.steps or ()] in ([], [100]),
        ),
        Rule(
            "self.strategy != 'Recreate' || !has(self.steps) || size(self.steps) == 0",
            "Recreate has no steps, because the old revision is gone before the new one starts; remove steps",
            lambda rollout: rollout.strategy != "Recreate" or not rollout.steps,
        ),
        Rule(
            "!has(self.analysis) || has(self.steps) && size(self.steps) > 0",
            "analysis judges steps; add steps, or remove analysis",
            lambda rollout: rollout.analysis is None or bool(rollout.steps),
        ),
    )

    strategy: Literal["Canary", "BlueGreen", "Recreate"] = Field(
        default="Canary",
        description="Canary: step by step. BlueGreen: all at once, when it is at full size. Recreate: the old one stops first, for "
        "models of which no two fit; requests fail in between. Default: Canary.",
    )
    steps: Steps | None = Field(
        default=None, description="Rising weights. Example: [{weight: 10, duration: 1m}, {weight: 50, duration: 5m}]."
    )
    analysis: Analysis | None = Field(
        default=None,
        description="What must hold before a step ends. Default: steps end by time; only errors proven to be above 1 % are a failure.",
    )
    on_failure: Literal["Rollback", "Pause"] = Field(
        default="Rollback",
        description="What a failed analysis does: Rollback, or Pause until it is promoted or aborted. Default: Rollback.",
    )
    keep_previous: Duration | None = Field(
        default=None,
        description="How long the replaced revision keeps all its pods, so that going back takes no time; until the next rollout at most. "
        "Example: 30m. Default: until it has drained.",
    )


class Gateway(ApiModel):
    """A Gateway of the Gateway API."""

    name: ObjectName = Field(description="Its name. Example: public.")
    namespace: ObjectName | None = Field(default=None, description="Its namespace. Example: gateways. Default: that of this resource.")


class Routing(ApiModel):
    """How requests from outside reach the model."""

    rules = (
        Rule(
            "has(self.gateway) || (!has(self.hostnames) || size(self.hostnames) == 0) "
            "&& (!has(self.grpcHostnames) || size(self.grpcHostnames) == 0)",
            "hostnames need a gateway; add gateway: {name: ...}, or remove hostnames",
            lambda routing: routing.gateway is not None or not (routing.hostnames or routing.grpc_hostnames),
        ),
        Rule(
            "!has(self.hostnames) || !has(self.grpcHostnames) || self.hostnames.all(h, !(h in self.grpcHostnames))",
            "a hostname is either for HTTP or for gRPC: a gateway accepts one kind of route for it; use another name for gRPC",
            lambda routing: not set(routing.hostnames or ()) & set(routing.grpc_hostnames or ()),
        ),
    )

    gateway: Gateway | None = Field(
        default=None,
        description="The gateway that an HTTPRoute with the weights is attached to. Default: none; numbers of pods then make the weights.",
    )
    hostnames: Hostnames | None = Field(
        default=None, description="Hostnames of the route. Example: [digits.example.com]. Default: every one of the gateway."
    )
    grpc_hostnames: Hostnames | None = Field(
        default=None, description="Hostnames of a GRPCRoute beside it. Example: [grpc.digits.example.com]. Default: no GRPCRoute."
    )
