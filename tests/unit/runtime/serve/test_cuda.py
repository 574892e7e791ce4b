"""The GPU backend. What is decided is tested everywhere; what runs on a GPU is skipped where there is none."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from slipway_runtime.artifact import Signature, TensorSpec
from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends import load_backend
from slipway_runtime.serve.backends.cuda import CudaBackend, graph_kind, graph_rows, graphs_wanted
from slipway_runtime.serve.backends.pytorch import torch_backend
from slipway_runtime.serve.tensors import DTYPES
from slipway_runtime.validate.loaders import as_artifact

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def signature(*shapes: list[int | str], dtype: str = "float32") -> Signature:
    """All but the last are inputs."""
    specs = [TensorSpec(f"t{number}", dtype, tuple(shape)) for number, shape in enumerate(shapes)]
    return Signature(tuple(specs[:-1]), tuple(specs[-1:]))


KINDS = [
    ("batch first everywhere", signature(["n", 3, 8], ["n", 4]), "rows"),
    ("two inputs, one batch", signature(["n", 3], ["n", 5], ["n", 4]), "rows"),
    ("all fixed", signature([1, 3], [1, 4]), "fixed"),
    ("a second dim is dynamic", signature(["n", "length"], ["n", 4]), "none"),
    ("the output has no batch", signature(["n", 3], [4]), "none"),
    ("two names", signature(["n", 3], ["m", 4], ["n", 4]), "none"),
    ("the batch is not first", signature([3, "n"], [3, "n"]), "none"),
]


@pytest.mark.parametrize(("about", "given", "want"), KINDS)
def test_what_calls_have_in_common(about, given, want):
    assert graph_kind(given) == want, about


@pytest.mark.parametrize(
    ("kind", "rows", "want"),
    [
        ("rows", 1, 1),
        ("rows", 2, 2),
        ("rows", 3, 4),
        ("rows", 33, 64),
        ("rows", 64, 64),
        ("rows", 65, None),
        ("fixed", 3, 3),
        ("none", 1, None),
    ],
)
def test_which_graph_serves_a_batch(kind, rows, want):
    assert graph_rows(kind, rows) == want


def test_graphs_can_be_turned_off_and_a_typing_error_is_told():
    assert [graphs_wanted(word) for word in (None, "", "true", "false")] == [True, True, True, False]
    with pytest.raises(Failure, match="SLIPWAY_CUDA_GRAPHS"):
        graphs_wanted("False ")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Mixing(Net):
    """Rows of a batch change each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x - x.mean(0))


class Asking(Net):
    """Looks at a value on the CPU, which no graph can record."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x * 2 if x.sum().item() > 1e9 else x)


def backend(module: torch.nn.Module, shapes: Signature, monkeypatch, graphs: str = "true", dtype: str = "float32") -> CudaBackend:
    monkeypatch.setenv("SLIPWAY_CUDA_GRAPHS", graphs)
    artifact = as_artifact(None, {"format": "PyTorch", "entry": ""}, shapes, "Float32")
    made = torch_backend(module.eval().to("cuda", getattr(torch, dtype)), artifact, 1, "pytorch_eager", "cuda")
    assert isinstance(made, CudaBackend)
    return made


BATCHED = signature(["n", 16], ["n", 4])
MODELS = [(Net, "true", 4), (Net, "false", 0), (Mixing, "true", 1), (Asking, "true", 0)]


@GPU
@pytest.mark.parametrize(("model", "graphs", "count"), MODELS)
def test_answers_are_those_of_the_cpu_with_and_without_graphs(model, graphs, count, monkeypatch):
    made, module = backend(model(), BATCHED, monkeypatch, graphs), model().eval()
    random = np.random.default_rng(1)
    for rows in (1, 8, 5, 3, 2, 8, 1, 70):
        x = random.standard_normal((rows, 16)).astype(np.float32)
        with torch.inference_mode():
            want = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(made.infer({"t0": x})["t1"], want, rtol=1e-4, atol=1e-5)
    assert len(made._graphs) == count


@GPU
def test_lanes_do_not_mix_up_their_answers(monkeypatch):
    made, module = backend(Net(), BATCHED, monkeypatch), Net().eval()
    wrong: list[str] = []

    def lane(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(200):
            rows = [random.standard_normal((int(random.integers(1, 4)), 16)).astype(np.float32) for _ in range(3)]
            x = np.concatenate(rows, out=made.empty((sum(map(len, rows)), 16), rows[0].dtype))
            with torch.inference_mode():
                want = module(torch.from_numpy(x.copy())).numpy()
            got = made.infer({"t0": x})["t1"]
            if not np.allclose(got, want, rtol=1e-4, atol=1e-5):
                wrong.append(f"{seed}: {np.abs(got - want).max()}")

    threads = [threading.Thread(target=lane, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@GPU
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8"])
def test_every_dtype_goes_in_and_comes_out(dtype, monkeypatch):
    made = backend(torch.nn.Identity(), signature(["n", 3], ["n", 3], dtype=dtype), monkeypatch)
    rows = [np.arange(6).reshape(2, 3).astype(DTYPES[dtype]), np.ones((1, 3), DTYPES[dtype])]
    x = np.concatenate(rows, out=made.empty((3, 3), DTYPES[dtype]))
    np.testing.assert_array_equal(made.infer({"t0": x})["t1"].astype(np.float32), x.astype(np.float32))


@GPU
def test_float32_convolutions_are_float32(monkeypatch):
    torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(1)
    module = torch.nn.Conv2d(64, 64, 3)
    exact = copy.deepcopy(module).double()
    made = backend(module, signature(["n", 64, 32, 32], ["n", 64, 30, 30]), monkeypatch)
    x = np.random.default_rng(1).standard_normal((8, 64, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        want = exact(torch.from_numpy(x).double()).numpy()
    error = np.abs(made.infer({"t0": x})["t1"] - want).max()
    assert error < 2e-5, error  # TF32 is off by 1e-3


@GPU
def test_a_traced_model_with_positions_moves(tmp_path):
    class Positions(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(4, device=x.device, dtype=x.dtype)

    torch.jit.trace(Positions(), torch.ones(2, 4)).save(str(tmp_path / "model.pt"))
    shapes = signature(["n", 4], ["n", 4])
    made = load_backend(as_artifact(tmp_path, {"format": "TorchScript", "entry": "model.pt"}, shapes, "Float32"), 1)
    np.testing.assert_array_equal(made.infer({"t0": np.ones((3, 4), np.float32)})["t1"], np.ones((3, 4)) + np.arange(4))
