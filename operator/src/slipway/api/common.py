"""Types that more than one kind uses: names, durations, quantities, environment variables, conditions."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from slipway.api.rules import ApiModel, Rule, StatusModel, matches

LIST_MAP_BY_NAME: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
INT64: dict[str, Any] = {"format": "int64"}

_SUBDOMAIN = r"[a-z0-9]+((-+|\.)[a-z0-9]+)*"
_DURATION = r"([0-9]{1,7}[hms])+"
_UNITS = {"h": 3600, "m": 60, "s": 1}
_SUFFIXES: dict[str, Decimal] = {
    **{"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1)},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}


def parse_duration(text: str) -> int:
    """Seconds of a duration such as `10m`, `90s` or `1h30m`."""
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", text))


def parse_quantity(value: int | str) -> Decimal:
    """The number that a Kubernetes quantity such as `500m`, `4Gi` or `2` stands for.

    Raises:
        ValueError: It is not a quantity.
    """
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?", str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a quantity")
    try:
        return Decimal(match[1]) * _SUFFIXES[match[2] or ""]
    except InvalidOperation as error:
        raise ValueError(f"{value!r} is not a quantity") from error


def unique_names(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """The parts, if no two have the same name; in the cluster `x-kubernetes-list-type: map` sees to it.

    Raises:
        ValueError: Two have.
    """
    twice = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]} is there twice; remove or rename one of them")
    return parts


def _is_quantity(value: int | str) -> bool:
    try:
        return parse_quantity(value) >= 0
    except ValueError:
        return False


ObjectName = Annotated[
    str,
    Field(max_length=253),
    matches(_SUBDOMAIN, "a name has lower-case letters, digits, '-' and '.'; for example my-secret"),
]
Duration = Annotated[
    str,
    Field(min_length=2, max_length=20),
    Rule(
        f"self.matches('^{_DURATION}$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')",
        "a duration is from 1s to 24h; for example 10m, 90s or 1h30m",
        lambda text: re.fullmatch(_DURATION, text) is not None and 1 <= parse_duration(text) <= 86400,
    ),
]
ShortDuration = Annotated[
    str,
    Field(max_length=8),
    matches("[0-9]{1,4}(us|ms)|[0-9]s", "this must be a duration in us, ms or s, below 10s; for example 2ms or 500us"),
]
DecimalString = Annotated[
    str,
    Field(min_length=1, max_length=32),
    matches(
        r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?",
        'this must be a decimal number, not negative, written as a string; for example "1e-3" or "0.001"',
    ),
]
Digest = Annotated[
    str,
    Field(max_length=71),
    matches("sha256:[0-9a-f]{64}", "a digest is sha256: followed by 64 lower-case hexadecimal digits; `slipway push` prints it"),
]
Percent = Annotated[int, Field(ge=0, le=100)]
HttpPath = Annotated[
    str, Field(max_length=1024), matches(r"/[^ ?#]*", "an HTTP path starts with / and has no query; for example /v2/health/ready")
]
Image = Annotated[
    str,
    Field(min_length=1, max_length=512),
    matches(
        r"([^\s/@]+/)*[^\s/@:]+(:[A-Za-z0-9_][-A-Za-z0-9._]{0,127})?(@sha256:[0-9a-f]{64})?",
        "an image is host/repository:tag or host/repository@sha256:…, without a scheme and without spaces",
    ),
]
Quantity = Annotated[
    int | str,
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 32}),
    Rule(
        "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
        "this must be a quantity, not negative; for example 500m, 2 or 4Gi",
        _is_quantity,
    ),
]
Quantities = Annotated[dict[Annotated[str, Field(max_length=128)], Quantity], Field(max_length=16)]


def _requests_fit(resources: ResourceRequirements) -> bool:
    limits = resources.limits or {}
    return all(parse_quantity(value) <= parse_quantity(limits[key]) for key, value in (resources.requests or {}).items() if key in limits)


class ResourceRequirements(ApiModel):
    """What a container asks for and may use at most."""

    rules = (
        Rule(
            "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
            "!isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k])) || "
            "!quantity(string(self.requests[k])).isGreaterThan(quantity(string(self.limits[k]))))",
            "a request is larger than its limit; raise the limit or lower the request",
            _requests_fit,
        ),
    )

    requests: Quantities | None = Field(
        default=None,
        description="What is reserved. Example: {cpu: 500m, memory: 512Mi}. Default: none.",
    )
    limits: Quantities | None = Field(
        default=None,
        description="What may be used at most. Example: {memory: 2Gi}. Default: no limit.",
    )


class SecretReference(ApiModel):
    """A Secret of the same namespace."""

    name: ObjectName = Field(description="Name of the Secret, in this namespace. Example: models-read.")


class KeySelector(ApiModel):
    """One key of a Secret or a ConfigMap of the same namespace; as in a Pod, only its shape is checked here."""

    name: str = Field(min_length=1, max_length=253, description="Name of the object. Example: api-keys.")
    key: str = Field(min_length=1, max_length=253, description="Its key. Example: token.")
    optional: bool | None = Field(default=None, description="Whether the pod may start without it. Default: false.")


class FieldSelector(ApiModel):
    """A field of the pod."""

    field_path: str = Field(min_length=1, max_length=256, description="Its path. Example: metadata.namespace.")


class EnvVarSource(ApiModel):
    """Where the value of an environment variable comes from."""

    rules = (
        Rule(
            "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].exists_one(x, x)",
            "valueFrom takes exactly one of secretKeyRef, configMapKeyRef and fieldRef",
            lambda source: [source.secret_key_ref, source.config_map_key_ref, source.field_ref].count(None) == 2,
        ),
    )

    secret_key_ref: KeySelector | None = Field(default=None, description="A key of a Secret in the namespace of the pod.")
    config_map_key_ref: KeySelector | None = Field(default=None, description="A key of a ConfigMap in the namespace of the pod.")
    field_ref: FieldSelector | None = Field(default=None, description="A field of the pod.")


class EnvVar(ApiModel):
    """An environment variable of the server."""

    rules = (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "an environment variable has either value or valueFrom; remove one of them",
            lambda env: env.value is None or env.value_from is None,
        ),
    )

    name: Annotated[
        str,
        Field(max_length=128),
        matches(
            r"[-._a-zA-Z][-._a-zA-Z0-9]*",
            "the name of a variable has letters, digits, '_', '-' and '.', and does not start with a digit",
        ),
    ] = Field(description="Name of the variable, unique in the list. Example: OMP_NUM_THREADS.")
    value: str | None = Field(
        default=None,
        max_length=4096,
        description="The value, as a string. {{modelDir}}, {{modelName}}, {{revision}}, {{artifactDigest}} and {{port}} are "
        'replaced. Example: "4".',
    )
    value_from: EnvVarSource | None = Field(default=None, description="Where the value comes from, instead of value.")


EnvVars = Annotated[tuple[EnvVar, ...], Field(max_length=64, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(unique_names)]


class Toleration(ApiModel):
    """A taint of nodes that the pods tolerate."""

    key: str | None = Field(
        default=None, max_length=317, description="Key of the taint. Example: nvidia.com/gpu. Default: every taint, with operator Exists."
    )
    operator: Literal["Exists", "Equal"] | None = Field(
        default=None, description="Exists ignores the value, Equal compares it. Default: Equal."
    )
    value: str | None = Field(default=None, max_length=63, description="Value of the taint, with operator Equal. Example: batch.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Effect of the taint. Default: all of them."
    )
    toleration_seconds: int | None = Field(
        default=None,
        json_schema_extra=INT64,
        description="How long a pod stays after a NoExecute taint appears. Default: for ever.",
    )


class ConditionStatus(StatusModel):
    """A condition, as in every Kubernetes API."""

    type: str = Field(description="For example Ready.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: str = Field(description="Why, out of docs/reference/reasons.md. Example: ParityFailed.")
    message: str = Field(default="", description="Why, and what to do next.")
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"}, description="When status changed last.")
    observed_generation: int | None = Field(
        default=None, json_schema_extra=INT64, description="The metadata.generation that this is about."
    )


Conditions = Annotated[
    tuple[ConditionStatus, ...], Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
]
