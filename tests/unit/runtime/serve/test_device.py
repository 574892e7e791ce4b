"""Where a model runs, and what moving one there takes. Tests on a GPU are in test_cuda.py."""

from __future__ import annotations

import pytest
import torch

from slipway_runtime.reasons import Failure
from slipway_runtime.serve.backends.aotinductor import package_device
from slipway_runtime.serve.backends.pytorch import move_constants
from slipway_runtime.serve.device import may_use_gpu, wanted_device

ROWS = [
    (None, True, "cuda"),
    (None, False, "cpu"),
    ("", True, "cuda"),
    ("auto", True, "cuda"),
    ("auto", False, "cpu"),
    ("cpu", True, "cpu"),
    ("cuda", True, "cuda"),
    ("cuda", False, "ModelLoadFailed"),
    ("gpu", True, "InvalidArguments"),
    ("cuda:1", True, "InvalidArguments"),
]


@pytest.mark.parametrize(("word", "has_gpu", "want"), ROWS)
def test_the_device(word, has_gpu, want):
    environment = {} if word is None else {"SLIPWAY_DEVICE": word}
    if want in ("cpu", "cuda"):
        assert wanted_device(environment, lambda: has_gpu) == want
        return
    with pytest.raises(Failure, match="SLIPWAY_DEVICE") as found:
        wanted_device(environment, lambda: has_gpu)
    assert found.value.reason == want


def test_a_pod_told_to_use_the_cpu_does_not_wake_the_driver():
    assert wanted_device({"SLIPWAY_DEVICE": "cpu"}, lambda: pytest.fail("asked")) == "cpu"


@pytest.mark.parametrize(
    ("word", "nodes", "want"),
    [
        (None, [], False),
        (None, ["nvidia0", "nvidiactl"], True),
        ("auto", ["nvidia12"], True),
        ("auto", ["nvidiactl", "nvidia-uvm"], False),  # of the driver, not of a GPU
        ("cpu", ["nvidia0"], False),
        ("cuda", [], True),
        ("gpu", ["nvidia0"], False),  # refused when the model is loaded
    ],
)
def test_whether_a_gpu_may_be_used_is_told_without_the_driver(word, nodes, want, tmp_path):
    for node in nodes:
        (tmp_path / node).touch()
    assert may_use_gpu({} if word is None else {"SLIPWAY_DEVICE": word}, tmp_path) is want


class Positions(torch.nn.Module):
    """Makes a tensor of its own, as position encodings do; a trace writes down where."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(4, device=x.device, dtype=x.dtype)


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_trace_moves_with_the_tensors_that_it_makes(is_nested, tmp_path):
    module = torch.nn.Sequential(torch.nn.ReLU(), Positions()) if is_nested else Positions()
    path = str(tmp_path / "m.pt")
    torch.jit.trace(module.eval(), torch.ones(2, 4)).save(path)
    elsewhere = torch.ones(2, 4, device="meta")  # a device that every machine has; only shapes are computed
    with pytest.raises(RuntimeError, match="device"):
        torch.jit.load(path)(elsewhere)
    moved = torch.jit.load(path)
    move_constants(moved, "meta")
    assert moved(elsewhere).device.type == "meta"


def test_a_package_says_what_it_is_compiled_for(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(2, 4),))
    path = tmp_path / "m.pt2"
    torch.export.save(program, path)
    assert package_device(path) == "cpu"
