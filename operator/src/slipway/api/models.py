"""All kinds in one place, for those who read resources."""

from slipway.api.accelerator import Accelerator
from slipway.api.common import (
    ConditionStatus,
    EnvVar,
    EnvVarSource,
    ResourceRequirements,
    SecretReference,
    Toleration,
    parse_duration,
    parse_quantity,
)
from slipway.api.modelartifact import ArtifactFailure, CandidateStatus, ModelArtifact, ModelArtifactSpec, ModelArtifactStatus
from slipway.api.modeldeployment import (
    Batching,
    DeploymentFailure,
    HistoryEntry,
    ModelDeployment,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ObservedModel,
    RevisionStatus,
    Serving,
)
from slipway.api.servingruntime import Metrics, Probes, RuntimeFormat, ServingRuntime, ServingRuntimeSpec
from slipway.api.source import Calibration, Candidate, Conversion, ModelSource, Signature, TensorSpec, Validation, ValidationData

__all__ = [
    "Accelerator",
    "ArtifactFailure",
    "Batching",
    "Calibration",
    "Candidate",
    "CandidateStatus",
    "ConditionStatus",
    "Conversion",
    "DeploymentFailure",
    "EnvVar",
    "EnvVarSource",
    "HistoryEntry",
    "Metrics",
    "ModelArtifact",
    "ModelArtifactSpec",
    "ModelArtifactStatus",
    "ModelDeployment",
    "ModelDeploymentSpec",
    "ModelDeploymentStatus",
    "ModelSource",
    "ObservedModel",
    "Probes",
    "ResourceRequirements",
    "RevisionStatus",
    "RuntimeFormat",
    "SecretReference",
    "Serving",
    "ServingRuntime",
    "ServingRuntimeSpec",
    "Signature",
    "TensorSpec",
    "Toleration",
    "Validation",
    "ValidationData",
    "parse_duration",
    "parse_quantity",
]
