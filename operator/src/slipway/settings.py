"""The operator's settings: environment variables that the chart sets, checked once at start."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import NonNegativeInt, PositiveInt, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from slipway.snapshot import Config


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Settings(BaseSettings):
    """Read from `SLIPWAY_<NAME>`; the names are those of docs/design/0001-interfaces.md."""

    model_config = SettingsConfigDict(env_prefix="SLIPWAY_", frozen=True)

    namespace: str = "slipway-system"
    watch_namespaces: str = ""
    converter_image: str = "slipway-runtime-torch"
    runtime_image: str = "slipway-runtime"
    registry: str = "slipway-registry.slipway-system:5000/artifacts"
    plain_http: str = "slipway-registry.slipway-system:5000"
    registry_secret: str = ""
    registry_grace_seconds: NonNegativeInt = 0  # artifacts without a reference are deleted after it; 0: never
    registry_credentials: str = ""  # a folder with the operator's own .dockerconfigjson
    registry_deployment: str = ""  # of the embedded registry, which frees what was deleted when it starts
    signing_secret: str = ""  # keys private.pem and public.pem, in the model's namespace; empty: nothing is signed or verified
    image_pull_secrets: str = ""
    max_source_bytes: int = 16 * 1024**3
    log_format: Literal["json", "text"] = "text"
    qps: float = 400
    burst: int = 800
    workers: int = 8
    resync_seconds: float = 60
    drain_seconds: int = 10
    scrape_annotations: bool = False  # prometheus.io/scrape on new pods, for a Prometheus that goes by it
    serving_runtimes: str = ""  # a YAML file of ServingRuntimes that the leader applies
    cluster_role: str = ""  # their owner: with it they are collected
    lease_name: str = "slipway-operator"
    prometheus_address: str = ""  # base URL; without it queries of users have no answer
    autoscaling_provider: Literal["Auto", "HPA", "KEDA"] = "Auto"  # Auto: KEDA where it is and there is a Prometheus to ask
    autoscaling_polling_seconds: PositiveInt = 15  # between looks of KEDA at the load
    autoscaling_cooldown_seconds: NonNegativeInt = 300  # without load until KEDA takes the last pod, where minReplicas is 0
    analysis_source: Literal["Pods", "Prometheus"] = "Pods"  # of the built-in metrics
    webhook_url: SecretStr = SecretStr("")
    webhook_secret: SecretStr = SecretStr("")
    metrics_port: int = 8080
    health_port: int = 8081

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.analysis_source == "Prometheus" and not self.prometheus_address:
            raise ValueError("SLIPWAY_ANALYSIS_SOURCE is Prometheus, so SLIPWAY_PROMETHEUS_ADDRESS is needed (prometheus.address)")
        if self.autoscaling_provider == "KEDA" and not self.prometheus_address:
            raise ValueError("SLIPWAY_AUTOSCALING_PROVIDER is KEDA, so SLIPWAY_PROMETHEUS_ADDRESS is needed (prometheus.address)")
        return self

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces to watch; empty means all."""
        return _split(self.watch_namespaces)

    def config(self) -> Config:
        """Return the part of the settings that shapes objects."""
        return Config(
            converter_image=self.converter_image,
            runtime_image=self.runtime_image,
            registry=self.registry,
            plain_http=_split(self.plain_http),
            registry_secret=self.registry_secret or None,
            signing_secret=self.signing_secret or None,
            image_pull_secrets=_split(self.image_pull_secrets),
            max_source_bytes=self.max_source_bytes,
            drain_seconds=self.drain_seconds,
            prometheus_address=self.prometheus_address,
            autoscaling_provider=self.autoscaling_provider,
            polling_seconds=self.autoscaling_polling_seconds,
            cooldown_seconds=self.autoscaling_cooldown_seconds,
            scrape_annotations=self.scrape_annotations,
        )
