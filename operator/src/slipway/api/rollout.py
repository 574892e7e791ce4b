"""How a new revision takes over, and how requests reach the model: `spec.rollout` and `spec.routing`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from slipway.api.analysis import Analysis
from slipway.api.common import ATOMIC, LIST_MAP_BY_NAME, Duration, ObjectName, unique_names
from slipway.api.rules import ApiModel, Rule, matches

Hostname = Annotated[
    str,
    Field(min_length=1, max_length=253),
    matches(
        r"(?:\*\.)?[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*",
        "a hostname has lower-case letters, digits, '-' and '.', or starts with '*.'; for example digits.example.com",
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


class Shadow(ApiModel):
    """Requests that both revisions answer, before the new one has traffic."""

    percent: int = Field(default=100, ge=1, le=100, description="Share of the requests that is compared. Default: 100.")
    duration: Duration = Field(default="1m", description="How long, at least. Example: 10m. Default: 1m.")
    min_top1_agreement_percent: int = Field(
        default=99, ge=1, le=100, description="How often both must find the same class (without classes: close values). Default: 99."
    )


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
            "!has(self.analysis) && !has(self.shadow) || has(self.steps) && size(self.steps) > 0",
            "analysis and shadow need steps",
            lambda rollout: (rollout.analysis is None and rollout.shadow is None) or bool(rollout.steps),
        ),
    )

    strategy: Literal["Canary", "BlueGreen", "Recreate"] = Field(
        default="Canary",
        description="Canary: step by step. BlueGreen: all at once, at full size. Recreate: the old one stops first; requests fail in "
        "between. Default: Canary.",
    )
    steps: Steps | None = Field(
        default=None, description="Rising weights. Example: [{weight: 10, duration: 1m}, {weight: 50, duration: 5m}]."
    )
    shadow: Shadow | None = Field(
        default=None, description="Compare answers with stable's before the first step; users get stable's. Default: none."
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
        description="How long the replaced revision keeps all its pods, to go back at once; until the next rollout at most. "
        "Example: 30m. Default: until drained.",
    )


Word = Annotated[str, Field(max_length=63, pattern=r"^[-\w.]+$")]  # in RE2 \w is ASCII


class Pin(ApiModel):
    """A header or cookie."""

    name: Word = Field(description="Its name. Example: x-beta.")
    value: Word = Field(description='Its exact value. Example: "true".')


Pins = Annotated[tuple[Pin, ...], Field(max_length=8, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(unique_names)]


class Experiment(ApiModel):
    """Users that are pinned to a revision."""

    rules = (
        Rule(
            "has(self.headers) && size(self.headers) > 0 || has(self.cookies) && size(self.cookies) > 0",
            "set headers or cookies",
            lambda experiment: bool(experiment.headers or experiment.cookies),
        ),
    )

    name: Word = Field(description="Name in metrics. Example: beta.")
    headers: Pins | None = Field(default=None, description='All of these. Example: [{name: x-beta, value: "true"}].')
    cookies: Annotated[tuple[Pin, ...], Field(max_length=8, json_schema_extra=ATOMIC)] | None = Field(
        default=None, description="Or one of these."
    )
    revision: Literal["Canary", "Stable"] = Field(
        default="Canary", description="Canary (stable while it has no weight), or Stable, as a control. Default: Canary."
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
            "a hostname is either for HTTP or for gRPC; use another name for gRPC",
            lambda routing: not set(routing.hostnames or ()) & set(routing.grpc_hostnames or ()),
        ),
    )

    gateway: Gateway | None = Field(
        default=None,
        description="The gateway that an HTTPRoute with the weights is attached to. Default: none; pod numbers make the weights.",
    )
    hostnames: Hostnames | None = Field(
        default=None, description="Hostnames of the route. Example: [digits.example.com]. Default: every one of the gateway."
    )
    grpc_hostnames: Hostnames | None = Field(
        default=None, description="Hostnames of a GRPCRoute beside it. Example: [grpc.digits.example.com]. Default: no GRPCRoute."
    )
    experiments: (
        Annotated[tuple[Experiment, ...], Field(max_length=16, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(unique_names)] | None
    ) = Field(default=None, description="A/B tests; need a gateway. Default: none.")
