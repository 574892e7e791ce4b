"""ServingRuntime: a pluggable server, declared once for the cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from slipway.api.common import ATOMIC, LIST_MAP_BY_NAME, EnvVars, HttpPath, Image, unique_names
from slipway.api.modeldeployment import ObservedFormat
from slipway.api.rules import ApiModel

Words = Annotated[tuple[Annotated[str, Field(max_length=4096)], ...], Field(max_length=64, json_schema_extra=ATOMIC)]
_PLACEHOLDERS = "{{modelDir}}, {{modelName}}, {{revision}}, {{artifactDigest}}, {{port}}, {{grpcPort}} and {{metricsPort}} are replaced"


class RuntimeFormat(ApiModel):
    """A format that the server can load."""

    name: ObservedFormat = Field(description="Name of the format; unique in the list.")
    priority: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="A model that names no runtime gets the one whose priority for its format is highest; of equals the first by name. "
        "Example: 10. Default: 0.",
    )
    image: Image | None = Field(
        default=None, description="Another image for this format. Example: slipway-runtime-torch:0.1.0. Default: spec.image."
    )
    accelerator_image: Image | None = Field(
        default=None,
        description="Another image for models that ask for an accelerator. Example: slipway-runtime-torch:0.1.0. Default: image.",
    )


class Probes(ApiModel):
    """Where the server tells how it is."""

    startup_command: Words | None = Field(
        default=None,
        description="Command in the container that ends with 0 once the model is loaded, for servers whose paths do not tell; "
        "placeholders as in args. Default: startupPath is asked.",
    )
    startup_path: HttpPath = Field(
        default="/v2/health/ready", description="Answers 200 once the model is loaded. Default: /v2/health/ready."
    )
    readiness_path: HttpPath = Field(
        default="/v2/health/ready", description="Answers 200 while requests are welcome. Default: /v2/health/ready."
    )
    liveness_path: HttpPath = Field(
        default="/v2/health/live", description="Answers 200 unless the server must be restarted. Default: /v2/health/live."
    )


class Metrics(ApiModel):
    """Where the server shows its metrics."""

    path: HttpPath = Field(default="/metrics", description="Path of the Prometheus metrics. Default: /metrics.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Their port. Example: 8002. Default: that of the requests.")


class ServingRuntimeSpec(ApiModel):
    """How the server is started and observed."""

    image: Image = Field(description="Image of the server. Example: ghcr.io/slipway/slipway-runtime:0.1.0.")
    formats: Annotated[
        tuple[RuntimeFormat, ...], Field(min_length=1, max_length=8, json_schema_extra=LIST_MAP_BY_NAME), AfterValidator(unique_names)
    ] = Field(description="Formats that it can load. Example: [{name: ONNX}, {name: TorchScript, image: slipway-runtime-torch:0.1.0}].")
    layout: Literal["Slipway", "Triton", "TorchServe"] = Field(
        default="Slipway",
        description="What {{modelDir}} holds: the artifact (Slipway), a model repository with config.pbtxt (Triton), or config.properties "
        "and model-store with a .mar (TorchServe). Default: Slipway.",
    )
    command: Words | None = Field(default=None, description="Command of the container. Example: [slipway-runtime]. Default: the image's.")
    args: Words | None = Field(
        default=None, description=f'Arguments; {_PLACEHOLDERS}. Example: [serve, --model-dir, "{{{{modelDir}}}}"]. Default: the image\'s.'
    )
    env: EnvVars | None = Field(
        default=None,
        description='Environment variables; those of a ModelDeployment win. Example: [{name: OMP_NUM_THREADS, value: "1"}]. Default: none.',
    )
    port: int = Field(default=8080, ge=1, le=65535, description="Port that the server listens on, for requests and probes. Default: 8080.")
    grpc_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port of the Open Inference Protocol over gRPC. Example: 9000. Default: none."
    )
    probes: Probes = Field(default=Probes(), description="Paths of the probes. Default: those of the Open Inference Protocol v2.")
    drain_seconds: int = Field(
        default=0,
        ge=0,
        le=30,
        description="Seconds between the end of new connections and SIGTERM, for servers that stop at once; the image needs `sleep`. "
        "Default: 0.",
    )
    replay: bool = Field(
        default=False,
        description="Whether an empty infer request with the header x-slipway-probe: golden replays the golden inputs. Default: false.",
    )
    metrics: Metrics = Field(default=Metrics(), description="Where the metrics are. Default: /metrics.")


class ServingRuntime(ApiModel):
    """A server for converted models: its image, the formats it claims, and how it is started and observed. Cluster-scoped."""

    api_version: Literal["slipway.dev/v1alpha1"] = Field(default="slipway.dev/v1alpha1", description="slipway.dev/v1alpha1.")
    kind: Literal["ServingRuntime"] = Field(default="ServingRuntime", description="ServingRuntime.")
    metadata: dict[str, Any] = Field(description="The name is what spec.serving.runtime of a ModelDeployment refers to.")
    spec: ServingRuntimeSpec = Field(description="How the server is started and observed.")
