"""Each bad input ends in a condition with its documented reason, an Event and a next step.

The inputs of the module share a namespace, and a few are under way ahead of the one that is waited for, so that the module takes
minutes and not one conversion after the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from e2e.kit import (
    MODEL,
    SIGNATURE,
    Cluster,
    Manifest,
    Namespace,
    drop_namespace,
    evil_pickle,
    make_namespace,
    mdep,
    model_folder,
    model_yaml,
    onnx_folder,
    until,
    weights,
)
from integration.api.manifests import INVALID

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
AHEAD = 4
SERVER_401 = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET

ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Case:
    """One bad input: what to apply, and the reason it must end in."""

    name: str
    reason: str
    objects: Callable[[str], list[Manifest]]
    prepare: Callable[[Namespace], None] | None = None
    cleanup: tuple[str, ...] = field(default=())


def folder(code: str = MODEL, manifest: str | None = None, spec: Manifest | None = None, **files: bytes) -> Callable[[str], list[Manifest]]:
    """A model folder of its own in a ConfigMap, and a ModelDeployment of it."""
    return lambda name: [model_folder(f"{name}-folder", code, manifest, **files), mdep(name, f"configmap://{name}-folder", **(spec or {}))]


def source(uri: str, **model: Any) -> Callable[[str], list[Manifest]]:
    return lambda name: [mdep(name, uri, **model)]


def forward(body: str, before: str = "") -> str:
    """The tiny model with another `forward`."""
    return MODEL.replace("return self.fc(x)", body).replace("from torch import nn", f"import torch\nfrom torch import nn\n{before}")


def build(body: str) -> str:
    """The tiny model with another entrypoint."""
    return MODEL.replace("return Tiny().eval()", body)


def served_by(name: str, **runtime: Any) -> Callable[[str], list[Manifest]]:
    """A good model, on a ServingRuntime that is no good. Its name sorts last: the first one claims models that name none."""
    return lambda own: [
        {
            "apiVersion": "slipway.dev/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": name},
            "spec": {"formats": [{"name": "ONNX"}], **runtime},
        },
        mdep(own, "configmap://good", serving={"runtime": name}),
    ]


def wrong_password(space: Namespace) -> None:
    space.run_pod("guarded", SERVER_401, port=8000)
    data = {"username": "me", "password": "wrong"}
    space.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "stringData": data})
    space.wait_running("guarded")


CUSTOM_OP = """
@torch.library.custom_op("e2e::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@twice.register_fake
def _(x):
    return torch.empty_like(x)
"""
EXHAUST = """
    blocks = []
    for _ in range(40):
        blocks.append(bytearray(b"x" * (64 << 20)))
    raise RuntimeError("2.5 GiB could be had")
"""
LITTLE = {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
WIDE = {**SIGNATURE, "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 7]}]}
UNPULLABLE = "localhost:5001/slipway-absent:none"

CASES = [
    Case("missing-object", "SourceNotFound", source("configmap://absent")),
    Case("missing-claim", "SourceMissing", source("pvc://absent/model")),
    Case("unreachable-host", "SourceUnreachable", source("http://127.0.0.1:9/model.tar.gz")),
    Case("wrong-digest", "DigestMismatch", folder(spec={"digest": "sha256:" + "0" * 64})),
    Case("credentials-missing", "CredentialsMissing", source("http://guarded/model.tar.gz", credentialsSecretRef={"name": "absent"})),
    Case(
        "credentials-wrong",
        "CredentialsRejected",
        source("http://guarded/model.tar.gz", credentialsSecretRef={"name": "wrong"}),
        prepare=wrong_password,
    ),
    Case("entrypoint-missing", "EntrypointNotFound", folder(manifest=model_yaml(entrypoint="model:absent"))),
    Case("entrypoint-raises", "EntrypointFailed", folder(build('raise ValueError("no such classes")'))),
    Case("entrypoint-returns-a-dict", "EntrypointInvalid", folder(build("return dict(Tiny().state_dict())"))),
    Case(
        "entrypoint-never-returns",
        "ConversionTimeout",
        folder(build("import time\n    while True:\n        time.sleep(1)"), spec={"conversion": {"timeout": "20s"}}),
    ),
    Case("entrypoint-exhausts-memory", "ConversionOutOfMemory", folder(build(EXHAUST), spec={"conversion": {"resources": LITTLE}})),
    Case(
        "weights-do-not-fit",
        "WeightsMismatch",
        folder(weights_safetensors=weights(np.zeros((5, 4), np.float32), np.zeros(5, np.float32))),
    ),
    Case("pickle", "UnsafePickle", folder(manifest=model_yaml(weights="weights.pt"), weights_pt=evil_pickle())),
    Case("signature-mismatch", "SignatureMismatch", folder(manifest=model_yaml(signature=WIDE))),
    Case("unsupported-operator", "UnsupportedOperator", folder(forward("return twice(self.fc(x))", CUSTOM_OP))),
    Case("dropout", "ParityFailed", folder(forward("return nn.functional.dropout(self.fc(x), 0.5, training=True)"))),
    Case("nan", "NonFiniteOutputs", folder(forward("return torch.log(-1 - self.fc(x).abs())"))),
    Case("image-not-pullable", "ImagePullFailed", served_by("zz-e2e-absent", image=UNPULLABLE), cleanup=("zz-e2e-absent",)),
    Case("pods-crash", "PodsCrashing", served_by("zz-e2e-crash", image="@runtime", command=["python", "-c", "raise SystemExit(1)"]),
         cleanup=("zz-e2e-crash",)),
    Case(
        "not-enough-cpu",
        "InsufficientResources",
        lambda name: [mdep(name, "configmap://good", serving={"resources": {"requests": {"cpu": "64"}}})],
    ),
    Case("runtime-missing", "ServingRuntimeMissing", lambda name: [mdep(name, "configmap://good", serving={"runtime": "absent"})]),
]  # fmt: skip
# What goes the same way as others here and differs only in what `convert` or `validate` says, of which test_bad_input.py of the
# pipeline has every row: a conversion in a pod takes seconds of CPU.
SAME_WAY = (
    "entrypoint-missing",
    "entrypoint-returns-a-dict",
    "weights-do-not-fit",
    "signature-mismatch",
    "unsupported-operator",
    "dropout",
)
ROWS = [pytest.param(case, id=case.name, marks=[pytest.mark.nightly] if case.name in SAME_WAY else []) for case in CASES]


class Window:
    """Applies the selected cases in order, a few ahead of the one that is waited for."""

    def __init__(self, space: Namespace, cases: list[Case]) -> None:
        self.space, self.waiting, self.cases = space, list(cases), list(cases)

    def reach(self, case: Case) -> None:
        last = self.cases.index(case) + AHEAD
        while self.waiting and self.cases.index(self.waiting[0]) <= last:
            self._start(self.waiting.pop(0))

    def _start(self, case: Case) -> None:
        if case.prepare is not None:
            case.prepare(self.space)
        for document in case.objects(case.name):
            if document["kind"] == "ServingRuntime" and document["spec"]["image"] == "@runtime":
                document["spec"]["image"] = self.space.cluster.images["SLIPWAY_RUNTIME_IMAGE"]
            self.space.apply(document)


@pytest.fixture(scope="module")
def window(slipway: Cluster, request: pytest.FixtureRequest) -> Iterator[Window]:
    space = make_namespace(slipway)
    space.apply(onnx_folder("good"))
    items = [i for i in request.session.items if isinstance(i, pytest.Function) and i.module is request.module and hasattr(i, "callspec")]
    cases = [item.callspec.params["case"] for item in items if "case" in item.callspec.params]
    yield Window(space, cases)
    space.cluster.run("-n", space.name, "delete", "mdep", "--all", "--wait=false")
    for case in cases:
        for runtime in case.cleanup:
            space.cluster.run("delete", "servingruntime", runtime, "--ignore-not-found")
    drop_namespace(space)


@pytest.mark.parametrize("case", ROWS)
def test_bad_input(window: Window, case: Case) -> None:
    window.reach(case)
    condition = window.space.wait_reason(case.name, case.reason)
    assert "Next:" in condition["message"]
    window.space.wait_event(case.name, case.reason)


def test_unknown_scheme_is_refused_by_the_api(namespace: Namespace) -> None:
    said = namespace.refused(mdep("unknown", "ftp://host/model"))
    assert "the URI must start with oci://" in said


def test_every_rule_of_the_crds_refuses_with_its_words(slipway: Cluster) -> None:
    rows = []
    for index, (title, manifest, words) in enumerate(INVALID):
        name = f"row-{index:03}" if manifest["metadata"]["name"] == "digits" else manifest["metadata"]["name"]
        rows.append((title, manifest | {"metadata": manifest["metadata"] | {"name": name}}, words))
    every = "\n---\n".join(json.dumps(manifest) for _, manifest, _ in rows)
    done = slipway.run("create", "--dry-run=server", "-f", "-", stdin=every)
    assert not done.stdout, "accepted"
    parts, missing = re.split(r"(?m)^(?=Error from server|The \w+ \")", done.stderr), []
    for title, manifest, words in rows:
        # a field that the schema does not know is refused before the server reads the name
        about = [part for part in parts if manifest["metadata"]["name"] in part or "strict decoding" in part]
        if not any(words in part for part in about):
            missing.append((title, words, about))
    assert not missing


def test_quota_exceeded(namespace: Namespace) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    namespace.apply(quota, onnx_folder("good"))
    until(lambda: namespace.get("resourcequota", "none").get("status", {}).get("hard"), 180)
    namespace.apply(mdep("over", "configmap://good"))
    assert "Next:" in namespace.wait_reason("over", "QuotaExceeded")["message"]
    namespace.wait_event("over", "QuotaExceeded")


def test_a_name_of_63_characters_works(namespace: Namespace) -> None:
    name = "n" + "a" * 61 + "z"
    namespace.apply(onnx_folder("good"), mdep(name, "configmap://good"))
    namespace.wait_ready(name)


@pytest.mark.parametrize("bad", ["nan", "image-not-pullable"])
def test_stable_keeps_serving_when_the_next_version_is_bad(namespace: Namespace, bad: str, request: pytest.FixtureRequest) -> None:
    namespace.apply(onnx_folder("good"), mdep("tiny", "configmap://good"))
    good = namespace.wait_ready("tiny")["status"]["stable"]["revision"]
    if bad == "nan":
        reason = "NonFiniteOutputs"
        namespace.apply(*folder(forward("return torch.log(-1 - self.fc(x).abs())"))("tiny"))
    else:
        reason, runtime = "ImagePullFailed", f"zz-{namespace.name}"
        request.addfinalizer(lambda: namespace.cluster.run("delete", "servingruntime", runtime, "--ignore-not-found"))
        namespace.apply(*served_by(runtime, image=UNPULLABLE)("tiny"))
    namespace.wait_reason("tiny", reason)
    status = namespace.get("mdep", "tiny")["status"]
    assert (status["stable"]["revision"], status["stable"]["weight"]) == (good, 100)
    assert namespace.condition("tiny", "Available")["status"] == "True"
    with namespace.cluster.forward(namespace.name, "service/tiny", 80) as url:
        assert namespace.infer(url, "tiny", [[1.0, 2.0, 3.0, 4.0]]).shape == (1, 3)
