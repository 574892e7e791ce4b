"""The models of the Python server's tests as TorchScript, so that the same tests ask the LibTorch server."""

from __future__ import annotations

import dataclasses
import io
import warnings
from typing import Any

import numpy as np
import torch

from unit.runtime.serve.artifacts import Draft, mlp

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")


class Mlp(torch.nn.Module):
    """[batch, 64] -> [batch, 10]."""

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Parameter(torch.from_numpy(first)), torch.nn.Parameter(torch.from_numpy(second))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.first) @ self.second


class Digits(torch.nn.Module):
    """Logits: the first ten pixels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(-1, 64)[:, :10]


class Sleeper(torch.nn.Module):
    """Busy for some seconds by the clock (TorchScript cannot sleep); a negative first value is the seconds instead."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wanted = float(x[0, 0])
        seconds = self.seconds if wanted >= 0.0 else -wanted
        if seconds > 1000.0:
            raise ValueError("too long")
        start = torch.ops.prim.TimePoint()
        while torch.ops.prim.TimePoint() - start < int(seconds * 1e9):
            pass
        return x * 2


class RowCounter(torch.nn.Module):
    """[batch, n] -> its first column, and the rows of the call it was in; busy for 10 ms so that others come meanwhile."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        start = torch.ops.prim.TimePoint()
        while torch.ops.prim.TimePoint() - start < 10_000_000:
            pass
        return x[:, :1], torch.full([x.shape[0]], x.shape[0])


def scripted(module: torch.nn.Module) -> bytes:
    """The module as a TorchScript file."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module.eval()), file)
    return file.getvalue()


def as_torchscript(draft: Draft) -> Draft:
    """The same model and the same slipway.json, but for the format: only the test models of `artifacts` are known."""
    config = dict(draft.config)
    if config["format"] in ("TorchScript", "AOTInductor"):
        return draft
    if config["format"] == "PyTorch":
        # Never so short that calls are made on the event loop: a pause of 0 in eager Python is not either.
        module: torch.nn.Module = Sleeper(max(config.pop("arguments")["seconds"], 0.001))
        config.pop("entrypoint")
    else:
        module = Digits() if config["signature"]["inputs"][0]["name"] == "image" else Mlp(*mlp()[1:])
    entry = "model.pt" if config["entry"] in ("", "model.onnx") else config["entry"]
    return dataclasses.replace(draft, files={"model.pt": scripted(module)}, config={**config, "format": "TorchScript", "entry": entry})


def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
    """A tensor of a signature."""
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def row_counter_draft() -> Draft:
    """A batched model that says how many rows its call had."""
    signature = {
        "inputs": [tensor("x", "float32", "batch", "n")],
        "outputs": [tensor("first", "float32", "batch", 1), tensor("rows", "int64", "batch")],
    }
    return Draft({"model.pt": scripted(RowCounter())}, {"format": "TorchScript", "entry": "model.pt", "signature": signature})


class Turning(torch.nn.Module):
    """Gives what it gets, until a first value of 7 turns it: one more from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x[0, 0]) == 7.0:
            self.more = 1.0
        return x + self.more


class Identity(torch.nn.Module):
    """Gives what it gets."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def identity_draft(dtype: str) -> Draft:
    """x -> y, of any type."""
    return same_shape_draft(Identity(), dtype)


def turning_draft() -> Draft:
    """x -> y, with golden data that it reproduces until it turns."""
    x = np.full((3, 2), 0.5, np.float32)
    return dataclasses.replace(same_shape_draft(Turning(), "float32"), golden=({"x": x}, {"y": x}))


def same_shape_draft(module: torch.nn.Module, dtype: str) -> Draft:
    """x -> y of the same type and shape."""
    signature = {"inputs": [tensor("x", dtype, "batch", "n")], "outputs": [tensor("y", dtype, "batch", "n")]}
    return Draft({"model.pt": scripted(module)}, {"format": "TorchScript", "entry": "model.pt", "signature": signature})


def aotinductor_draft(folder: Any) -> Draft:
    """The MLP as an AOTInductor package, with the golden data of the ONNX one."""
    from unit.runtime.serve.artifacts import mlp_draft  # noqa: PLC0415

    draft = mlp_draft()
    x = torch.from_numpy(draft.golden[0]["x"]) if draft.golden else torch.zeros(16, 64)
    program = torch.export.export(Mlp(*mlp()[1:]).eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "model.pt2"))
    with open(package, "rb") as file:
        data = file.read()
    return dataclasses.replace(draft, files={"model.pt2": data}, config={**draft.config, "format": "AOTInductor", "entry": "model.pt2"})
