"""spec.autoscaling: how many pods follow from the load."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slipway.api.rules import ApiModel, Rule


class Autoscaling(ApiModel):
    """An autoscaler sizes the stable revision; serving.replicas is then not used."""

    rules = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "minReplicas must not exceed maxReplicas",
            lambda wish: wish.min_replicas <= wish.max_replicas,
        ),
        Rule(
            "self.minReplicas > 0 || has(self.activationQuery)",
            "minReplicas 0 needs activationQuery, which says when a pod is wanted",
            lambda wish: wish.min_replicas > 0 or wish.activation_query is not None,
        ),
    )

    min_replicas: int = Field(default=1, ge=0, le=1000, description="Fewest pods; 0 needs KEDA. Default: 1.")
    max_replicas: int = Field(ge=1, le=1000, description="Most pods, canary included. A count. Example: 10.")
    metric: Literal["CPU", "Concurrency", "RequestsPerSecond", "GPUUtilization"] = Field(
        default="Concurrency", description="What is held at the target; all but CPU need Prometheus. Default: Concurrency."
    )
    target: int = Field(
        ge=1, le=100000, description="Average of the pods: percent (CPU, GPUUtilization), requests in flight or a second. Example: 8."
    )
    activation_query: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="PromQL: above 0 at least one pod is wanted. Example: sum(rate(asked_total[2m])). Default: none.",
    )
