"""The model repository that we generate, in Triton itself, where $TRITON names an installation (bin/tritonserver, backends/).

Without the onnxruntime backend (the wheel nvidia-pytriton has none) the model behind the same config.pbtxt is written in Python: then it is
the configuration that is tested, and how requests and answers have to look.
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from integration.runtime import foreign
from integration.runtime.documented import EXCHANGES, INFER, Exchange
from integration.runtime.foreign import NAME, Pod, ask, pod
from integration.runtime.test_documented_requests import body_of, check
from integration.runtime.test_other_clients import python_with
from unit.runtime.serve.artifacts import Draft, dtypes_draft, mlp, mlp_draft

TRITON = Path(os.environ.get("TRITON", "/nowhere"))
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (TRITON / "bin/tritonserver").is_file(), reason="$TRITON names no installation of Triton; it is brought by hand"
    ),
]

MLP = """
import numpy as np, triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        w = np.load("{weights}")
        x = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", np.maximum(one @ w["a"], 0) @ w["b"])]) for one in x]
"""
SAME = """
import json, triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.names = [one["name"] for one in json.loads(args["model_config"])["input"]]

    def execute(self, requests):
        return [
            pb.InferenceResponse([pb.Tensor(f"{name}_out", pb.get_input_tensor_by_name(request, name).as_numpy()) for name in self.names])
            for request in requests
        ]
"""


def backends(folder: Path) -> Path:
    """The installation's backends, with the Python backend's stub for this Python beside its library."""
    stub = TRITON / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
    if not stub.is_file():
        return TRITON / "backends"
    python = folder / "backends/python"
    python.mkdir(parents=True)
    for other in (TRITON / "backends").iterdir():
        if other.name != "python":
            (folder / "backends" / other.name).symlink_to(other)
    for file in [*(TRITON / "backends/python").iterdir(), stub]:
        if not (python / file.name).exists():
            (python / file.name).symlink_to(file)
    return folder / "backends"


def in_python(made: Pod, code: str) -> None:
    """Put a model in Python behind the generated configuration, unless the backend is there that it names."""
    if (TRITON / "backends/onnxruntime").is_dir():
        return
    site = next(python_with("triton").parents[1].glob("lib/python*/site-packages"))  # its stub reads numpy 1 only
    model = made.folder / "models/layout" / NAME
    (model / "1/model.py").write_text(f"import sys\nsys.path.append({str(site)!r})\n{code}")
    text = (model / "config.pbtxt").read_text()
    assert text.count('backend: "onnxruntime"') == 1
    (model / "config.pbtxt").write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))


def running(made: Pod):
    environment = {"LD_LIBRARY_PATH": f"{TRITON.parents[1]}/nvidia_pytriton.libs:{sysconfig.get_config_var('LIBDIR')}"}
    return made.running([str(TRITON / "bin/tritonserver")], environment, "--backend-directory", str(backends(made.folder)))


@pytest.mark.parametrize(
    ("serving", "max_batch", "rows"),
    [({}, 0, 5), ({"batching": {"maxBatchSize": 8, "maxDelay": "2ms"}}, 8, 5)],
    ids=["no batching", "batching"],
)
def test_a_model_answers(tmp_path, serving, max_batch, rows):
    made = pod(tmp_path, "triton", mlp_draft(), **serving)
    _, first, second = mlp()
    np.savez(tmp_path / "w.npz", a=first, b=second)
    in_python(made, MLP.replace("{weights}", str(tmp_path / "w.npz")))
    x = np.random.default_rng(5).standard_normal((rows, 64)).astype(np.float32)
    with running(made) as port:
        item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.tolist()}
        got = ask(port, f"/v2/models/{NAME}/infer", json.dumps({"inputs": [item]}).encode())
        assert got.status == 200, got.body
        output = json.loads(got.body)["outputs"][0]
        want = np.maximum(x @ first, 0) @ second
        np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), want, rtol=1e-3, atol=1e-3)
        config = json.loads(ask(port, f"/v2/models/{NAME}/config").body)
        assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (max_batch, 1)
        assert config["parameters"]["intra_op_thread_count"]["string_value"] == "1", "1.5 CPUs are one thread"
        assert ("dynamic_batching" in config) is bool(max_batch)
        probes = {made.server[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
        assert {path: ask(port, path).status for path in probes} == dict.fromkeys(probes, 200)
        assert b"nv_inference_count" in ask(made.ports()["metrics"], "/metrics").body


def test_every_type_is_taken(tmp_path):
    draft, arrays = dtypes_draft()
    made = pod(tmp_path, "triton", draft)
    in_python(made, SAME)
    items = [
        {"name": name, "shape": [2, 2], "datatype": kind, "data": array.tolist()}
        for name, (kind, array) in arrays.items()
        if kind != "FP16"
    ]
    with running(made) as port:
        metadata = json.loads(ask(port, f"/v2/models/{NAME}").body)
        assert {row["name"]: (row["datatype"], row["shape"]) for row in metadata["inputs"]} == {
            name: (kind, [-1, 2]) for name, (kind, _) in arrays.items()
        }
        half = {"name": "float16", "shape": [2, 2], "datatype": "FP16", "parameters": {"binary_data_size": 8}}  # it has no JSON
        wanted = [{"name": f"{name}_out", "parameters": {"binary_data": name == "float16"}} for name in arrays]
        head = json.dumps({"inputs": [*items, half], "outputs": wanted}).encode()
        raw = arrays["float16"][1].tobytes()
        got = ask(port, f"/v2/models/{NAME}/infer", head + raw, Inference_Header_Content_Length=str(len(head)))
        assert got.status == 200, got.body
        assert got.body.endswith(raw)


@pytest.mark.skipif(not (TRITON / "backends/onnxruntime").is_dir(), reason="the models are ONNX, and $TRITON has no onnxruntime backend")
@pytest.mark.parametrize("exchange", [exchange for exchange in EXCHANGES if exchange.path == INFER], ids=str)
def test_documented_requests_are_answered_as_our_server_answers_them(tmp_path, exchange: Exchange):
    body, headers = body_of(exchange)
    with running(pod(tmp_path, "triton", exchange.draft())) as port:
        got = ask(port, exchange.path.format(model=NAME), body, **headers)
        assert got.status == 200, got.body
        check(exchange, got.body, got.headers.get("inference-header-content-length"), model_name=NAME, model_version="1")


def test_a_format_that_triton_does_not_load_is_refused_by_pull(tmp_path):
    draft = Draft({"a.pt2": b"1"}, {**mlp_draft().config, "format": "ExportedProgram", "entry": "a.pt2"})
    with pytest.raises(AssertionError, match="layout Triton has no place for ExportedProgram"):
        foreign.pod(tmp_path, "triton", draft)
