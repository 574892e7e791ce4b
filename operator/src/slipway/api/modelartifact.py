"""ModelArtifact: one converted model. Made by the operator, named by the hash of its spec, shared by revisions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from slipway.api.accelerator import Accelerator
from slipway.api.common import ATOMIC, INT64, Conditions, Image, ObjectName
from slipway.api.modeldeployment import ObservedFormat
from slipway.api.rules import ApiModel, Rule, StatusModel
from slipway.api.source import SOURCE_TARGETS, Conversion, ModelSource, Signature

# A whole number may come as one; Kubernetes APIs have no floats.
Measured = Annotated[int | str, WithJsonSchema({"x-kubernetes-int-or-string": True})]


class ModelArtifactSpec(ApiModel):
    """What is converted, and by which image. Immutable: the name of the resource is the hash of it."""

    rules = (
        SOURCE_TARGETS,
        Rule(
            "self == oldSelf",
            "the spec of a ModelArtifact cannot be changed, because its name is the hash of it; change the ModelDeployment instead",
            lambda _spec: True,  # only the API server knows what was there before
        ),
    )

    model: ModelSource = Field(description="Where the model comes from, as in ModelDeployment.spec.model.")
    signature: Signature | None = Field(
        default=None, description="Inputs and outputs, as in ModelDeployment.spec.signature. Default: those of the model folder."
    )
    conversion: Conversion | None = Field(
        default=None, description="Candidates and the parity gate, as in ModelDeployment.spec.conversion. Default: ONNX Float32."
    )
    accelerator: Accelerator | None = Field(
        default=None, description="Devices that the conversion needs, when a candidate is built for them. Default: none."
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Largest batch that candidates are measured with: serving.batching.maxBatchSize, when the objective is Throughput. "
        "Default: 32.",
    )
    converter_image: Image = Field(
        description="Image that converts; part of what the artifact is. Example: ghcr.io/slipway/slipway-runtime-torch:0.1.0."
    )
    signing_secret: ObjectName | None = Field(
        default=None,
        description="Secret with the key that signs it; what another key signed is converted again. Set by the chart value "
        "signing.keySecret. Default: it is not signed.",
    )


class CandidateStatus(StatusModel):
    """How one candidate did. Numbers that are not whole are strings; what was not measured is absent."""

    target: str = Field(description="As in the spec. Example: ONNX.")
    precision: str = Field(default="Float32", description="Precision that was built. Example: Float32.")
    method: str | None = Field(default=None, description="Script, when TorchScript was not traced.")
    verdict: Literal["Passed", "Failed", "Skipped", "Unavailable"] = Field(
        description="Passed, Failed, Skipped, or Unavailable when image or node lack what it takes."
    )
    reason: str | None = Field(default=None, description="Why it failed. Example: ParityFailed.")
    message: str | None = Field(default=None, description="Why it failed, as a sentence.")
    max_absolute_error: Measured | None = Field(
        default=None, description='Largest difference of any output value. A decimal string, for example "2.4e-7".'
    )
    max_relative_error: Measured | None = Field(
        default=None, description="Largest difference relative to the source's value, or to 10 % of the largest where that is more."
    )
    cosine: Measured | None = Field(default=None, description='Cosine of its outputs with those of the source. Example: "0.9998".')
    worst_sample: int | None = Field(default=None, description="Index of the sample with the largest difference, when it failed.")
    top1_agreement_percent: Measured | None = Field(
        default=None, description='Samples whose largest output is at the same place, in percent. Example: "100".'
    )
    accuracy_percent: Measured | None = Field(
        default=None, description='Samples that it got right, in percent; only with labels. Example: "97.5".'
    )
    latency_p50: str | None = Field(default=None, description="Median time of one sample. Example: 0.21ms.")
    latency_p99: str | None = Field(default=None, description="99th percentile of the time of one sample. Example: 0.35ms.")
    throughput: Measured | None = Field(default=None, description='Samples a second at the best batch size. Example: "5120".')
    batch_size: int | None = Field(default=None, description="That batch size: samples in one call. Example: 32.")
    load_seconds: Measured | None = Field(default=None, description='Seconds to load it. Example: "0.04".')
    peak_memory: str | None = Field(default=None, description="Most memory of its process. Example: 143Mi.")
    size_bytes: int | None = Field(default=None, json_schema_extra=INT64, description="Size of its files in bytes. Example: 148213.")
    seconds: Measured | None = Field(default=None, description='How long it took to build and check, in seconds. Example: "12.4".')
    chosen: bool | None = Field(default=None, description="Whether it is the one that is served; absent with all others.")


class ArtifactFailure(StatusModel):
    """The failure of the last attempt."""

    reason: str = Field(description="Why, out of the closed list in docs/reference/reasons.md. Example: EntrypointFailed.")
    message: str = Field(default="", description="Why, as a sentence, and what to do next.")
    exit_code: int | None = Field(default=None, description="Exit code of the container. Example: 21. Absent when no container failed.")
    container: str | None = Field(default=None, description="Container that failed: fetch, convert, validate or publish.")


class Provenance(StatusModel):
    """The statement about where the artifact comes from, which is attached to it in the registry."""

    predicate_type: str = Field(description="What it says, as in-toto names it. Example: https://slsa.dev/provenance/v1.")
    signed_by: str | None = Field(
        default=None,
        description="Id of the key that signed it: sha256 of the public key in DER. Example: 3f9a…. Absent when signing is off.",
    )


class ModelArtifactStatus(StatusModel):
    """What became of it. Written by the operator alone."""

    observed_generation: int | None = Field(
        default=None, json_schema_extra=INT64, description="The metadata.generation that this status is about."
    )
    conditions: Conditions = Field(default=(), description="Ready; while they hold Reconciling or Stalled.")
    source_digest: str | None = Field(default=None, description="Digest that the URI was resolved to. Example: sha256:9f86….")
    content_key: str | None = Field(
        default=None,
        description="Hash of everything that determines the result: source digest, signature, conversion, tools. The tag in the registry.",
    )
    digest: str | None = Field(default=None, description="Digest of the published artifact. Example: sha256:9f86….")
    repository: str | None = Field(
        default=None, description="Repository it is in. Example: slipway-registry.slipway-system:5000/artifacts/default."
    )
    provenance: Provenance | None = Field(
        default=None, description="The statement that is attached to it. Absent for an artifact from before there were any."
    )
    format: ObservedFormat | None = Field(default=None, description="Format of the chosen candidate. Example: ONNX.")
    precision: str | None = Field(default=None, description="Precision of the chosen candidate. Example: Float32.")
    size_bytes: int | None = Field(default=None, json_schema_extra=INT64, description="Size of the artifact in bytes. Example: 148213.")
    candidates: Annotated[tuple[CandidateStatus, ...], Field(json_schema_extra=ATOMIC)] = Field(
        default=(), description="How each candidate did, in the order of the spec."
    )
    choice: str | None = Field(default=None, description='Why that candidate was chosen. Example: "ONNX is the best by Latency: 0.21 ms".')
    signature: dict[str, Any] | None = Field(default=None, description="Inputs and outputs of the artifact, as in spec.signature.")
    tools: dict[str, str] | None = Field(default=None, description='Versions of the tools that made it. Example: {torch: "2.9.1"}.')
    cache_hit: bool | None = Field(default=None, description="Whether it was in the registry already, so that nothing was converted.")
    attempts: int | None = Field(default=None, description="How many Jobs were started. A count.")
    retry_at: str | None = Field(
        default=None,
        json_schema_extra={"format": "date-time"},
        description="When the next attempt starts, UTC. Absent when none is planned.",
    )
    last_failure: ArtifactFailure | None = Field(default=None, description="The failure of the last attempt that failed.")


class ModelArtifact(ApiModel):
    """One converted model: its candidates, the chosen one, its digest in the registry and where it came from."""

    api_version: Literal["slipway.dev/v1alpha1"] = Field(default="slipway.dev/v1alpha1", description="slipway.dev/v1alpha1.")
    kind: Literal["ModelArtifact"] = Field(default="ModelArtifact", description="ModelArtifact.")
    metadata: dict[str, Any] = Field(
        description="The name is mart- and 12 digits of the hash of the spec; owners are the ModelDeployments that use it."
    )
    spec: ModelArtifactSpec = Field(description="What is converted. Immutable.")
    status: ModelArtifactStatus | None = Field(default=None, description="What became of it. Written by the operator alone.")
