"""What a model is and how it is converted: the part of the spec that ModelDeployment and ModelArtifact share."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from slipway.api.common import (
    ATOMIC,
    LIST_MAP_BY_NAME,
    DecimalString,
    Digest,
    Duration,
    Percent,
    ResourceRequirements,
    SecretReference,
    unique_names,
)
from slipway.api.rules import ApiModel, Rule, matches

ModelFormat = Literal["PyTorch", "ONNX", "TorchServe", "TorchScript", "ExportedProgram"]
Target = Literal["ONNX", "TorchScript", "ExportedProgram", "AOTInductor", "TorchTensorRT", "None"]
Precision = Literal["Float32", "Float16", "BFloat16", "Int8Dynamic", "Int8Static"]
# Which precisions a target can be built in; slipway_runtime.candidates.PRECISIONS is the converter's list, and a test keeps the two equal.
PRECISIONS: dict[str, tuple[str, ...]] = {
    "ONNX": ("Float32", "Float16", "Int8Dynamic", "Int8Static"),
    "TorchScript": ("Float32", "Float16", "BFloat16"),
    "ExportedProgram": ("Float32", "Float16", "BFloat16", "Int8Dynamic", "Int8Static"),
    "AOTInductor": ("Float32", "Float16", "BFloat16", "Int8Dynamic", "Int8Static"),
    "TorchTensorRT": ("Float32", "Float16", "BFloat16"),
    "None": ("Float32",),
}
# What can be made of a source; one that is not listed has every target. slipway_runtime.candidates.TARGETS is the converter's list.
TARGETS: dict[str, tuple[str, ...]] = {"ONNX": ("None", "ONNX"), "TorchScript": ("None", "ONNX", "TorchScript")}
DType = Literal["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]

_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"
_DOTTED = rf"{_IDENTIFIER}(\.{_IDENTIFIER})*"
_NAME = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"


# What follows SCHEME:// in a URI; the key is a pattern too.
_REST = {
    "oci": r"[^/@]+/[a-z0-9][-a-z0-9._/]*(:[A-Za-z0-9_][-A-Za-z0-9._]{0,127})?(@sha256:[0-9a-f]{64})?",
    "(s3|gs|az)": "[a-z0-9][-a-z0-9._]{1,221}[a-z0-9](/[^/?#]+)+/?",  # no query: what it would say stands in the Secret
    "hf": "[A-Za-z0-9][-A-Za-z0-9._]*/[A-Za-z0-9][-A-Za-z0-9._]*(@[-A-Za-z0-9._%]+)?(/[^/?#]+)*/?",
    "https?": "[^/]+/.+",
    "configmap": _NAME,
    "pvc": rf"{_NAME}(/[^/]+)*/?",
}


def _uri_rule(scheme: str, message: str) -> Rule:
    """A rule about the URIs of one scheme; the others obey it by not being meant."""
    compiled = re.compile(f"{scheme}://{_REST[scheme]}")
    return Rule(
        f"!self.matches('^{scheme}://') || self.matches(r'^{scheme}://{_REST[scheme]}$')",
        message,
        lambda uri: re.match(f"{scheme}://", uri) is None or compiled.fullmatch(uri) is not None,
    )


Uri = Annotated[
    str,
    Field(min_length=1, max_length=2048),
    Rule(
        f"self.matches('^({'|'.join(_REST)})://')",
        "the URI must start with oci://, s3://, gs://, az://, hf://, https://, http://, configmap:// or pvc://; for example "
        "oci://registry:5000/models/digits:v1",
        lambda uri: re.match(f"({'|'.join(_REST)})://", uri) is not None,
    ),
    Rule(r"!self.matches(r'\s')", "the URI must not contain spaces", lambda uri: re.search(r"\s", uri) is None),
    Rule(
        "!self.matches('^[a-z]+://[^/]*@')",
        "the URI must not carry a user or a password; put them into a Secret and name it in credentialsSecretRef",
        lambda uri: re.match("[a-z]+://[^/]*@", uri) is None,
    ),
    _uri_rule("oci", "an oci URI is oci://host[:port]/repository[:tag][@sha256:…], the repository in lower case"),
    _uri_rule("(s3|gs|az)", "an s3, gs or az URI is s3://BUCKET/PATH, a folder or one file; endpoint and account go into the Secret"),
    _uri_rule("hf", "an hf URI is hf://OWNER/NAME[@REVISION][/FOLDER]; for example hf://acme/digits@v1"),
    _uri_rule("https?", "an http URI names a host and a file; for example https://models.example.com/digits.tar.gz"),
    _uri_rule(
        "configmap", "after configmap:// comes the name of a ConfigMap of this namespace and nothing else; for example configmap://digits"
    ),
    _uri_rule(
        "pvc", "after pvc:// come the name of a PersistentVolumeClaim of this namespace and a path in it; for example pvc://models/digits"
    ),
    Rule(
        r"!self.matches(r'/\.\.(/|$)')",
        "the URI must not contain /../; write the path without it",
        lambda uri: re.search(r"/\.\.(/|$)", uri) is None,
    ),
]
# The other URIs of a spec obey the same rules in one, because rules cannot be shared in a CRD and its size is bounded.
_FORMS = "|".join(f"{scheme}://{rest}" for scheme, rest in _REST.items())
DataUri = Annotated[
    str,
    Field(max_length=2048),
    Rule(
        rf"self.matches(r'^({_FORMS})$') && !self.matches(r'\s|^[a-z]+://[^/]*@|/\.\.(/|$)')",
        "the URI must have the form of one in spec.model.uri, without spaces, password and /../; for example pvc://data/golden.npz",
        lambda uri: re.fullmatch(_FORMS, uri) is not None and re.search(r"\s|^[a-z]+://[^/]*@|/\.\.(/|$)", uri) is None,
    ),
]
RelativePath = Annotated[
    str,
    Field(min_length=1, max_length=512),
    Rule(
        r"!self.startsWith('/') && !self.matches(r'(^|/)\.\.(/|$)')",
        "this must be a path inside the model folder, without a leading / and without ..; for example weights.safetensors",
        lambda path: not path.startswith("/") and ".." not in path.split("/"),
    ),
]
Dimension = Annotated[
    int | str,
    WithJsonSchema({"x-kubernetes-int-or-string": True, "maxLength": 63}),
    Rule(
        f"type(self) == int ? self > 0 : self.matches(r'^{_IDENTIFIER}$')",
        "a dimension is a positive integer or, when it varies, a name",
        lambda value: value > 0 if isinstance(value, int) else re.fullmatch(_IDENTIFIER, value) is not None,
    ),
]


def _is_converted(model: ModelSource) -> bool:
    return model.format in {"ONNX", "TorchScript", "ExportedProgram"}


def _has_one_digest(model: ModelSource) -> bool:
    return model.digest is None or "@sha256:" not in model.uri or model.uri.endswith(model.digest)


class ModelSource(ApiModel):
    """Where the model comes from and how its module is built."""

    rules = (
        Rule(
            "!has(self.format) || !(has(self.entrypoint) || has(self.arguments)) || self.format in ['PyTorch', 'TorchServe']",
            "entrypoint and arguments are for PyTorch models; remove them, or set format to PyTorch",
            lambda model: not (_is_converted(model) and (model.entrypoint is not None or model.arguments is not None)),
        ),
        Rule(
            "!has(self.digest) || !self.uri.contains('@sha256:') || self.uri.endsWith(self.digest)",
            "digest differs from the digest in the URI; remove one of them",
            _has_one_digest,
        ),
        Rule(
            "!has(self.credentialsSecretRef) || !(self.uri.startsWith('configmap://') || self.uri.startsWith('pvc://'))",
            "a ConfigMap or a PersistentVolumeClaim is read without credentials; remove credentialsSecretRef",
            lambda model: model.credentials_secret_ref is None or not model.uri.startswith(("configmap://", "pvc://")),
        ),
    )

    uri: Uri = Field(
        description="The model folder; never changed. oci://host[:port]/repository[:tag|@digest] (made by `slipway push`), "
        "s3://BUCKET/path, gs://BUCKET/path, az://CONTAINER/path, hf://OWNER/NAME[@revision][/folder], https:// or http:// (a .tar, "
        ".tar.gz, .tgz or .zip of the folder, or one .onnx, .pt, .pt2 or .mar file), configmap://NAME "
        "or pvc://CLAIM/path. Example: oci://slipway-registry.slipway-system:5000/models/digits:v1."
    )
    digest: Digest | None = Field(
        default=None,
        description="Pins the source to the digest that status shows for it. Example: sha256:9f86…. Default: what the URI names now.",
    )
    format: ModelFormat | None = Field(
        default=None,
        description="What the folder holds: PyTorch, ONNX, TorchScript (of torch.jit.save), ExportedProgram (.pt2) or TorchServe (.mar). "
        "Default: format in model.yaml, else by the files.",
    )
    entrypoint: (
        Annotated[
            str,
            Field(max_length=256),
            matches(
                f"{_DOTTED}:{_DOTTED}",
                "an entrypoint is module:callable, with the module in the model folder; for example model:build",
            ),
        ]
        | None
    ) = Field(
        default=None,
        description="PyTorch only: module:callable, relative to the folder, that returns the torch.nn.Module. Example: model:build. "
        "Default: entrypoint in model.yaml.",
    )
    arguments: dict[str, Any] | None = Field(
        default=None,
        description="PyTorch only: keyword arguments of the entrypoint, any JSON object. Example: {classes: 10}. Default: arguments "
        "in model.yaml.",
    )
    weights: RelativePath | None = Field(
        default=None,
        description="File of the weights in the folder: .safetensors, or .pt read with weights_only=True; else the model's file. "
        "Example: weights.safetensors. Default: weights in model.yaml.",
    )
    credentials_secret_ref: SecretReference | None = Field(
        default=None,
        description="A Secret with the source's credentials (docs/sources.md); only the container that downloads gets it. Default: none.",
    )


class TensorSpec(ApiModel):
    """One tensor of the model."""

    name: Annotated[
        str,
        Field(max_length=128),
        matches(r"[A-Za-z_][A-Za-z0-9_./-]*", "a tensor's name has letters, digits, _./-, a letter or _ first"),
    ] = Field(description="Its name in requests and answers. Example: image.")
    dtype: DType = Field(description="Type of the elements. Example: float32.")
    shape: Annotated[tuple[Dimension, ...], Field(max_length=16, json_schema_extra=ATOMIC)] = Field(
        description="Integers, or names where the size varies; the first name is the batch. [] is a scalar. Example: [batch, 1, 8, 8]."
    )


class InputSpec(TensorSpec):
    """One input of the model."""

    pad: int | None = Field(
        default=None,
        description="Fills up shorter inputs, so that different lengths share a batch. Default: they do not. Example: 0.",
    )


_LIST = Field(min_length=1, max_length=32, json_schema_extra=LIST_MAP_BY_NAME)
Inputs = Annotated[tuple[InputSpec, ...], _LIST, AfterValidator(unique_names)]
Outputs = Annotated[tuple[TensorSpec, ...], _LIST, AfterValidator(unique_names)]


def _are_names_unique(signature: Signature) -> bool:
    return max(Counter(tensor.name for tensor in signature.inputs + signature.outputs).values()) == 1


def _can_be_padded(signature: Signature) -> bool:
    return all(tensor.pad is None or any(isinstance(dim, str) for dim in tensor.shape[1:]) for tensor in signature.inputs)


class Signature(ApiModel):
    """The inputs and outputs of the model."""

    rules = (
        Rule(
            "self.inputs.all(i, !self.outputs.exists(o, o.name == i.name))",
            "an input and an output have the same name; rename one",
            _are_names_unique,
        ),
        Rule(
            "self.inputs.all(i, !has(i.pad) || i.shape.exists(d, d != i.shape[0] && type(d) == string))",
            "pad needs a named dimension after the first, the one that varies",
            _can_be_padded,
        ),
    )

    inputs: Inputs = Field(
        description="In the order of the arguments of forward(). Example: [{name: image, dtype: float32, shape: [batch, 1, 8, 8]}]."
    )
    outputs: Outputs = Field(
        description="In the order that forward() returns them. Example: [{name: logits, dtype: float32, shape: [batch, 10]}]."
    )


class Candidate(ApiModel):
    """One form that the model may be served in."""

    rules = (
        Rule(
            "!has(self.precision) || self.precision == 'Float32' || (self.target == 'ONNX' && self.precision != 'BFloat16') || "
            "self.target in ['ExportedProgram', 'AOTInductor'] || "
            "(self.target in ['TorchScript', 'TorchTensorRT'] && self.precision in ['Float16', 'BFloat16'])",
            "this target is not built in this precision; ONNX: Float32, Float16, Int8Dynamic, Int8Static; ExportedProgram and AOTInductor: "
            "all five; TorchScript and TorchTensorRT: Float32, Float16, BFloat16; None: Float32",
            lambda candidate: candidate.precision in PRECISIONS[candidate.target],
        ),
        Rule(
            "!has(self.method) || self.target == 'TorchScript'",
            "method is how TorchScript is made; remove it, or set target to TorchScript",
            lambda candidate: candidate.method is None or candidate.target == "TorchScript",
        ),
    )

    target: Target = Field(
        description="None serves the source as it is. An ONNX source has None and ONNX, a TorchScript source TorchScript too."
    )
    precision: Precision = Field(
        default="Float32",
        description="Of weights and computation. Default: Float32.",
    )
    method: Literal["Trace", "Script"] | None = Field(
        default=None, description="TorchScript only: Trace, or Script where control flow depends on values. Default: Trace."
    )


Candidates = Annotated[
    tuple[Candidate, ...],
    Field(min_length=1, max_length=8, json_schema_extra=ATOMIC),
    Rule(
        "self.all(c, self.exists_one(d, d == c))",
        "two candidates are the same; remove one of them",
        lambda candidates: len(set(candidates)) == len(candidates),
    ),
]


class ValidationData(ApiModel):
    """Golden data of one's own."""

    uri: DataUri = Field(
        description="An .npz file, or a folder with one: arrays named like the inputs, and `labels` (int64) for the accuracy. Forms as in "
        "model.uri. Example: pvc://data/golden.npz."
    )


class Validation(ApiModel):
    """The parity gate: a candidate is served only if it answers like the source model in eager Float32."""

    data: ValidationData | None = Field(
        default=None,
        description="Inputs, and labels, to compare on. Default: validation.data in model.yaml, else seeded random inputs.",
    )
    samples: int = Field(default=64, ge=1, le=10000, description="How many samples are compared. Example: 200. Default: 64.")
    max_absolute_error: DecimalString | None = Field(
        default=None,
        description='The largest difference of any output value that passes. Example: "1e-4". Default: "1e-3"; 1 % of the largest output '
        "for Float16, 5 % for BFloat16, 10 % for Int8, with a cosine of 0.99.",
    )
    min_top1_agreement_percent: Percent = Field(
        default=99,
        description="In how many of 100 samples it must find the source's class; classifiers only. Example: 100. Default: 99.",
    )
    min_accuracy_percent: Percent | None = Field(
        default=None,
        description="In how many of 100 samples it must be right; needs labels. Example: 95. Default: not checked.",
    )


class Calibration(ApiModel):
    """Inputs that Int8Static takes the ranges of activations from."""

    uri: DataUri = Field(description="An .npz file, or a folder with one, of inputs. Example: https://host/calibration.npz.")
    samples: int = Field(default=200, ge=1, le=10000, description="How many samples are used. Default: 200.")
    method: Literal["MinMax", "Entropy", "Percentile"] = Field(
        default="MinMax", description="How outliers are clipped; MinMax: not at all. Default: MinMax."
    )


def _has_calibration(conversion: Conversion) -> bool:
    wanted = conversion.candidates or ()
    return conversion.calibration is not None or all(candidate.precision != "Int8Static" for candidate in wanted)


class Conversion(ApiModel):
    """How the model is converted and what the result must satisfy."""

    rules = (
        Rule(
            "has(self.calibration) || !has(self.candidates) || self.candidates.all(c, !has(c.precision) || c.precision != 'Int8Static')",
            "Int8Static needs conversion.calibration.uri, an .npz of inputs; or take Int8Dynamic, which needs none",
            _has_calibration,
        ),
    )

    candidates: Candidates | None = Field(
        default=None,
        description="Forms to try, the preferred first: without objective, the first that passes is served. "
        "Example: [{target: ONNX}, {target: AOTInductor}]. Default: [{target: ONNX}] for PyTorch, else [{target: None}].",
    )
    objective: Literal["Latency", "Throughput", "Size"] | None = Field(
        default=None,
        description="Picks among those that pass: Latency (p50 of one sample), Throughput or Size; near ties go to the simpler "
        "format. Default: the first.",
    )
    calibration: Calibration | None = Field(default=None, description="Data for Int8Static. Default: none.")
    validation: Validation | None = Field(
        default=None, description="The parity gate. Default: 64 seeded random samples, maxAbsoluteError 1e-3."
    )
    timeout: Duration = Field(
        default="10m",
        description="Limit for convert, and again for validate. A duration, for example 1h30m. Default: 10m.",
    )
    resources: ResourceRequirements | None = Field(
        default=None, description="Resources of the containers convert and validate. Example: {limits: {memory: 4Gi}}. Default: none."
    )


def has_supported_targets(spec: Any) -> bool:
    """Whether the source, if its format is named, can become all that is asked for."""
    candidates = (spec.conversion and spec.conversion.candidates) or ()
    known = TARGETS.get(spec.model.format)
    return known is None or all(candidate.target in known for candidate in candidates)


SOURCE_TARGETS = Rule(
    "!has(self.model.format) || !(self.model.format in ['ONNX', 'TorchScript']) || !has(self.conversion) || "
    "!has(self.conversion.candidates) || self.conversion.candidates.all(c, c.target in ['None', 'ONNX'] || c.target == self.model.format)",
    "the source has no such target; an ONNX source: None, ONNX; TorchScript: None, ONNX, TorchScript; ExportedProgram and PyTorch: all",
    has_supported_targets,
)
