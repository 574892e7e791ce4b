"""The tables: what the API server must refuse, with the words that it must use, and what it must accept."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]
OCI = "oci://registry:5000/models/digits:v1"
TENSOR = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}
OUTPUT = {"name": "logits", "dtype": "float32", "shape": ["batch", 10]}
IMAGE = "ghcr.io/slipway/slipway-runtime-torch:0.1.0"


def resource(kind: str, spec: Spec, name: str = "digits") -> Spec:
    """A manifest."""
    return {"apiVersion": "slipway.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def deployment(name: str = "digits", **parts: Any) -> Spec:
    """A ModelDeployment whose model is a good one, unless `parts` says otherwise."""
    return resource("ModelDeployment", {"model": {"uri": OCI}} | parts, name)


def model(**fields: Any) -> Spec:
    """A ModelDeployment with these fields of the model."""
    return deployment(model={"uri": OCI} | fields)


def tensors(*inputs: Spec, outputs: tuple[Spec, ...] = (OUTPUT,)) -> Spec:
    """A ModelDeployment with this signature."""
    return deployment(signature={"inputs": list(inputs), "outputs": list(outputs)})


def candidate(**fields: Any) -> Spec:
    """A ModelDeployment with this candidate, and calibration."""
    return deployment(conversion={"candidates": [fields], "calibration": {"uri": "https://host/calibration.npz"}})


def validation(**fields: Any) -> Spec:
    """A ModelDeployment with this parity gate."""
    return deployment(conversion={"validation": fields})


def serving(**fields: Any) -> Spec:
    """A ModelDeployment served like this."""
    return deployment(serving=fields)


def accelerator(**fields: Any) -> Spec:
    """A ModelDeployment whose pods get these devices."""
    return deployment(accelerator=fields)


def runtime(**fields: Any) -> Spec:
    """A ServingRuntime."""
    return resource("ServingRuntime", {"image": IMAGE, "formats": [{"name": "ONNX"}]} | fields)


def artifact(**fields: Any) -> Spec:
    """A ModelArtifact."""
    return resource("ModelArtifact", {"model": {"uri": OCI}, "converterImage": IMAGE} | fields, "mart-0a1b2c3d4e5f")


NAME = (
    "the name must be a DNS label, because a Service gets it: at most 63 lower-case letters, digits and '-', "
    "starting with a letter and not ending with '-'"
)
SCHEME = (
    "the URI must start with oci://, s3://, gs://, az://, hf://, https://, http://, configmap:// or pvc://; for example "
    "oci://registry:5000/models/digits:v1"
)
HUB = "an hf URI is hf://OWNER/NAME[@REVISION][/FOLDER]; for example hf://acme/digits@v1"
BUCKET = "an s3, gs or az URI is s3://BUCKET/PATH, a folder or one file; endpoint and account go into the Secret"
REPOSITORY = "an oci URI is oci://host[:port]/repository[:tag][@sha256:…], the repository in lower case"
TEN, TWENTY, ALL = ({"weight": weight, "duration": "1m"} for weight in (10, 20, 100))
ROLLOUTS = [
    ("a canary without steps", {}, "a Canary needs steps; for example"),
    ("a canary with no step", {"strategy": "Canary", "steps": []}, "a Canary needs steps; for example"),
    ("weights that fall", {"steps": [TWENTY, TEN]}, "the weights of the steps must rise; for example"),
    ("the same weight twice", {"steps": [TEN, TEN]}, "the weights of the steps must rise; for example"),
    ("a weight of 0", {"steps": [{"weight": 0}]}, "spec.rollout.steps[0].weight: Invalid value"),
    ("a weight above 100", {"steps": [{"weight": 101}]}, "spec.rollout.steps[0].weight: Invalid value"),
    ("a duration without a unit", {"steps": [{"weight": 10, "duration": "60"}]}, "a duration is from 1s to 24h"),
    ("BlueGreen with a share", {"strategy": "BlueGreen", "steps": [TEN]}, "BlueGreen has one step at most, of weight 100"),
    ("Recreate with steps", {"strategy": "Recreate", "steps": [ALL]}, "Recreate has no steps"),
    ("an analysis without steps", {"strategy": "BlueGreen", "analysis": {}}, "analysis and shadow need steps"),
    ("a metric without a limit", {"steps": [TEN], "analysis": {"metrics": [{"name": "error-rate"}]}}, "set a limit"),
    ("an unknown strategy", {"strategy": "Shadow"}, "Unsupported value"),
    ("an unknown onFailure", {"steps": [TEN], "onFailure": "Ignore"}, "Unsupported value"),
]
DATA = "the URI must have the form of one in spec.model.uri, without spaces, password and /../; for example pvc://data/golden.npz"
DIGEST = "a digest is sha256: followed by 64 lower-case hexadecimal digits; `slipway push` prints it"
ENTRYPOINT = "an entrypoint is module:callable, with the module in the model folder; for example model:build"
PYTORCH_ONLY = "entrypoint and arguments are for PyTorch models; remove them, or set format to PyTorch"
DIMENSION = "a dimension is a positive integer or, when it varies, a name"
INSIDE = "this must be a path inside the model folder, without a leading / and without ..; for example weights.safetensors"
TARGETS = (
    "the source has no such target; an ONNX source: None, ONNX; TorchScript: None, ONNX, TorchScript; ExportedProgram and PyTorch: all"
)
PRECISIONS = "this target is not built in this precision; ONNX: Float32, Float16, Int8Dynamic, Int8Static; ExportedProgram and AOTInductor"
DECIMAL = 'this must be a decimal number, not negative, written as a string; for example "1e-3" or "0.001"'
DURATION = "a duration is from 1s to 24h; for example 10m, 90s or 1h30m"
QUANTITY = "this must be a quantity, not negative; for example 500m, 2 or 4Gi"
SECRET = "a name has lower-case letters, digits, '-' and '.'; for example my-secret"
IMAGE_RULE = "an image is host/repository:tag or host/repository@sha256:…, without a scheme and without spaces"
PATH = "an HTTP path starts with / and has no query; for example /v2/health/ready"
ENV_NAME = "the name of a variable has letters, digits, '_', '-' and '.', and does not start with a digit"
ENV_FROM = {"secretKeyRef": {"name": "a", "key": "b"}, "fieldRef": {"fieldPath": "metadata.name"}}

# (what is wrong, manifest, the words of the answer)
INVALID: list[tuple[str, Spec, str]] = [
    (
        "more at least than at most",
        deployment(autoscaling={"minReplicas": 3, "maxReplicas": 2, "target": 8}),
        "minReplicas must not exceed",
    ),
    (
        "autoscaling to nothing for ever",
        deployment(autoscaling={"minReplicas": 0, "maxReplicas": 2, "target": 8}),
        "minReplicas 0 needs activationQuery",
    ),
    ("autoscaling without a bound", deployment(autoscaling={"target": 8}), "spec.autoscaling.maxReplicas: Required value"),
    ("autoscaling by memory", deployment(autoscaling={"maxReplicas": 2, "target": 8, "metric": "Memory"}), "Unsupported value"),
    *[(name, deployment(rollout=spec), words) for name, spec, words in ROLLOUTS],
    ("hostnames without a gateway", deployment(routing={"hostnames": ["a.example.com"]}), "hostnames need a gateway"),
    (
        "a hostname for both",
        deployment(routing={"gateway": {"name": "g"}, "hostnames": ["a.b"], "grpcHostnames": ["a.b"]}),
        "a hostname is either for HTTP or for gRPC",
    ),
    ("gRPC hostnames without a gateway", deployment(routing={"grpcHostnames": ["a.example.com"]}), "hostnames need a gateway"),
    ("an experiment for nobody", deployment(routing={"experiments": [{"name": "beta"}]}), "set headers or cookies"),
    (
        "an experiment with a header that is none",
        deployment(routing={"experiments": [{"name": "beta", "headers": [{"name": "x beta", "value": "1"}]}]}),
        "should match",
    ),
    (
        "a shadow of more than all",
        deployment(rollout={"steps": [{"weight": 10}], "shadow": {"percent": 101}}),
        "should be less than or equal",
    ),
    ("a URL as hostname", deployment(routing={"gateway": {"name": "g"}, "hostnames": ["http://a"]}), "a hostname has lower-case letters"),
    ("accelerator without a name", accelerator(count=1), "exactly one of resourceName"),
    (
        "accelerator with two names",
        accelerator(resourceName="nvidia.com/gpu", deviceClassName="gpu.nvidia.com"),
        "exactly one of resourceName",
    ),
    ("selectors of a device plugin", accelerator(resourceName="nvidia.com/gpu", selectors=["true"]), "selectors need deviceClassName"),
    (
        "product of an unknown vendor",
        accelerator(resourceName="example.com/npu", product="X1"),
        "product needs a resourceName of nvidia.com",
    ),
    (
        "product with DRA",
        accelerator(deviceClassName="gpu.nvidia.com", product="NVIDIA-H200"),
        "product needs a resourceName of nvidia.com",
    ),
    ("resource without a domain", accelerator(resourceName="gpu"), "a resource name is domain/name"),
    (
        "product that is no label",
        accelerator(resourceName="nvidia.com/gpu", product="NVIDIA H200"),
        "the product is the value of the node's",
    ),
    ("no devices", accelerator(resourceName="nvidia.com/gpu", count=0), "should be greater than or equal to 1"),
    ("no selectors", accelerator(deviceClassName="gpu.nvidia.com", selectors=[]), "should have at least 1 items"),
    ("name too long", deployment("d" * 64), NAME),
    ("name starts with a digit", deployment("1digits"), NAME),
    ("name with a dot", deployment("digits.v1"), NAME),
    ("no spec", {"apiVersion": "slipway.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "digits"}}, "spec: Required value"),
    ("no URI", deployment(model={}), "spec.model.uri: Required value"),
    ("unknown scheme", model(uri="ftp://host/digits"), SCHEME),
    ("no scheme", model(uri="models/digits"), SCHEME),
    ("URI too long", model(uri="https://h/" + "a" * 2048), "spec.model.uri: Too long: may not be more than 2048 bytes"),
    ("spaces in the URI", model(uri="https://host/my digits.tar"), "the URI must not contain spaces"),
    (
        "password in the URI",
        model(uri="https://me:secret@host/digits.tar"),
        "the URI must not carry a user or a password; put them into a Secret and name it in credentialsSecretRef",
    ),
    ("oci without repository", model(uri="oci://registry:5000"), REPOSITORY),
    ("oci in upper case", model(uri="oci://registry:5000/Models/digits"), REPOSITORY),
    (
        "http without file",
        model(uri="https://host/"),
        "an http URI names a host and a file; for example https://models.example.com/digits.tar.gz",
    ),
    ("s3 without path", model(uri="s3://models"), BUCKET),
    ("s3 with an endpoint", model(uri="s3://models/digits?endpoint=https://minio:9000"), BUCKET),
    ("s3 bucket in upper case", model(uri="s3://Models/digits"), BUCKET),
    ("gs without bucket", model(uri="gs:///digits"), BUCKET),
    ("az without path", model(uri="az://models/"), BUCKET),
    ("hf without owner", model(uri="hf://digits"), HUB),
    ("hf without revision", model(uri="hf://acme/digits@"), HUB),
    ("hf that climbs", model(uri="hf://acme/digits/../x"), "the URI must not contain /../; write the path without it"),
    (
        "configmap with a path",
        model(uri="configmap://digits/model"),
        "after configmap:// comes the name of a ConfigMap of this namespace and nothing else; for example configmap://digits",
    ),
    (
        "pvc without claim",
        model(uri="pvc:///digits"),
        "after pvc:// come the name of a PersistentVolumeClaim of this namespace and a path in it; for example pvc://models/digits",
    ),
    ("pvc that climbs", model(uri="pvc://models/../digits"), "the URI must not contain /../; write the path without it"),
    ("short digest", model(digest="sha256:abc"), DIGEST),
    ("digest in upper case", model(digest="sha256:" + "A" * 64), DIGEST),
    (
        "two digests",
        model(uri=f"oci://h/m@sha256:{'a' * 64}", digest=f"sha256:{'b' * 64}"),
        "digest differs from the digest in the URI; remove one of them",
    ),
    (
        "unknown format",
        model(format="Keras"),
        'spec.model.format: Unsupported value: "Keras": supported values: "PyTorch", "ONNX", "TorchServe"',
    ),
    ("entrypoint without callable", model(entrypoint="model"), ENTRYPOINT),
    ("entrypoint that is a file", model(entrypoint="model.py:build()"), ENTRYPOINT),
    ("entrypoint of ONNX", model(format="ONNX", entrypoint="model:build"), PYTORCH_ONLY),
    ("arguments of ONNX", model(format="ONNX", arguments={"classes": 10}), PYTORCH_ONLY),
    ("absolute weights", model(weights="/etc/passwd"), INSIDE),
    ("weights outside", model(weights="a/../../b.pt"), INSIDE),
    ("bad Secret name", model(credentialsSecretRef={"name": "My_Secret"}), SECRET),
    (
        "credentials for a ConfigMap",
        model(uri="configmap://digits", credentialsSecretRef={"name": "a"}),
        "a ConfigMap or a PersistentVolumeClaim is read without credentials; remove credentialsSecretRef",
    ),
    ("no inputs", tensors(), "spec.signature.inputs: Invalid value: 0: spec.signature.inputs in body should have at least 1 items"),
    ("two inputs of one name", tensors(TENSOR, TENSOR), 'spec.signature.inputs[1]: Duplicate value: {"name":"image"}'),
    (
        "input and output of one name",
        tensors(TENSOR, outputs=(TENSOR,)),
        "an input and an output have the same name; rename one",
    ),
    ("padding of what does not vary", tensors(TENSOR | {"shape": ["batch", 8], "pad": 0}), "pad needs a named dimension after the first"),
    ("padding of an output", deployment(signature={"inputs": [TENSOR], "outputs": [TENSOR | {"name": "y", "pad": 0}]}), "unknown field"),
    ("zero dimension", tensors(TENSOR | {"shape": [0]}), DIMENSION),
    ("negative dimension", tensors(TENSOR | {"shape": [-1, 8]}), DIMENSION),
    ("number as a name", tensors(TENSOR | {"shape": ["8"]}), DIMENSION),
    (
        "fraction as a dimension",
        tensors(TENSOR | {"shape": [1.5]}),
        "spec.signature.inputs[0].shape[0] in body must be of type integer,string",
    ),
    ("unknown dtype", tensors(TENSOR | {"dtype": "float"}), 'spec.signature.inputs[0].dtype: Unsupported value: "float"'),
    (
        "tensor name with a space",
        tensors(TENSOR | {"name": "my image"}),
        "a tensor's name has letters, digits, _./-, a letter or _ first",
    ),
    ("unknown target", deployment(conversion={"candidates": [{"target": "TensorRT"}]}), 'Unsupported value: "TensorRT"'),
    ("unknown precision", deployment(conversion={"candidates": [{"target": "ONNX", "precision": "Int8"}]}), 'Unsupported value: "Int8"'),
    (
        "the same candidate twice",
        deployment(conversion={"candidates": [{"target": "ONNX"}, {"target": "ONNX", "precision": "Float32"}]}),
        "two candidates are the same; remove one of them",
    ),
    *[
        (
            f"{target} in {precision}",
            candidate(target=target, precision=precision),
            PRECISIONS,
        )
        for target, precision in (
            ("ONNX", "BFloat16"),
            ("TorchScript", "Int8Dynamic"),
            ("TorchScript", "Int8Static"),
            ("TorchTensorRT", "Int8Static"),
            ("None", "Float16"),
        )
    ],
    (
        "a method of ONNX",
        candidate(target="ONNX", method="Trace"),
        "method is how TorchScript is made",
    ),
    (
        "Int8Static without calibration",
        deployment(conversion={"candidates": [{"target": "ONNX"}, {"target": "ONNX", "precision": "Int8Static"}]}),
        "Int8Static needs conversion.calibration.uri, an .npz of inputs; or take Int8Dynamic, which needs none",
    ),
    (
        "calibration from nowhere",
        deployment(conversion={"calibration": {"uri": "ftp://host/a.npz"}}),
        "the URI must have the form of one in spec.model.uri",
    ),
    (
        "calibration method of nobody",
        deployment(conversion={"calibration": {"uri": "https://host/a.npz", "method": "Guess"}}),
        'Unsupported value: "Guess"',
    ),
    ("objective", deployment(conversion={"objective": "Beauty"}), 'spec.conversion.objective: Unsupported value: "Beauty"'),
    ("no candidate", deployment(conversion={"candidates": []}), "spec.conversion.candidates in body should have at least 1 items"),
    (
        "ONNX to TorchScript",
        deployment(model={"uri": OCI, "format": "ONNX"}, conversion={"candidates": [{"target": "TorchScript"}]}),
        TARGETS,
    ),
    (
        "TorchScript to AOTInductor",
        deployment(model={"uri": OCI, "format": "TorchScript"}, conversion={"candidates": [{"target": "AOTInductor"}]}),
        TARGETS,
    ),
    (
        "an entrypoint in an exported program",
        deployment(model={"uri": OCI, "format": "ExportedProgram", "entrypoint": "m:build"}),
        "entrypoint and arguments are for PyTorch models",
    ),
    ("no samples", validation(samples=0), "spec.conversion.validation.samples in body should be greater than or equal to 1"),
    ("error that is no number", validation(maxAbsoluteError="small"), DECIMAL),
    ("negative error", validation(maxAbsoluteError="-1e-3"), DECIMAL),
    ("error as a float", validation(maxAbsoluteError=0.001), "spec.conversion.validation.maxAbsoluteError in body must be of type string"),
    ("101 percent", validation(minTop1AgreementPercent=101), "minTop1AgreementPercent in body should be less than or equal to 100"),
    ("-1 percent", validation(minAccuracyPercent=-1), "minAccuracyPercent in body should be greater than or equal to 0"),
    ("duration without unit", deployment(conversion={"timeout": "600"}), DURATION),
    ("no time at all", deployment(conversion={"timeout": "0s"}), DURATION),
    ("two days", deployment(conversion={"timeout": "48h"}), DURATION),
    ("duration without anything", deployment(conversion={"timeout": "hm"}), DURATION),
    ("golden data of an unknown scheme", validation(data={"uri": "ftp://host/golden.npz"}), DATA),
    ("golden data in upper case", validation(data={"uri": "oci://h/Golden"}), DATA),
    ("golden data with a space", validation(data={"uri": "https://host/my golden.npz"}), DATA),
    ("golden data with a password", validation(data={"uri": "https://me:secret@host/golden.npz"}), DATA),
    ("golden data that climb", validation(data={"uri": "pvc://data/../golden.npz"}), DATA),
    ("golden data without a claim", validation(data={"uri": "pvc:///golden.npz"}), DATA),
    ("name that ends in a hyphen", serving(runtime="mine-"), SECRET),
    ("name with an empty part", serving(serviceAccountName="a..b"), SECRET),
    ("name of nothing", serving(priorityClassName=""), SECRET),
    ("bad quantity", deployment(conversion={"resources": {"limits": {"memory": "4 GB"}}}), QUANTITY),
    ("negative quantity", serving(resources={"requests": {"cpu": "-1"}}), QUANTITY),
    (
        "request over limit",
        serving(resources={"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}),
        "a request is larger than its limit; raise the limit or lower the request",
    ),
    ("negative replicas", serving(replicas=-1), "spec.serving.replicas in body should be greater than or equal to 0"),
    ("bad runtime name", serving(runtime="My Runtime"), SECRET),
    ("environment variable twice", serving(env=[{"name": "A"}, {"name": "A"}]), 'spec.serving.env[1]: Duplicate value: {"name":"A"}'),
    ("environment variable 1A", serving(env=[{"name": "1A"}]), ENV_NAME),
    (
        "two values",
        serving(env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
        "an environment variable has either value or valueFrom; remove one of them",
    ),
    (
        "two sources",
        serving(env=[{"name": "A", "valueFrom": ENV_FROM}]),
        "valueFrom takes exactly one of secretKeyRef, configMapKeyRef and fieldRef",
    ),
    ("unknown effect", serving(tolerations=[{"effect": "Never"}]), 'spec.serving.tolerations[0].effect: Unsupported value: "Never"'),
    ("negative history", deployment(revisionHistoryLimit=-1), "spec.revisionHistoryLimit in body should be greater than or equal to 0"),
    ("unknown field", deployment(scaling={}), 'unknown field "spec.scaling"'),
    ("unknown nested field", serving(replica=2), 'unknown field "spec.serving.replica"'),
    ("a Secret of no possible name", artifact(signingSecret="The_Keys"), "a name has lower-case letters, digits"),
    ("artifact without image", resource("ModelArtifact", {"model": {"uri": OCI}}), "spec.converterImage: Required value"),
    (
        "artifact from ONNX to AOTInductor",
        artifact(model={"uri": OCI, "format": "ONNX"}, conversion={"candidates": [{"target": "AOTInductor"}]}),
        TARGETS,
    ),
    ("image with a scheme", runtime(image="https://ghcr.io/slipway"), IMAGE_RULE),
    ("image with a space", runtime(image="slipway runtime"), IMAGE_RULE),
    ("format twice", runtime(formats=[{"name": "ONNX"}, {"name": "ONNX"}]), 'spec.formats[1]: Duplicate value: {"name":"ONNX"}'),
    ("negative priority", runtime(formats=[{"name": "ONNX", "priority": -1}]), "spec.formats[0].priority in body should be greater than"),
    ("no format", runtime(formats=[]), "spec.formats in body should have at least 1 items"),
    ("unknown runtime format", runtime(formats=[{"name": "Keras"}]), 'spec.formats[0].name: Unsupported value: "Keras"'),
    ("port 0", runtime(port=0), "spec.port in body should be greater than or equal to 1"),
    ("probe with a query", runtime(probes={"readinessPath": "ready?full"}), PATH),
    ("metrics without slash", runtime(metrics={"path": "metrics"}), PATH),
]

FULL_SERVING = {
    "runtime": "slipway",
    "replicas": 0,
    "resources": {"requests": {"cpu": 1, "memory": "512Mi"}, "limits": {"cpu": "1500m", "memory": "1Gi", "nvidia.com/gpu": 1}},
    "labels": ["crane", "crane"],
    "env": [{"name": "A", "value": ""}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": True}}}],
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 3}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "runtimeClassName": "gvisor",
    "serviceAccountName": "digits",
    "priorityClassName": "high",
}
FULL_CONVERSION = {
    "candidates": [
        {"target": "ONNX", "precision": "Int8Static"},
        {"target": "TorchScript"},
        {"target": "TorchScript", "method": "Script"},
        {"target": "AOTInductor", "precision": "BFloat16"},
        {"target": "None"},
    ],
    "objective": "Throughput",
    "calibration": {"uri": f"oci://registry:5000/data/digits@sha256:{'b' * 64}", "samples": 50, "method": "Entropy"},
    "validation": {"data": {"uri": "https://host/golden.npz"}, "samples": 200, "maxAbsoluteError": "0.0005", "minAccuracyPercent": 95},
    "timeout": "1h30m",
    "resources": {"limits": {"memory": "4Gi"}},
}
FULL_MODEL = {
    "uri": f"oci://registry:5000/models/digits@sha256:{'a' * 64}",
    "digest": f"sha256:{'a' * 64}",
    "format": "PyTorch",
    "entrypoint": "pkg.model:Net.build",
    "arguments": {"classes": 10, "nested": {"list": [1, {"deep": None}]}},
    "weights": "weights/best..safetensors",
    "credentialsSecretRef": {"name": "models-read"},
}
VALID: list[tuple[str, Spec]] = [
    ("an input that may be padded", tensors(TENSOR | {"shape": ["batch", "words"], "pad": 0})),
    (
        "autoscaling to nothing",
        deployment(autoscaling={"minReplicas": 0, "maxReplicas": 2, "target": 8, "activationQuery": "sum(rate(asked_total[2m]))"}),
    ),
    ("autoscaling", deployment(autoscaling={"minReplicas": 2, "maxReplicas": 2, "metric": "GPUUtilization", "target": 70})),
    ("a GPU by its product", accelerator(resourceName="nvidia.com/gpu", count=2, product="NVIDIA-H200")),
    ("a MIG slice", accelerator(resourceName="nvidia.com/mig-1g.10gb", count=1)),
    ("an Intel GPU by its product", accelerator(resourceName="gpu.intel.com/xe", count=1, product="Max_1100")),
    ("a device of any vendor", accelerator(resourceName="habana.ai/gaudi", count=1)),
    ("a claimed device", accelerator(deviceClassName="gpu.nvidia.com", count=1, selectors=["device.driver == 'gpu.nvidia.com'"])),
    ("the shortest", deployment()),
    (
        "TorchScript to ONNX",
        deployment(model={"uri": OCI, "format": "TorchScript"}, conversion={"candidates": [{"target": "ONNX"}, {"target": "None"}]}),
    ),
    (
        "an exported program to AOTInductor",
        deployment(model={"uri": OCI, "format": "ExportedProgram"}, conversion={"candidates": [{"target": "AOTInductor"}]}),
    ),
    ("a name of 63 characters", deployment("d" * 63)),
    ("every field", deployment(model=FULL_MODEL, conversion=FULL_CONVERSION, serving=FULL_SERVING, revisionHistoryLimit=0)),
    ("a canary, and a step that waits", deployment(rollout={"steps": [TEN, {"weight": 50}, ALL], "onFailure": "Pause"}, paused=True)),
    ("blue-green", deployment(rollout={"strategy": "BlueGreen", "steps": [ALL]})),
    ("blue-green at once", deployment(rollout={"strategy": "BlueGreen"})),
    ("recreate", deployment(rollout={"strategy": "Recreate"})),
    (
        "a gateway",
        deployment(routing={"gateway": {"name": "public", "namespace": "gateways"}, "hostnames": ["*.example.com", "a.example.com"]}),
    ),
    (
        "experiments and a shadow",
        deployment(
            routing={
                "experiments": [
                    {"name": "beta", "headers": [{"name": "x-beta", "value": "true"}], "cookies": [{"name": "beta", "value": "1"}]},
                    {"name": "control", "cookies": [{"name": "beta", "value": "0"}], "revision": "Stable"},
                ]
            },
            rollout={"steps": [{"weight": 10}], "shadow": {}},
        ),
    ),
    ("a signature", tensors(TENSOR, TENSOR | {"name": "mask", "dtype": "bool", "shape": []})),
    ("https", model(uri="https://host:8443/a/b.tar.gz?version=3")),
    ("s3", model(uri="s3://my-models.v1/digits/v1/", credentialsSecretRef={"name": "s3-read"})),
    ("s3, one file", model(uri="s3://models/digits.tar.gz")),
    ("gs", model(uri="gs://my_models/digits")),
    ("az", model(uri="az://models/digits/v1")),
    ("hf", model(uri="hf://acme/Digits-v1.0")),
    ("hf at a revision, a folder", model(uri="hf://acme/digits@refs%2Fpr%2F1/onnx/fp32")),
    ("configmap", model(uri="configmap://digits.v1")),
    ("pvc", model(uri="pvc://models/a/..b/c")),
    ("pvc, whole", model(uri="pvc://models")),
    ("ONNX", deployment(model={"uri": "https://host/m.onnx", "format": "ONNX"}, conversion={"candidates": [{"target": "None"}]})),
    (
        "ONNX in int8",
        deployment(
            model={"uri": "https://host/m.onnx", "format": "ONNX"},
            conversion={"candidates": [{"target": "ONNX", "precision": "Int8Dynamic"}]},
        ),
    ),
    ("timeout in seconds", deployment(conversion={"timeout": "90s"})),
    ("golden data in a volume", validation(data={"uri": "pvc://data/..a/golden.npz"})),
    ("golden data in a registry", validation(data={"uri": f"oci://h:5000/golden:v1@sha256:{'a' * 64}"})),
    ("names with dots and hyphens", serving(runtime="a--b.c-1", runtimeClassName="0")),
    ("an artifact", artifact(model=FULL_MODEL, conversion=FULL_CONVERSION)),
    ("an artifact that is signed", artifact(signingSecret="slipway-signing")),
    (
        "a runtime",
        runtime(
            formats=[{"name": "ONNX", "priority": 10, "image": IMAGE}],
            command=["serve"],
            args=["--port", "{{port}}"],
            env=[{"name": "A", "value": "{{modelDir}}"}],
            port=9000,
            probes={"startupPath": "/up"},
        ),
    ),
]
