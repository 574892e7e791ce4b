"""Every reason that a condition, an Event or a termination message may carry.

The enum is closed: whatever happens to a model ends in one of these, and each is documented here, once, with its meaning, its usual
cause and what to do next. `docs/reference/reasons.md` is generated from this table. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Reason(StrEnum):
    """A reason in CamelCase, as the Kubernetes API conventions want it."""

    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    CREDENTIALS_REJECTED = "CredentialsRejected"
    DIGEST_MISMATCH = "DigestMismatch"
    SOURCE_TOO_LARGE = "SourceTooLarge"
    MODEL_FOLDER_INVALID = "ModelFolderInvalid"
    CREDENTIALS_MISSING = "CredentialsMissing"
    ENTRYPOINT_NOT_FOUND = "EntrypointNotFound"
    ENTRYPOINT_FAILED = "EntrypointFailed"
    ENTRYPOINT_INVALID = "EntrypointInvalid"
    WEIGHTS_MISMATCH = "WeightsMismatch"
    UNSAFE_PICKLE = "UnsafePickle"
    SIGNATURE_MISMATCH = "SignatureMismatch"
    UNSUPPORTED_OPERATOR = "UnsupportedOperator"
    CONVERSION_TIMEOUT = "ConversionTimeout"
    CONVERSION_OUT_OF_MEMORY = "ConversionOutOfMemory"
    CONVERSION_FAILED = "ConversionFailed"
    UNSUPPORTED_CONVERSION = "UnsupportedConversion"
    SIGNATURE_MISSING = "SignatureMissing"
    TARGET_UNAVAILABLE = "TargetUnavailable"
    REQUIREMENT_MISSING = "RequirementMissing"
    PARITY_FAILED = "ParityFailed"
    NON_FINITE_OUTPUTS = "NonFiniteOutputs"
    VALIDATION_FAILED = "ValidationFailed"
    REGISTRY_UNAVAILABLE = "RegistryUnavailable"
    REGISTRY_REJECTED = "RegistryRejected"
    SIGNING_KEY_UNUSABLE = "SigningKeyUnusable"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    GOLDEN_MISMATCH = "GoldenMismatch"
    INVALID_ARGUMENTS = "InvalidArguments"
    MODEL_STUCK = "ModelStuck"
    PROVENANCE_UNVERIFIED = "ProvenanceUnverified"
    INTERNAL_ERROR = "InternalError"

    FETCHED = "Fetched"
    CONVERTED = "Converted"
    VALIDATED = "Validated"
    PUBLISHED = "Published"
    CACHE_HIT = "CacheHit"

    PENDING = "Pending"
    FETCHING = "Fetching"
    CONVERTING = "Converting"
    VALIDATING = "Validating"
    PUBLISHING = "Publishing"

    SOURCE_MISSING = "SourceMissing"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    INSUFFICIENT_RESOURCES = "InsufficientResources"
    INSUFFICIENT_ACCELERATORS = "InsufficientAccelerators"
    QUOTA_EXCEEDED = "QuotaExceeded"
    ADMISSION_REJECTED = "AdmissionRejected"
    PODS_CRASHING = "PodsCrashing"
    OUT_OF_MEMORY = "OutOfMemory"
    EVICTED = "Evicted"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    SERVING_RUNTIME_MISSING = "ServingRuntimeMissing"
    NAME_CONFLICT = "NameConflict"
    INVALID_SPEC = "InvalidSpec"
    RECONCILE_DISABLED = "ReconcileDisabled"
    ANALYSIS_FAILED = "AnalysisFailed"
    ROLLOUT_ABORTED = "RolloutAborted"
    ROLLOUT_PAUSED = "RolloutPaused"
    ROUTE_REJECTED = "RouteRejected"
    GATEWAY_REQUIRED = "GatewayRequired"
    KEDA_REQUIRED = "KedaRequired"
    AUTOSCALER_FAILED = "AutoscalerFailed"

    READY = "Ready"
    AVAILABLE = "Available"
    PROGRESSING = "Progressing"
    UP_TO_DATE = "UpToDate"
    ARTIFACT_READY = "ArtifactReady"
    REVISION_SUPERSEDED = "RevisionSuperseded"
    SCALED_TO_ZERO = "ScaledToZero"


@dataclass(frozen=True, slots=True)
class ReasonDoc:
    """What a user needs to know about one reason.

    `retried` says whether the same attempt is made again, with backoff, without a change by the user. `exit_code` is the code of the
    container that found it; None when the operator did. `fix` is empty where there is nothing to do.
    """

    meaning: str
    cause: str
    fix: str
    retried: bool = False
    exit_code: int | None = None


R = Reason

_FOUND_BY_CONTAINERS: dict[Reason, ReasonDoc] = {
    R.SOURCE_NOT_FOUND: ReasonDoc(
        "The model source does not exist.",
        "A tag, path or file name in spec.model.uri is misspelt, or nothing was pushed there yet.",
        "Correct spec.model.uri, or push the model there with `slipway push`.",
        retried=True,
        exit_code=10,
    ),
    R.SOURCE_UNREACHABLE: ReasonDoc(
        "The host of the model source does not answer.",
        "A wrong host name or port, a network policy, or an outage of the host.",
        "Check the host in spec.model.uri and that pods in this namespace may connect to it.",
        retried=True,
        exit_code=11,
    ),
    R.CREDENTIALS_REJECTED: ReasonDoc(
        "The host of the model source refused the credentials.",
        "The Secret holds a wrong or expired password, the account may not read the model, or the host wants credentials and got none.",
        "Put working credentials into the Secret that spec.model.credentialsSecretRef names.",
        retried=True,
        exit_code=12,
    ),
    R.DIGEST_MISMATCH: ReasonDoc(
        "What was downloaded is not what spec.model.digest pins.",
        "The tag or file was overwritten after the digest was written down, or the digest belongs to something else.",
        "Set spec.model.digest to the digest that the message names if you trust it, or remove the field.",
        exit_code=13,
    ),
    R.SOURCE_TOO_LARGE: ReasonDoc(
        "The model source is larger than the operator allows.",
        "The folder holds more than the model, or the limit of the operator is too low for this model.",
        "Remove files that serving does not need, or raise the chart value that sets SLIPWAY_MAX_SOURCE_BYTES.",
        exit_code=14,
    ),
    R.MODEL_FOLDER_INVALID: ReasonDoc(
        "The model folder or its model.yaml cannot be used.",
        "A file that model.yaml names is absent, model.yaml has an unknown or mistyped field, or the archive holds unsafe paths.",
        "Correct the file that the message names and push the folder again.",
        exit_code=15,
    ),
    R.CREDENTIALS_MISSING: ReasonDoc(
        "A Secret that the download needs does not exist, or lacks its keys.",
        "spec.model.credentialsSecretRef names a Secret that is not in this namespace or has none of the keys that the scheme needs.",
        "Create the Secret in this namespace, with .dockerconfigjson for oci, or username and password, or token, for http.",
        retried=True,
        exit_code=16,
    ),
    R.ENTRYPOINT_NOT_FOUND: ReasonDoc(
        "The module or the callable of the entrypoint does not exist.",
        "spec.model.entrypoint, or entrypoint in model.yaml, does not name a callable in the model folder.",
        "Write the entrypoint as module:callable, with the module in the model folder.",
        exit_code=20,
    ),
    R.ENTRYPOINT_FAILED: ReasonDoc(
        "The entrypoint raised an exception.",
        "The model code needs a package, a file or an argument that is not there, or has a bug.",
        "Read the exception in the message, and call the entrypoint with the same arguments on your machine.",
        exit_code=21,
    ),
    R.ENTRYPOINT_INVALID: ReasonDoc(
        "The entrypoint did not return an nn.Module.",
        "The callable returns a state dict, a tuple or None.",
        "Return the torch.nn.Module itself; Slipway loads the weights into it.",
        exit_code=22,
    ),
    R.WEIGHTS_MISMATCH: ReasonDoc(
        "The weights do not fit the module.",
        "Keys are missing, unexpected or of another shape: the weights belong to another version or to other arguments.",
        "Make spec.model.arguments and the weights file match; the message names the keys.",
        exit_code=23,
    ),
    R.UNSAFE_PICKLE: ReasonDoc(
        "The weights file is a pickle that would run code when loaded.",
        "The whole model was saved, not its state dict, or the file was tampered with.",
        "Save the state dict as safetensors: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors').",
        exit_code=24,
    ),
    R.SIGNATURE_MISMATCH: ReasonDoc(
        "The model does not accept or produce what the signature says.",
        "A shape, a dtype, or the number or order of inputs or outputs differs.",
        "Correct spec.signature, or signature in model.yaml; the message shows both sides.",
        exit_code=25,
    ),
    R.UNSUPPORTED_OPERATOR: ReasonDoc(
        "The model uses an operator that the target format does not have.",
        "A custom or data-dependent operation has no counterpart in the exporter.",
        "Rewrite the operation, or add {target: TorchScript} or {target: None} to spec.conversion.candidates.",
        exit_code=26,
    ),
    R.CONVERSION_TIMEOUT: ReasonDoc(
        "Conversion or validation did not end in time.",
        "The entrypoint never returns, or the model is large for the CPU that the Job has.",
        "Raise spec.conversion.timeout or spec.conversion.resources if the model is large; otherwise look for an endless loop.",
        exit_code=27,
    ),
    R.CONVERSION_OUT_OF_MEMORY: ReasonDoc(
        "Conversion used more memory than it may.",
        "Conversion holds the weights several times; the memory limit is too low for this model.",
        "Raise spec.conversion.resources.limits.memory; four times the size of the weights is a good start.",
        exit_code=28,
    ),
    R.CONVERSION_FAILED: ReasonDoc(
        "No candidate could be built.",
        "The exporter failed on this model; the message has the first error.",
        "Read the verdict of each candidate in the status of the ModelArtifact, or add another candidate.",
        exit_code=29,
    ),
    R.UNSUPPORTED_CONVERSION: ReasonDoc(
        "This source cannot be converted to this target.",
        "For example, an ONNX source with the target TorchScript, or a .mar with a handler of its own and any target but None.",
        "Choose a target that the source format supports; the message lists them.",
        exit_code=30,
    ),
    R.SIGNATURE_MISSING: ReasonDoc(
        "Neither the resource nor the model folder has a signature.",
        "PyTorch code does not say what inputs it takes.",
        "Add spec.signature, or signature to model.yaml.",
        exit_code=31,
    ),
    R.TARGET_UNAVAILABLE: ReasonDoc(
        "The converter lacks what this target needs.",
        "TorchTensorRT needs the package torch_tensorrt and a GPU; AOTInductor needs a C++ compiler.",
        "Choose another target, or set the converter image of the chart to one that has it and convert on a node with the GPU.",
        exit_code=32,
    ),
    R.REQUIREMENT_MISSING: ReasonDoc(
        "The handler of an archive needs a package that is not in the image.",
        "requirements.txt of the .mar, or an import of its handler; nothing is installed in a running pod. The message names the package.",
        "Build an image FROM slipway-runtime-torch that has it and set runtime.torchImage of the chart, or put it into the archive.",
        exit_code=33,
    ),
    R.PARITY_FAILED: ReasonDoc(
        "The converted model does not answer like its source.",
        "The model is not deterministic (dropout in train mode), or the conversion changes it by more than allowed.",
        "Call eval() in the entrypoint; if the measured error is acceptable, raise spec.conversion.validation.maxAbsoluteError.",
        exit_code=40,
    ),
    R.NON_FINITE_OUTPUTS: ReasonDoc(
        "The model answers with NaN or infinity.",
        "Damaged weights, or inputs outside the range that the model was trained on.",
        "Check the weights, and give real inputs in spec.conversion.validation.data.",
        exit_code=41,
    ),
    R.VALIDATION_FAILED: ReasonDoc(
        "The converted model could not be validated.",
        "It does not load, fails on an input, misses the required accuracy, or the golden data does not fit the signature.",
        "Read the verdict of each candidate in the status of the ModelArtifact.",
        exit_code=42,
    ),
    R.REGISTRY_UNAVAILABLE: ReasonDoc(
        "The registry of the converted models does not answer.",
        "The registry is down or starting, or a network policy is in the way.",
        "Check the registry that the operator is set to (SLIPWAY_REGISTRY); the attempt is repeated by itself.",
        retried=True,
        exit_code=50,
    ),
    R.REGISTRY_REJECTED: ReasonDoc(
        "The registry of the converted models refused the request.",
        "Its credentials are wrong, its volume is full, or it does not allow this repository.",
        "Check the Secret that SLIPWAY_REGISTRY_SECRET names and the space left in the registry.",
        retried=True,
        exit_code=51,
    ),
    R.SIGNING_KEY_UNUSABLE: ReasonDoc(
        "Artifacts are signed here, but the keys for it cannot be used.",
        "The Secret of the chart value signing.keySecret is not in this namespace, or lacks private.pem or a public.pem that fits it.",
        "Create the Secret in this namespace as docs/provenance.md says; the attempt is repeated by itself.",
        retried=True,
        exit_code=52,
    ),
    R.ARTIFACT_CORRUPT: ReasonDoc(
        "A file of the converted model does not have the digest that its manifest says.",
        "The registry's storage is damaged, or somebody changed the file.",
        "Repair the registry's storage, because it keeps the damaged file whoever pushes it again; then delete the ModelArtifact and, when "
        "it is Ready again, the Deployment of the revision.",
        retried=True,
        exit_code=60,
    ),
    R.ARTIFACT_NOT_FOUND: ReasonDoc(
        "The converted model is not in the registry any more.",
        "The registry lost its volume, or the artifact was deleted there.",
        "Delete the ModelArtifact, so that the model is converted and published again, and, when it is Ready again, the Deployment of the "
        "revision.",
        retried=True,
        exit_code=61,
    ),
    R.MODEL_LOAD_FAILED: ReasonDoc(
        "The server could not load the converted model.",
        "The server's libraries differ from those of the converter, or the node lacks an instruction set.",
        "Read the message, and use the runtime image of the same release as the converter.",
        retried=True,
        exit_code=62,
    ),
    R.GOLDEN_MISMATCH: ReasonDoc(
        "On this node the model does not reproduce its golden outputs.",
        "Another CPU computes with another error, or the runtime is broken.",
        "Raise spec.conversion.validation.maxAbsoluteError if the error is acceptable; otherwise choose other nodes.",
        retried=True,
        exit_code=63,
    ),
    R.INVALID_ARGUMENTS: ReasonDoc(
        "The container was started with arguments that it does not understand.",
        "A ServingRuntime passes a wrong flag, or operator and runtime are of different releases.",
        "Correct spec.args of the ServingRuntime; compare with `slipway-runtime --help`.",
        exit_code=64,
    ),
    R.MODEL_STUCK: ReasonDoc(
        "A call of the model did not return, so the server was restarted.",
        "The model loops or waits on some input, or one request needs longer than the server allows (--stuck-seconds, 60 by default).",
        "Find the input (SLIPWAY_ACCESS_LOG=true), or raise --stuck-seconds in spec.args of the ServingRuntime if calls may be long.",
        retried=True,
        exit_code=65,
    ),
    R.PROVENANCE_UNVERIFIED: ReasonDoc(
        "The artifact is not loaded, because the key of this namespace did not sign it.",
        "The keys were exchanged and public.pem does not have the old one any more, or somebody else wrote to the registry.",
        "Put the old key beside the new one into public.pem if you trust it; otherwise delete the ModelArtifact, and, when it is Ready "
        "again, the Deployment of the revision.",
        exit_code=66,
    ),
    R.INTERNAL_ERROR: ReasonDoc(
        "Slipway failed in a way that it does not know.",
        "A bug, or an interruption by the node.",
        "The attempt is repeated by itself; if it stays, report the message and the log of the container.",
        retried=True,
        exit_code=1,
    ),
}

_PROGRESS: dict[Reason, ReasonDoc] = {
    R.FETCHED: ReasonDoc("The source was downloaded and verified.", "fetch ended well.", "", exit_code=0),
    R.CONVERTED: ReasonDoc("The candidates were built.", "convert ended well.", "", exit_code=0),
    R.VALIDATED: ReasonDoc("A candidate passed.", "validate ended well.", "", exit_code=0),
    R.PUBLISHED: ReasonDoc("The chosen candidate is in the registry.", "publish ended well.", "", exit_code=0),
    R.CACHE_HIT: ReasonDoc("The same model was converted before.", "Its content key is in the registry.", "", exit_code=0),
    R.PENDING: ReasonDoc("Waiting to start.", "The pod is not scheduled or its image is being pulled.", ""),
    R.FETCHING: ReasonDoc("The source is being downloaded.", "The Job runs its container fetch.", ""),
    R.CONVERTING: ReasonDoc("The candidates are being built.", "The Job runs its container convert.", ""),
    R.VALIDATING: ReasonDoc("The candidates are being compared with the source.", "The Job runs its container validate.", ""),
    R.PUBLISHING: ReasonDoc("The chosen candidate is being pushed to the registry.", "The Job runs its container publish.", ""),
    R.READY: ReasonDoc("Everything is as the spec says.", "The current revision serves.", ""),
    R.AVAILABLE: ReasonDoc("At least one ready pod answers.", "The stable revision has ready replicas.", ""),
    R.PROGRESSING: ReasonDoc("A new revision is coming up.", "The spec changed, or pods are being replaced.", ""),
    R.UP_TO_DATE: ReasonDoc("Nothing is in progress.", "The stable revision is that of the spec.", ""),
    R.ARTIFACT_READY: ReasonDoc("The converted model is in the registry.", "The ModelArtifact is Ready.", ""),
    R.REVISION_SUPERSEDED: ReasonDoc("A newer revision took over before this one served.", "The spec changed again.", ""),
    R.SCALED_TO_ZERO: ReasonDoc(
        "The model is served, and has no pod while nobody wants it.", "autoscaling.activationQuery has been 0 for the cooldown.", ""
    ),
}

_FOUND_BY_OPERATOR: dict[Reason, ReasonDoc] = {
    R.SOURCE_MISSING: ReasonDoc(
        "The PersistentVolumeClaim of the model source does not exist.",
        "spec.model.uri names a claim that is not in this namespace.",
        "Create the claim, or correct spec.model.uri; the pod then starts by itself.",
        retried=True,
    ),
    R.IMAGE_PULL_FAILED: ReasonDoc(
        "An image cannot be pulled.",
        "The image name is wrong, its registry is unreachable, or the pull Secret is missing.",
        "Correct the image in the ServingRuntime or the chart values, or add a pull Secret.",
        retried=True,
    ),
    R.INSUFFICIENT_RESOURCES: ReasonDoc(
        "No node has room for the pod.",
        "The requests exceed what is free, or nodeSelector, affinity or tolerations exclude every node.",
        "Lower spec.serving.resources.requests (or spec.conversion.resources for a Job), or add nodes.",
        retried=True,
    ),
    R.INSUFFICIENT_ACCELERATORS: ReasonDoc(
        "Too few accelerators are free for the new revision's pods, and giving up those of the old one would not be enough.",
        "Other pods hold them, no node has the product or room for count on one node, or nodes are cordoned; the message names holders.",
        "Free some of the accelerators that the message names, add nodes, or change spec.accelerator; the rollout goes on by itself.",
        retried=True,
    ),
    R.QUOTA_EXCEEDED: ReasonDoc(
        "A ResourceQuota of the namespace forbids the pod.",
        "The namespace has used up its quota.",
        "Lower replicas or requests, or ask for a larger quota.",
        retried=True,
    ),
    R.ADMISSION_REJECTED: ReasonDoc(
        "The API server refused an object that Slipway needs.",
        "An admission policy, webhook, LimitRange or missing permission is in the way.",
        "Read the message of the policy, and change the spec or the policy.",
        retried=True,
    ),
    R.PODS_CRASHING: ReasonDoc(
        "The serving pods start and end again.",
        "The server exits; the message has its last words and its exit code.",
        "Read the log with `kubectl logs --previous`; the pod is restarted by itself.",
        retried=True,
    ),
    R.OUT_OF_MEMORY: ReasonDoc(
        "A serving pod was killed because it used more memory than its limit.",
        "The model and the requests in flight need more than spec.serving.resources.limits.memory.",
        "Raise spec.serving.resources.limits.memory.",
        retried=True,
    ),
    R.EVICTED: ReasonDoc(
        "The node evicted the pod.",
        "The node ran out of memory or disk, or was drained.",
        "Set requests that match what the pod uses; a new pod is made by itself.",
        retried=True,
    ),
    R.PROGRESS_DEADLINE_EXCEEDED: ReasonDoc(
        "The new revision did not become ready in time.",
        "Its pods run but do not become ready, or cannot start.",
        "Look at the pods of the revision with `slipway status`; the stable revision keeps serving.",
        retried=True,
    ),
    R.SERVING_RUNTIME_MISSING: ReasonDoc(
        "No ServingRuntime can serve this model.",
        "spec.serving.runtime names one that does not exist, or none claims the format of the artifact.",
        "Create the ServingRuntime or correct spec.serving.runtime; `kubectl get servingruntimes` lists them.",
        retried=True,
    ),
    R.NAME_CONFLICT: ReasonDoc(
        "An object of the name that Slipway needs exists and belongs to somebody else.",
        "A Service or Deployment was made by hand or by another tool.",
        "Delete or rename that object, or give the ModelDeployment another name.",
        retried=True,
    ),
    R.INVALID_SPEC: ReasonDoc(
        "The spec says something that cannot be done.",
        "The resource was stored by an older or newer version of the CRD, which allowed it.",
        "Correct the field that the message names.",
    ),
    R.RECONCILE_DISABLED: ReasonDoc(
        "Slipway leaves this resource alone.",
        "It has the annotation slipway.dev/reconcile: disabled.",
        "Remove the annotation slipway.dev/reconcile.",
    ),
    R.ANALYSIS_FAILED: ReasonDoc(
        "The new revision was given up, or stopped, because a metric of spec.rollout.analysis failed.",
        "It answers worse than a limit allows, or worse than the stable revision did at the same time; the message has both values.",
        "Correct the model and change spec.model; this revision is not tried again. The stable one serves.",
    ),
    R.ROLLOUT_ABORTED: ReasonDoc(
        "The new revision was given up by hand.",
        "`kubectl slipway abort`, or the annotation slipway.dev/abort, names it.",
        "Change spec.model, or go back with `kubectl slipway undo`; this revision is not tried again. The stable one serves.",
    ),
    R.ROLLOUT_PAUSED: ReasonDoc(
        "The rollout waits for a person.",
        "Its step has no duration, spec.paused is true, or the analysis failed with onFailure: Pause.",
        "Look at the new revision, then `kubectl slipway promote` (or resume) or `kubectl slipway abort`.",
        retried=True,
    ),
    R.ROUTE_REJECTED: ReasonDoc(
        "The gateway does not accept the HTTPRoute.",
        "No listener of the Gateway allows routes of this namespace or hostname, or the cluster has no Gateway API.",
        "Correct spec.routing, or the allowedRoutes of the Gateway; `kubectl describe httproute` has the gateway's own words.",
        retried=True,
    ),
    R.GATEWAY_REQUIRED: ReasonDoc(
        "What the spec asks for can only be done by a gateway, and there is none.",
        "spec.routing.experiments and mirrored requests of spec.rollout.shadow need spec.routing.gateway.",
        "Set spec.routing.gateway, or remove the field. Everything else goes on.",
    ),
    R.KEDA_REQUIRED: ReasonDoc(
        "What the spec or the chart asks for can only be done by KEDA, and it is not used.",
        "minReplicas is 0, or autoscaling.provider of the chart is KEDA; KEDA is not installed, or prometheus.address is not set.",
        "Install KEDA and set prometheus.address of the chart (docs/autoscaling.md), or set minReplicas to 1. Everything else goes on.",
    ),
    R.AUTOSCALER_FAILED: ReasonDoc(
        "The autoscaler cannot measure the load, so the number of pods stays as it is.",
        "metrics-server, prometheus-adapter or Prometheus is missing or does not answer, or has nothing about the pods.",
        "See what docs/autoscaling.md says the metric needs; `kubectl describe hpa` (or scaledobject) has the autoscaler's own words.",
        retried=True,
    ),
}

REASONS: Mapping[Reason, ReasonDoc] = MappingProxyType(_FOUND_BY_CONTAINERS | _FOUND_BY_OPERATOR | _PROGRESS)

_BY_EXIT_CODE: Mapping[int, Reason] = {doc.exit_code: reason for reason, doc in _FOUND_BY_CONTAINERS.items() if doc.exit_code is not None}


def reason_for_exit_code(code: int) -> Reason | None:
    """The failure that a container's exit code stands for; None for 0 and for codes that are not ours (137 of a kill, say)."""
    return _BY_EXIT_CODE.get(code)
