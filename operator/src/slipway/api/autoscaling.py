"""spec.autoscaling: how many pods follow from the load."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slipway.api.rules import ApiModel, Rule


class Autoscaling(ApiModel):
    """A HorizontalPodAutoscaler sizes the stable revision; serving.replicas is then not used."""

    rules = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "minReplicas must not exceed maxReplicas",
            lambda wish: wish.min_replicas <= wish.max_replicas,
        ),
    )

    min_replicas: int = Field(default=1, ge=1, le=1000, description="Fewest pods. A count. Default: 1.")
    max_replicas: int = Field(ge=1, le=1000, description="Most pods, canary included. A count. Example: 10.")
    metric: Literal["CPU", "Concurrency", "RequestsPerSecond", "GPUUtilization"] = Field(
        default="Concurrency", description="What is held at the target; all but CPU need prometheus-adapter. Default: Concurrency."
    )
    target: int = Field(
        ge=1, le=100000, description="Average of the pods: percent (CPU, GPUUtilization), requests in flight or a second. Example: 8."
    )
